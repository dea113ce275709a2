// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// Only extensions of the tables are told, by the two-call idiom.
func TestExtensions(t *testing.T) {
	c := begin(t, Config{})
	s := c.setUp()
	count := c.mem(0)
	c.do(registry.VkEnumerateDeviceExtensionProperties, s.gpu, 0, count, 0)
	n := word(count)
	if n == 0 {
		t.Skip("the driver has no extensions")
	}
	array := c.mem(make([]uint64, (n*extensionProperties+7)/8)...)
	c.do(registry.VkEnumerateDeviceExtensionProperties, s.gpu, 0, count, array)
	if word(count) != n {
		t.Errorf("%d extensions, then %d", n, word(count))
	}
	for i := range n {
		name := (structure(array) + structure(i*extensionProperties)).text()
		if x, ok := registry.ExtensionByName(name); !ok || x.Instance {
			t.Errorf("%s is offered", name)
		}
	}
	structure(count).set32(0, uint32(n-1))
	if r, refused := c.try(registry.VkEnumerateDeviceExtensionProperties, s.gpu, 0, count, array); r != 5 || refused || word(count) != n-1 {
		t.Errorf("with room for one less: %d, %d extensions", r, word(count))
	}
	c.do(registry.VkEnumerateInstanceExtensionProperties, 0, count, 0)
}

// Extensions that are not offered cannot be enabled.
func TestExtensionNotOffered(t *testing.T) {
	c := begin(t, Config{})
	s := c.setUp()
	name := append([]byte("VK_KHR_external_memory_fd"), 0)
	c.keep = append(c.keep, name)
	out := c.mem(c.handle(registry.VkDevice))
	queue := c.mem(2, 0, 0, 1, c.mem(0))
	info := c.mem(3, 0, 1<<32, queue, 0, 0, 1, c.mem(address(&name[0])), 0)
	if r, refused := c.try(registry.VkCreateDevice, s.gpu, info, 0, out); r != -7 || !refused {
		t.Errorf("%d, refused: %v; want VK_ERROR_EXTENSION_NOT_PRESENT", r, refused)
	}
}

func TestVersions(t *testing.T) {
	c := begin(t, Config{})
	version := c.mem(0)
	c.do(registry.VkEnumerateInstanceVersion, version)
	s := c.setUp()
	properties := c.mem(make([]uint64, 110)...)
	c.do(registry.VkGetPhysicalDeviceProperties, s.gpu, properties)
	properties2 := c.mem(make([]uint64, 112)...)
	structure(properties2).set32(0, 1000059001)
	c.do(registry.VkGetPhysicalDeviceProperties2, s.gpu, properties2)
	for _, v := range []uint32{uint32(word(version)), uint32(word(properties)), structure(properties2).u32(16)} {
		if v == 0 || v > uint32(newestAPI) {
			t.Errorf("version %#x, at most %#x", v, uint32(newestAPI))
		}
	}
	if clamp(newestAPI+1) != newestAPI || clamp(1) != 1 {
		t.Error("clamp")
	}
}

// What cannot be carried is off, whatever the driver has.
func TestFeaturesAreHidden(t *testing.T) {
	core, chained := new([32]uint64), new([8]uint64)
	for i := range core {
		core[i] = 1<<32 | 1
	}
	s, p := structure(address(core)), structure(address(chained))
	s.set32(0, 51) // VkPhysicalDeviceVulkan12Features
	s.set64(8, uint64(p))
	chained[0], chained[1], chained[2] = 1000145001, 0, 1
	hideFeatures(uint64(s))
	at := registry.Structs[registry.StructBySType(51)]
	if at.Name != "VkPhysicalDeviceVulkan12Features" || s.u32(16+38*4) != 1 || s.u32(16+39*4) != 0 || s.u32(16+40*4) != 1 {
		t.Errorf("%s: %x", at.Name, *core)
	}
	if chained[2] != 0 {
		t.Error("protectedMemory is on")
	}
	for _, h := range hidden {
		if registry.StructBySType(h.sType) == registry.None && h.sType < 1000000000 {
			t.Errorf("%s: no structure %d", h.name, h.sType)
		}
	}
}

// The same queue has one goroutine, however often it is got.
func TestQueueIsOne(t *testing.T) {
	c := begin(t, Config{})
	s := c.setUp()
	again := c.made(registry.VkQueue, registry.VkGetDeviceQueue, s.device, 0, 0)
	c.do(registry.VkQueueWaitIdle, again)
	c.stopServing()
	a, b := c.r.table.find(idOf(registry.VkQueue, s.queue)), c.r.table.find(idOf(registry.VkQueue, again))
	if a == b || a.state != b.state || len(a.device.queues) != 1 {
		t.Errorf("%+v and %+v", a, b)
	}
}

// Timeline values are told; an idle queue is told after them. While the worker
// waits for the host, it answers.
func TestTimelineSubmission(t *testing.T) {
	c := begin(t, Config{Deadline: time.Minute})
	s := c.setUp()
	semaphore := func() uint64 {
		return c.made(registry.VkSemaphore, registry.VkCreateSemaphore, s.device, c.mem(9, c.mem(1000207002, 0, 1, 0), 0), 0)
	}
	host, done := semaphore(), semaphore()
	values := c.mem(1000207003, 0, 1, c.mem(3), 1, c.mem(8))
	batch := c.mem(4, values, 1, c.mem(host), c.mem(0x10000), 0, 0, 1, c.mem(done))
	c.post(registry.VkQueueSubmit, s.queue, 1, batch, 0)
	c.send(c.conn.Begin(stream.OpPing, 0, c.number()))
	c.receive(c.serial)
	if len(c.signals) != 0 {
		t.Errorf("%+v before the host's signal", c.signals)
	}
	c.post(registry.VkSignalSemaphore, s.device, c.mem(1000207005, 0, host, 3))
	c.do(registry.VkDeviceWaitIdle, s.device)
	if want := (stream.Signal{Kind: stream.SignalSemaphore, ID: done, Value: 8}); len(c.signals) != 1 || c.signals[0] != want {
		t.Errorf("%+v, want %+v", c.signals, want)
	}
	c.post(registry.VkDestroySemaphore, s.device, done, 0)
	c.post(registry.VkDestroySemaphore, s.device, host, 0)
	c.do(registry.VkQueueWaitIdle, s.queue)
	if c.lost != nil {
		t.Errorf("lost: %+v", c.lost)
	}
}

// A call that waits does not keep others from being executed.
func TestAside(t *testing.T) {
	c := begin(t, Config{})
	s := c.setUp()
	host := c.made(registry.VkSemaphore, registry.VkCreateSemaphore, s.device, c.mem(9, c.mem(1000207002, 0, 1, 0), 0), 0)
	a := &registry.Args{s.device, c.mem(1000207004, 0, 1<<32, c.mem(host), c.mem(1)), uint64(time.Minute)}
	wait := c.number()
	buf, err := c.codec.AppendCall(c.conn.Begin(stream.Op(registry.VkWaitSemaphores), stream.FlagReply, wait), &registry.Commands[registry.VkWaitSemaphores], a, &c.env)
	if err != nil {
		t.Fatal(err)
	}
	c.send(buf)
	c.do(registry.VkDeviceWaitIdle, s.device)
	c.post(registry.VkSignalSemaphore, s.device, c.mem(1000207005, 0, host, 1))
	if m := c.receive(wait); m.Has(stream.FlagFailed) {
		t.Error("refused")
	}
}

// BenchmarkFence is a submission with a fence until its signal, and the reset,
// over a pipe.
func BenchmarkFence(b *testing.B) {
	c := begin(b, Config{})
	s := c.setUp()
	fence := c.made(registry.VkFence, registry.VkCreateFence, s.device, c.mem(8, 0, 0), 0)
	handle := c.mem(fence)
	for b.Loop() {
		c.post(registry.VkQueueSubmit, s.queue, 0, 0, fence)
		c.receive(0)
		c.post(registry.VkResetFences, s.device, 1, handle)
	}
}

// BenchmarkRecord is one recorded vkCmdFillBuffer, from bytes to the driver.
func BenchmarkRecord(b *testing.B) {
	c := begin(b, Config{})
	w := c.workload(4096)
	c.stopServing()
	const commands = 1000
	body := c.recordBody(w, commands)
	b.ResetTimer()
	for range b.N {
		if err := c.r.record(body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/commands, "ns/command")
	if o := c.r.table.find(idOf(registry.VkCommandBuffer, w.commands)); o.state.(*commandBuffer).poison != "" {
		b.Error(o.state.(*commandBuffer).poison)
	}
}
