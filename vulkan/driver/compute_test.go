// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"bytes"
	"context"
	_ "embed"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/render"
)

//go:embed testdata/add.spv
var addShader []byte

// A bench is an application with a device of the real driver, with all its
// extensions, a queue, and a command buffer.
type bench struct {
	*app
	offer
	device, queue, pool, commands, done uint64
}

func newBench(t testing.TB, worker render.Config) *bench {
	t.Helper()
	return newBenchOf(t, withWorkerOf(t, worker))
}

func newBenchOf(t testing.TB, cfg Config) *bench {
	t.Helper()
	b := &bench{app: newApp(t, cfg)}
	b.offer = b.everything()
	var r int32
	if b.device, r = b.createDevice(b.offer, 0); r != success {
		t.Fatalf("device: %d", r)
	}
	b.queue = b.app.queue(b.device)
	b.pool, b.commands = b.commandBuffer(b.device)
	b.done = b.fence(b.device)
	t.Cleanup(func() {
		b.call(registry.VkDestroyDevice, b.device, 0)
		b.call(registry.VkDestroyInstance, b.offer.instance, 0)
		if n := b.d.objects.count(); n != 0 {
			t.Errorf("%d objects are left", n)
		}
	})
	return b
}

// run records, submits and waits.
func (b *bench) run(record func()) {
	b.t.Helper()
	b.begin(b.commands)
	record()
	b.must(registry.VkEndCommandBuffer, b.commands)
	b.must(registry.VkQueueSubmit, b.queue, 1, b.submission(b.commands), b.done)
	b.waitFor(b.device, b.done)
	b.must(registry.VkResetFences, b.device, 1, b.words(b.done))
}

// buffer makes a storage buffer in mapped memory.
func (b *bench) buffer(size uint64) (buffer, at uint64) {
	b.t.Helper()
	buffer = b.make(registry.VkCreateBuffer, b.device, b.words(sBuffer, 0, 0, size, two(0x23, 0), 0, 0), 0)
	need, types := b.room(24), b.room(520)
	b.call(registry.VkGetBufferMemoryRequirements, b.device, buffer, need)
	b.call(registry.VkGetPhysicalDeviceMemoryProperties, b.offer.physical, types)
	for i := range load32(types) {
		if load32(need+16)&(1<<i) == 0 || load32(types+4+8*uint64(i))&6 != 6 {
			continue
		}
		memory := b.make(registry.VkAllocateMemory, b.device, b.words(sAllocate, 0, load64(need), uint64(i)), 0)
		b.must(registry.VkBindBufferMemory, b.device, buffer, memory, 0)
		p := b.words(0)
		b.must(registry.VkMapMemory, b.device, memory, 0, forEver, 0, p)
		return buffer, load64(p)
	}
	b.t.Fatal("no memory for it")
	return 0, 0
}

// An adder is a pipeline of testdata/add.comp.
type adder struct{ setLayout, layout, pipeline uint64 }

// adder makes one that adds a constant; its set's layout has flags.
func (b *bench) adder(addend, flags uint32, cache uint64) adder {
	b.t.Helper()
	code := b.room(len(addShader))
	copy(bytesAt(code, len(addShader)), addShader)
	module := b.make(registry.VkCreateShaderModule, b.device, b.words(16, 0, 0, uint64(len(addShader)), code), 0)
	var a adder
	bindings := b.words(two(0, storageBuffer), two(1, 0x20), 0, two(1, storageBuffer), two(1, 0x20), 0)
	a.setLayout = b.make(registry.VkCreateDescriptorSetLayout, b.device, b.words(sSetLayout, 0, two(flags, 2), bindings), 0)
	a.layout = b.make(registry.VkCreatePipelineLayout, b.device, b.words(30, 0, two(0, 1), b.words(a.setLayout), 0, 0), 0)
	special := b.words(1, b.words(two(0, 0), 4), 4, b.words(uint64(addend)))
	const captureStatistics = 0x40
	info := b.words(29, 0, captureStatistics, 18, 0, two(0, 0x20), module, b.text("main"), special, a.layout, 0, 0)
	a.pipeline = b.make(registry.VkCreateComputePipelines, b.device, cache, 1, info, 0)
	b.call(registry.VkDestroyShaderModule, b.device, module, 0)
	return a
}

// template makes a template for two storage buffers: of a set, or pushed.
func (b *bench) template(a adder, pushed bool) uint64 {
	b.t.Helper()
	kind := uint64(0)
	if pushed {
		kind = 1
	}
	entries := b.words(
		two(0, 0), two(1, storageBuffer), 8, 24, // behind a word of something else
		two(1, 0), two(1, storageBuffer), 40, 0)
	return b.make(registry.VkCreateDescriptorUpdateTemplate, b.device,
		b.words(1000085000, 0, two(0, 2), entries, kind, a.setLayout, 1, a.layout, 0), 0)
}

// Descriptors by templates, of sets and pushed, name the buffers that the
// shader uses, and its constants are the pipeline's.
func TestTemplates(t *testing.T) {
	b := newBench(t, render.Config{})
	from, in := b.buffer(256)
	to, out := b.buffer(256)
	for i := range uint64(64) {
		store32(in+4*i, uint32(i*i))
	}
	data := b.words(^uint64(0), from, 0, 256, ^uint64(0), to, 0, forEver)
	for _, pushed := range []bool{false, true} {
		addend, flags := uint32(1000), uint32(0)
		if pushed {
			if !slices.Contains(b.extensions, "VK_KHR_push_descriptor") {
				continue
			}
			addend, flags = 5000, 1
		}
		a := b.adder(addend, flags, 0)
		template := b.template(a, pushed)
		var set uint64
		if !pushed {
			pool := b.setPool(b.device, 1, two(storageBuffer, 2))
			set, _ = b.sets(b.device, pool, a.setLayout)
			b.call(registry.VkUpdateDescriptorSetWithTemplate, b.device, load64(set), template, data)
		}
		b.run(func() {
			b.call(registry.VkCmdBindPipeline, b.commands, 1, a.pipeline)
			if pushed {
				b.call(registry.VkCmdPushDescriptorSetWithTemplateKHR, b.commands, template, a.layout, 0, data)
			} else {
				b.call(registry.VkCmdBindDescriptorSets, b.commands, 1, a.layout, 0, 1, set, 0, 0)
			}
			b.call(registry.VkCmdDispatch, b.commands, 1, 1, 1)
		})
		for i := range uint64(64) {
			if got, want := load32(out+4*i), uint32(i*i)+addend; got != want {
				t.Fatalf("pushed %v, element %d: %d, want %d", pushed, i, got, want)
			}
		}
	}
}

// What applications do all the time costs no round trip, and what never changes
// costs one.
func TestRoundTrips(t *testing.T) {
	b := newBench(t, render.Config{})
	a := b.adder(1, 0, 0)
	from, _ := b.buffer(256)
	to, _ := b.buffer(256)
	pool := b.setPool(b.device, 2, two(storageBuffer, 4))
	trips := b.counting()
	expect := func(name string, want int, f func()) {
		t.Helper()
		before := trips()
		f()
		if got := trips() - before; got != want {
			t.Errorf("%s: %d round trips, want %d", name, got, want)
		}
	}
	for range 3 {
		expect("objects", 0, func() {
			f := b.fence(b.device)
			s := b.make(registry.VkCreateSemaphore, b.device, b.words(sSemaphore, 0, 0), 0)
			e := b.make(registry.VkCreateEvent, b.device, b.words(sEvent, 0, 0), 0)
			q := b.make(registry.VkCreateQueryPool, b.device, b.words(11, 0, two(0, 2), two(1, 0)), 0)
			c := b.make(registry.VkCreatePipelineCache, b.device, b.words(17, 0, 0, 0, 0), 0)
			v := b.make(registry.VkCreateBuffer, b.device, b.words(sBuffer, 0, 0, 256, two(0x23, 0), 0, 0), 0)
			b.must(registry.VkSetEvent, b.device, e)
			for kind, o := range map[registry.Index]uint64{
				registry.VkDestroyFence: f, registry.VkDestroySemaphore: s, registry.VkDestroyEvent: e,
				registry.VkDestroyQueryPool: q, registry.VkDestroyPipelineCache: c, registry.VkDestroyBuffer: v,
			} {
				b.call(kind, b.device, o, 0)
			}
		})
		expect("a frame", 0, func() {
			set, r := b.sets(b.device, pool, a.setLayout)
			if r != success {
				t.Fatal(r)
			}
			infos := []uint64{b.words(from, 0, 256), b.words(to, 0, 256)}
			for i, info := range infos {
				write := b.words(35, 0, load64(set), two(uint32(i), 0), two(1, storageBuffer), 0xbad, info, 0xbad)
				b.call(registry.VkUpdateDescriptorSets, b.device, 1, write, 0, 0)
			}
			b.run(func() {
				b.call(registry.VkCmdBindPipeline, b.commands, 1, a.pipeline)
				b.call(registry.VkCmdBindDescriptorSets, b.commands, 1, a.layout, 0, 1, set, 0, 0)
				b.call(registry.VkCmdDispatch, b.commands, 1, 1, 1)
			})
			b.must(registry.VkFreeDescriptorSets, b.device, pool, 1, set)
			b.must(registry.VkResetCommandPool, b.device, b.pool, 0)
		})
	}
	for _, cmd := range []registry.Index{registry.VkGetPhysicalDeviceFeatures, registry.VkGetPhysicalDeviceProperties, registry.VkGetPhysicalDeviceMemoryProperties} {
		b.call(cmd, b.offer.physical, b.room(1024))
		expect(registry.Commands[cmd].Name, 0, func() { b.call(cmd, b.offer.physical, b.room(1024)) })
	}
	properties := func() { b.call(registry.VkGetPhysicalDeviceFormatProperties, b.offer.physical, 37, b.room(12)) }
	expect("a format, first", 1, properties)
	expect("a format, again", 0, properties)
}

// An event that the device sets is seen by who polls it.
func TestDeviceSetsEvent(t *testing.T) {
	b := newBench(t, render.Config{})
	event := b.make(registry.VkCreateEvent, b.device, b.words(sEvent, 0, 0), 0)
	trips := b.counting()
	for round := range 5 {
		b.begin(b.commands)
		b.call(registry.VkCmdSetEvent, b.commands, event, 0x10000)
		b.must(registry.VkEndCommandBuffer, b.commands)
		b.must(registry.VkQueueSubmit, b.queue, 1, b.submission(b.commands), 0)
		b.poll(event, eventSet)
		b.must(registry.VkResetEvent, b.device, event)
		if r := b.call(registry.VkGetEventStatus, b.device, event); r != eventReset {
			t.Fatalf("round %d: %d after a reset", round, r)
		}
		b.must(registry.VkSetEvent, b.device, event)
		b.begin(b.commands)
		b.call(registry.VkCmdResetEvent, b.commands, event, 0x10000)
		b.must(registry.VkEndCommandBuffer, b.commands)
		b.must(registry.VkQueueSubmit, b.queue, 1, b.submission(b.commands), 0)
		b.poll(event, eventReset)
	}
	if trips() != 0 {
		t.Errorf("%d round trips", trips())
	}
	b.must(registry.VkDeviceWaitIdle, b.device)
}

// poll asks for an event until it is as it should be.
func (b *bench) poll(event uint64, want int32) {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); b.call(registry.VkGetEventStatus, b.device, event) != want; runtime.Gosched() {
		if time.Now().After(end) {
			b.t.Fatalf("the event is not %d", want)
		}
	}
}

// Query results are told as they are: not ready, available, or waited for.
func TestQueries(t *testing.T) {
	b := newBench(t, render.Config{})
	const wide, wait, available = 1, 2, 4
	pool := b.make(registry.VkCreateQueryPool, b.device, b.words(11, 0, two(0, 2), two(3, 0)), 0)
	b.run(func() { b.call(registry.VkCmdResetQueryPool, b.commands, pool, 0, 3) })
	results := b.words(77, 77, 77, 77, 77, 77)
	if r := b.call(registry.VkGetQueryPoolResults, b.device, pool, 0, 3, 24, results, 8, wide); r != notReady || load64(results) != 77 {
		t.Errorf("before: %d, %d", r, load64(results))
	}
	if r := b.call(registry.VkGetQueryPoolResults, b.device, pool, 0, 3, 48, results, 16, wide|available); r != notReady || load64(results+8) != 0 {
		t.Errorf("before: %d, available %d", r, load64(results+8))
	}
	b.begin(b.commands)
	for i := range uint64(3) {
		b.call(registry.VkCmdWriteTimestamp, b.commands, 0x2000, pool, i)
	}
	b.must(registry.VkEndCommandBuffer, b.commands)
	b.must(registry.VkQueueSubmit, b.queue, 1, b.submission(b.commands), 0)
	b.must(registry.VkGetQueryPoolResults, b.device, pool, 0, 3, 48, results, 16, wide|wait|available)
	for i := range uint64(3) {
		if load64(results+16*i+8) == 0 || load64(results+16*i) == 0 || i > 0 && load64(results+16*i) < load64(results+16*i-16) {
			t.Errorf("timestamp %d: %d, available %d", i, load64(results+16*i), load64(results+16*i+8))
		}
	}
	narrow := b.words(0, ^uint64(0))
	b.must(registry.VkGetQueryPoolResults, b.device, pool, 1, 1, 4, narrow, 4, wait)
	if v := load32(narrow); v != load32(results+16) && v != ^uint32(0) || load32(narrow+4) != 0 || load64(narrow+8) != ^uint64(0) {
		t.Errorf("32 bits: %x", bytesAt(narrow, 16))
	}
	// However large the room is: only results travel.
	const much = 256 << 20
	large := b.room(much)
	store64(large+much-8, 77)
	b.must(registry.VkGetQueryPoolResults, b.device, pool, 0, 1, much, large, forEver, wide|wait)
	b.must(registry.VkGetQueryPoolResults, b.device, pool, 1, 2, much, large+8, 8, wide|wait)
	for i := range uint64(3) {
		if load64(large+8*i) != load64(results+16*i) {
			t.Errorf("timestamp %d: %d, want %d", i, load64(large+8*i), load64(results+16*i))
		}
	}
	if load64(large+24) != 0 || load64(large+much-8) != 77 {
		t.Errorf("after the results: %d, %d", load64(large+24), load64(large+much-8))
	}
	b.must(registry.VkDeviceWaitIdle, b.device)
}

// A pipeline cache's data comes by the two-call idiom, and another cache takes
// it; what pipelines consist of is told.
func TestPipelineCaches(t *testing.T) {
	b := newBench(t, render.Config{})
	cache := b.make(registry.VkCreatePipelineCache, b.device, b.words(17, 0, 0, 0, 0), 0)
	a := b.adder(3, 0, cache)
	size := b.words(0)
	b.must(registry.VkGetPipelineCacheData, b.device, cache, size, 0)
	n := load64(size)
	if n < 32 {
		t.Fatalf("%d bytes", n)
	}
	data := b.room(int(n))
	b.must(registry.VkGetPipelineCacheData, b.device, cache, size, data)
	if load64(size) != n || load32(data) < 32 {
		t.Errorf("%d bytes with a header of %d", load64(size), load32(data))
	}
	store64(size, n-1)
	short := b.room(int(n))
	if r := b.call(registry.VkGetPipelineCacheData, b.device, cache, size, short); r != incomplete || load64(size) >= n {
		t.Errorf("too little room: %d, %d bytes", r, load64(size))
	}
	second := b.make(registry.VkCreatePipelineCache, b.device, b.words(17, 0, 0, n, data), 0)
	b.must(registry.VkMergePipelineCaches, b.device, second, 1, b.words(cache))
	b.adder(3, 0, second)

	if !slices.Contains(b.extensions, "VK_KHR_pipeline_executable_properties") {
		t.Skip("no executables are told")
	}
	count := b.words(0)
	info := b.words(1000269001, 0, a.pipeline)
	b.must(registry.VkGetPipelineExecutablePropertiesKHR, b.device, info, count, 0)
	if k := int(load32(count)); k > 0 {
		const sized = 16 + 4 + 256 + 256 + 4
		list := b.room(k * (sized + 7))
		store32(list, 1000269002)
		store32(count, 1)
		if r := b.call(registry.VkGetPipelineExecutablePropertiesKHR, b.device, info, count, list); r < 0 || load32(count) != 1 || stringAt(list+20) == "" {
			t.Errorf("executables: %d, %q", r, stringAt(list+20))
		}
	}
}

// A worker that keeps few handles refuses the one too many, and all goes on.
func TestWorkerLimitsObjects(t *testing.T) {
	b := newBench(t, render.Config{Objects: 64})
	var fences []uint64
	out := b.words(0)
	for len(fences) < 100 {
		r := b.call(registry.VkCreateFence, b.device, b.words(sFence, 0, 0), 0, out)
		if r == outOfHostMemory {
			break
		}
		if r != success {
			t.Fatalf("fence %d: %d", len(fences), r)
		}
		fences = append(fences, load64(out))
	}
	if len(fences) < 20 || len(fences) > 64 {
		t.Errorf("%d fences", len(fences))
	}
	b.run(func() {})
	for _, f := range fences {
		b.call(registry.VkDestroyFence, b.device, f, 0)
	}
	b.fence(b.device)
	b.must(registry.VkDeviceWaitIdle, b.device)
}

// As across a network: all that the application writes goes up while what the
// device wrote comes down, many times what sockets hold, in both directions.
func TestLargeBothWays(t *testing.T) {
	cfg := withWorker(t)
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context) (Connection, error) {
		c, err := dial(ctx)
		c.Files = false
		return c, err
	}
	b := newBenchOf(t, cfg)
	const size = 4 << 20
	from, in := b.buffer(size)
	to, out := b.buffer(size)
	b.must(registry.VkBeginCommandBuffer, b.commands, b.words(sBegin, 0, 4, 0)) // simultaneous use
	b.call(registry.VkCmdCopyBuffer, b.commands, from, to, 1, b.words(0, 0, size))
	b.must(registry.VkEndCommandBuffer, b.commands)
	const frames = 8
	for i := range byte(frames) {
		fill := bytes.Repeat([]byte{i + 1, i*7 + 1, 99 - i, i + 3}, size/4)
		copy(bytesAt(in, size), fill)
		fence := uint64(0)
		if i == frames-1 {
			fence = b.done
			// The last one starts when the others are done with its input.
			b.must(registry.VkQueueWaitIdle, b.queue)
			copy(bytesAt(in, size), fill)
		}
		b.must(registry.VkQueueSubmit, b.queue, 1, b.submission(b.commands), fence)
	}
	b.waitFor(b.device, b.done)
	if !bytes.Equal(bytesAt(in, size), bytesAt(out, size)) {
		t.Error("the copy is another")
	}
}
