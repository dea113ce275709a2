// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/render"
	"github.com/memspan/memspan/wire"
)

// A rig is a device with a queue, a command buffer and a fence.
type rig struct {
	*app
	instance, device, queue, pool, cb, done uint64
	flags                                   uint32 // of memory type 0
}

// rigs runs a test in each of the ways that memory is kept in step.
func rigs(t *testing.T, test func(t *testing.T, r *rig)) {
	for name, how := range map[string]struct {
		files  bool
		worker render.Config
	}{
		"shared":       {files: true},
		"shadow":       {},
		"refused":      {files: true, worker: render.Config{HideImport: true}},
		"not-coherent": {worker: render.Config{HideHostCoherent: true}},
	} {
		t.Run(name, func(t *testing.T) { test(t, newRig(t, how.files, how.worker)) })
	}
}

func newRig(t testing.TB, files bool, worker render.Config) *rig {
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	worker.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	a := newApp(t, Config{Dial: func(context.Context) (Connection, error) {
		client, far := sockets(t)
		wg.Go(func() {
			if err := render.Serve(context.Background(), wire.NewConn(far, wire.Config{}), worker); err != nil {
				t.Errorf("worker: %v", err)
			}
		})
		return Connection{Wire: wire.NewConn(client, wire.Config{}), Files: files}, nil
	}})
	r := &rig{app: a, instance: a.instance()}
	physical := a.physical(r.instance)
	r.device = a.device(physical)
	r.queue = a.queue(r.device)
	r.pool, r.cb = a.commandBuffer(r.device)
	r.done = a.fence(r.device)
	types := a.room(520)
	a.call(registry.VkGetPhysicalDeviceMemoryProperties, physical, types)
	r.flags = load32(types + 4)
	if r.flags&hostVisible == 0 {
		t.Skip("memory type 0 is not host-visible")
	}
	t.Cleanup(func() {
		a.call(registry.VkDestroyDevice, r.device, 0)
		a.call(registry.VkDestroyInstance, r.instance, 0)
		if n := a.d.objects.count(); n != 0 {
			t.Errorf("%d objects are left", n)
		}
		if log := a.logged(); log != "" {
			t.Errorf("log:\n%s", log)
		}
	})
	return r
}

// The usages of buffers in these tests.
const (
	transferSource = 1
	transferTarget = 2
)

// buffer makes a buffer of n bytes with memory of its own.
func (r *rig) buffer(n int) (buffer, memory uint64) {
	r.t.Helper()
	buffer = r.make(registry.VkCreateBuffer, r.device, r.words(sBuffer, 0, 0, uint64(n), two(transferSource|transferTarget, 0), 0, 0), 0)
	need := r.room(24)
	r.call(registry.VkGetBufferMemoryRequirements, r.device, buffer, need)
	if load32(need+16)&1 == 0 {
		r.t.Fatal("the buffer cannot lie in memory type 0")
	}
	memory = r.make(registry.VkAllocateMemory, r.device, r.words(sAllocate, 0, load64(need), 0), 0)
	r.must(registry.VkBindBufferMemory, r.device, buffer, memory, 0)
	return buffer, memory
}

func (r *rig) mapped(memory uint64, n int) []byte {
	r.t.Helper()
	return bytesAt(r.make(registry.VkMapMemory, r.device, memory, 0, forEver, 0), n)
}

// ranges returns the address of a VkMappedMemoryRange.
func (r *rig) ranges(memory, offset, size uint64) uint64 {
	const sMappedRange = 6
	return r.words(sMappedRange, 0, memory, offset, size)
}

// flush makes writes visible where memory is not coherent.
func (r *rig) flush(memory uint64) {
	r.t.Helper()
	if r.flags&hostCoherent == 0 {
		r.must(registry.VkFlushMappedMemoryRanges, r.device, 1, r.ranges(memory, 0, forEver))
	}
}

func (r *rig) invalidate(memory uint64) {
	r.t.Helper()
	if r.flags&hostCoherent == 0 {
		r.must(registry.VkInvalidateMappedMemoryRanges, r.device, 1, r.ranges(memory, 0, forEver))
	}
}

// run records commands, submits them and waits until they are done.
func (r *rig) run(record func(cb uint64)) {
	r.t.Helper()
	r.submit(record)
	r.wait()
}

func (r *rig) submit(record func(cb uint64)) {
	r.t.Helper()
	r.begin(r.cb)
	record(r.cb)
	r.must(registry.VkEndCommandBuffer, r.cb)
	r.must(registry.VkQueueSubmit, r.queue, 1, r.submission(r.cb), r.done)
}

func (r *rig) wait() {
	r.t.Helper()
	r.waitFor(r.device, r.done)
	r.must(registry.VkResetFences, r.device, 1, r.words(r.done))
}

func (r *rig) copy(from, to uint64, offset, n int) func(uint64) {
	region := r.words(uint64(offset), uint64(offset), uint64(n))
	return func(cb uint64) { r.call(registry.VkCmdCopyBuffer, cb, from, to, 1, region) }
}

// pattern fills b so that a byte in another place is another byte, mostly.
func pattern(b []byte, seed uint64) {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	src.Read(b)
}

func (r *rig) same(what string, got, want []byte) {
	r.t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	wrong, first := 0, -1
	for i := range got {
		if got[i] != want[i] {
			wrong++
			if first < 0 {
				first = i
			}
		}
	}
	r.t.Fatalf("%s: %d of %d bytes are wrong, from %d on: %#x, want %#x", what, wrong, len(got), first, got[first], want[first])
}

// What is written to a mapping reaches the device, and comes back by another.
func TestMemory(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		const n = 1<<20 + 4096 + 12
		up, upMemory := r.buffer(n)
		device, _ := r.buffer(n)
		down, downMemory := r.buffer(n)
		in, out := r.mapped(upMemory, n), r.mapped(downMemory, n)
		want := make([]byte, n)
		for i := range 4 {
			switch i {
			case 3: // a few bytes only
				for k := range 50 {
					want[k*20011%n] ^= 0x55
				}
			default:
				pattern(want, uint64(i))
			}
			copy(in, want)
			if i == 1 { // by unmapping and mapping again
				r.call(registry.VkUnmapMemory, r.device, upMemory)
				if again := r.mapped(upMemory, n); &again[0] != &in[0] {
					t.Log("mapped elsewhere")
					in = again
				}
			}
			r.flush(upMemory)
			r.run(func(cb uint64) {
				r.copy(up, device, 0, n)(cb)
				r.barrier(cb)
				r.copy(device, down, 0, n)(cb)
			})
			r.invalidate(downMemory)
			r.same(fmt.Sprint("round ", i), out, want)
			r.same("what was written", in, want)
		}
	})
}

// barrier orders transfers after transfers, and what the host reads.
func (r *rig) barrier(cb uint64) {
	const sMemoryBarrier = 46
	const transfer, host = 0x1000, 0x4000
	const transferRead, transferWrite, hostRead = 0x800, 0x1000, 0x2000
	info := r.words(sMemoryBarrier, 0, two(transferWrite, transferRead|transferWrite|hostRead))
	r.call(registry.VkCmdPipelineBarrier, cb, transfer, transfer|host, 0, 1, info, 0, 0, 0, 0)
}

// Memory that is mapped for the first time after the device wrote it holds what
// the device wrote.
func TestMapAfterTheDeviceWrote(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		const n = 300 << 10
		b, m := r.buffer(n)
		r.run(func(cb uint64) { r.call(registry.VkCmdFillBuffer, cb, b, 0, forEver, 0x01020304) })
		r.invalidate(m)
		r.same("filled", r.mapped(m, n), bytes.Repeat([]byte{4, 3, 2, 1}, n/4))
	})
}

// The device and the host write bytes of the same pages, at the same time:
// none is lost, and none of the host's is sent twice as the device's.
func TestBothSidesOfAPage(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		const n = 64 << 10
		b, m := r.buffer(n)
		mem := r.mapped(m, n)
		want := make([]byte, n)
		copy(mem, want)
		r.flush(m)
		for i := range 50 {
			// The device writes every other 64 bytes.
			value := byte(i + 1)
			r.submit(func(cb uint64) {
				for off := 0; off < n; off += 8192 {
					r.call(registry.VkCmdFillBuffer, cb, b, uint64(off), 64, uint64(value)*0x01010101)
				}
			})
			for off := 64; off < n; off += 8192 {
				for k := range 100 {
					mem[off+k] = value ^ 0x80
				}
			}
			r.wait()
			r.flush(m)
			r.invalidate(m)
			for off := 0; off < n; off += 8192 {
				for k := range 64 {
					want[off+k] = value
				}
				for k := range 100 {
					want[off+64+k] = value ^ 0x80
				}
			}
			r.same(fmt.Sprint("round ", i), mem, want)
		}
		// The device sees the host's bytes and its own.
		down, downMemory := r.buffer(n)
		out := r.mapped(downMemory, n)
		r.run(r.copy(b, down, 0, n))
		r.invalidate(downMemory)
		r.same("the device's view", out, want)
	})
}

// A large mapping with single bytes written here and there.
func TestSparseWrites(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		n := 64 << 20
		if testing.Short() {
			n = 8 << 20
		}
		up, upMemory := r.buffer(n)
		down, downMemory := r.buffer(n)
		in, out := r.mapped(upMemory, n), r.mapped(downMemory, n)
		want := make([]byte, n)
		clear(in)
		r.flush(upMemory)
		r.run(r.copy(up, down, 0, n))
		r.invalidate(downMemory)
		r.same("cleared", out, want)
		for i := range 3 {
			for off := i; off < n; off += 3 * 4096 {
				in[off], want[off] = byte(off>>12+i+1), byte(off>>12+i+1)
			}
			r.flush(upMemory)
			r.run(r.copy(up, down, 0, n))
			r.invalidate(downMemory)
			r.same(fmt.Sprint("round ", i), out, want)
		}
	})
}

// Ranges are flushed by name, VK_WHOLE_SIZE too.
func TestFlushRanges(t *testing.T) {
	r := newRig(t, false, render.Config{HideHostCoherent: true})
	const n = 256 << 10
	up, upMemory := r.buffer(n)
	down, downMemory := r.buffer(n)
	in, out := r.mapped(upMemory, n), r.mapped(downMemory, n)
	clear(in)
	r.flush(upMemory)
	pattern(in, 1)
	want := make([]byte, n)
	copy(want[4096:8192], in[4096:8192])
	copy(want[128<<10:], in[128<<10:])
	r.must(registry.VkFlushMappedMemoryRanges, r.device, 2, r.twoRanges(
		r.ranges(upMemory, 4096, 4096), r.ranges(upMemory, 128<<10, forEver)))
	r.run(r.copy(up, down, 0, n))
	r.invalidate(downMemory)
	r.same("flushed", out, want)
}

func (r *rig) twoRanges(a, b uint64) uint64 {
	var words []uint64
	for _, p := range []uint64{a, b} {
		for i := range uint64(5) {
			words = append(words, load64(p+8*i))
		}
	}
	return r.words(words...)
}

// The kernel writes to a mapping, and sends from it.
func TestSystemCallsOnAMapping(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		const n = 128 << 10
		up, upMemory := r.buffer(n)
		down, downMemory := r.buffer(n)
		in, out := r.mapped(upMemory, n), r.mapped(downMemory, n)
		want := make([]byte, n)
		pattern(want, 7)
		name := t.TempDir() + "/f"
		if err := os.WriteFile(name, want, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if k, err := f.Read(in); k != n || err != nil {
			t.Fatalf("read(2) into the mapping: %d, %v", k, err)
		}
		r.flush(upMemory)
		r.run(r.copy(up, down, 0, n))
		r.invalidate(downMemory)
		if err := os.WriteFile(name, out, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		r.same("through the kernel", got, want)
	})
}

// Freed memory may be mapped by the next that is allocated.
func TestFreeAndAllocate(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		const n = 200 << 10
		for i := range 20 {
			b, m := r.buffer(n)
			mem := r.mapped(m, n)
			pattern(mem, uint64(i))
			want := bytes.Clone(mem)
			down, downMemory := r.buffer(n)
			r.flush(m)
			r.run(r.copy(b, down, 0, n))
			out := r.mapped(downMemory, n)
			r.invalidate(downMemory)
			r.same(fmt.Sprint("round ", i), out, want)
			for _, x := range []uint64{b, down} {
				r.call(registry.VkDestroyBuffer, r.device, x, 0)
			}
			for _, x := range []uint64{m, downMemory} {
				r.call(registry.VkFreeMemory, r.device, x, 0)
			}
		}
	})
}

// However many memories are mapped, neither side keeps descriptors for them: an
// application may have 1024 in all.
func TestMappedMemoryTakesNoDescriptors(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		const n, pairs = 4096, 300
		type one struct {
			buffer, memory uint64
			bytes          []byte
		}
		var all []one
		pair := func() {
			for range 2 {
				b, m := r.buffer(n)
				all = append(all, one{b, m, r.mapped(m, n)})
			}
		}
		copies := func() {
			for i := 0; i < len(all); i += 2 {
				pattern(all[i].bytes, uint64(i))
				r.flush(all[i].memory)
			}
			r.run(func(cb uint64) {
				for i := 0; i < len(all); i += 2 {
					r.copy(all[i].buffer, all[i+1].buffer, 0, n)(cb)
				}
			})
			for i := 0; i < len(all); i += 2 {
				r.invalidate(all[i+1].memory)
				r.same(fmt.Sprint("copy ", i), all[i+1].bytes, all[i].bytes)
			}
		}
		pair()
		copies()
		before := openFiles(t)
		for range pairs {
			pair()
		}
		copies()
		if n := openFiles(t); n > before+3 {
			t.Errorf("%d memories are mapped; %d descriptors, %d with two memories", len(all), n, before)
		}
		for _, x := range all[2:] {
			r.call(registry.VkDestroyBuffer, r.device, x.buffer, 0)
			r.call(registry.VkFreeMemory, r.device, x.memory, 0)
		}
		all = all[:2]
		copies()
		if n := openFiles(t); n > before {
			t.Errorf("%d descriptors with two memories, %d before there were more", n, before)
		}
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// A staging iteration, with commands recorded before, asks the worker nothing:
// what it takes of round trips is its two waits.
func TestStagingRoundTrips(t *testing.T) {
	rigs(t, func(t *testing.T, r *rig) {
		const n = 1 << 20
		up, upMemory := r.buffer(n)
		device, _ := r.buffer(n)
		down, downMemory := r.buffer(n)
		toDevice, fromDevice := r.copy(up, device, 0, n), r.copy(device, down, 0, n)
		want := make([]byte, n)
		trips := r.counting()
		for i := range 4 {
			before := trips()
			pattern(want, uint64(i))
			copy(r.mapped(upMemory, n), want)
			r.flush(upMemory)
			r.call(registry.VkUnmapMemory, r.device, upMemory)
			r.run(toDevice)
			r.run(fromDevice)
			out := r.mapped(downMemory, n)
			r.invalidate(downMemory)
			r.same(fmt.Sprint("iteration ", i), out, want)
			r.call(registry.VkUnmapMemory, r.device, downMemory)
			// Mapping what the device has written is a question, the first time.
			if asked := trips() - before; asked > 0 && i > 0 || asked > 2 {
				t.Errorf("iteration %d: %d questions", i, asked)
			}
		}
	})
}
