// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/render"
	"github.com/memspan/memspan/wire"
)

// A sharedDevice is a device that threads share; Vulkan wants them to take turns
// at its queue.
type sharedDevice struct {
	device uint64
	mu     sync.Mutex
	queue  uint64
}

// A thread calls the driver on its own, with memory for arguments of its own.
type thread struct {
	*app
	words []uint64 // of the round
	used  int
	err   bool
}

func (h *thread) mem(w ...uint64) uint64 {
	at := h.words[h.used : h.used+len(w)]
	h.used += len(w)
	copy(at, w)
	return addressOf(at)
}

// do is must for goroutines other than the test's.
func (h *thread) do(cmd registry.Index, args ...uint64) {
	if h.err {
		return
	}
	if r := h.call(cmd, args...); r != success {
		h.t.Errorf("%s: VkResult %d; log:\n%s", registry.Commands[cmd].Name, r, h.logged())
		h.err = true
	}
}

func (h *thread) made(cmd registry.Index, args ...uint64) uint64 {
	out := h.mem(0)
	h.do(cmd, append(args, out)...)
	return load64(out)
}

// round makes everything that a copy needs, copies, looks at the result, and
// destroys it.
func (h *thread) round(s *sharedDevice, seed byte, poll bool) {
	const size = 3 << 12
	h.used = 0
	pool := h.made(registry.VkCreateCommandPool, s.device, h.mem(sCommandPool, 0, two(2, 0)), 0)
	cb := h.made(registry.VkAllocateCommandBuffers, s.device, h.mem(sCommandBuffer, 0, pool, two(0, 1)))
	fence := h.made(registry.VkCreateFence, s.device, h.mem(sFence, 0, 0), 0)
	event := h.made(registry.VkCreateEvent, s.device, h.mem(sEvent, 0, 0), 0)
	var buffers, memories, places [2]uint64
	for i := range buffers {
		buffers[i] = h.made(registry.VkCreateBuffer, s.device, h.mem(sBuffer, 0, 0, size, two(3, 0), 0, 0), 0)
		if h.err {
			return
		}
		need := h.mem(0, 0, 0)
		h.call(registry.VkGetBufferMemoryRequirements, s.device, buffers[i], need)
		memories[i] = h.made(registry.VkAllocateMemory, s.device, h.mem(sAllocate, 0, load64(need), 0), 0)
		h.do(registry.VkBindBufferMemory, s.device, buffers[i], memories[i], 0)
		place := h.mem(0)
		h.do(registry.VkMapMemory, s.device, memories[i], 0, forEver, 0, place)
		places[i] = load64(place)
	}
	if h.err {
		return
	}
	want := bytes.Repeat([]byte{seed}, size)
	copy(bytesAt(places[0], size), want)
	h.do(registry.VkBeginCommandBuffer, cb, h.mem(sBegin, 0, 0, 0))
	h.call(registry.VkCmdCopyBuffer, cb, buffers[0], buffers[1], 1, h.mem(0, 0, size))
	h.call(registry.VkCmdSetEvent, cb, event, 0x1000)
	h.do(registry.VkEndCommandBuffer, cb)
	for range 2 {
		batch := h.mem(sSubmit, 0, 0, 0, 0, 1, h.mem(cb), 0, 0)
		s.mu.Lock()
		h.do(registry.VkQueueSubmit, s.queue, 1, batch, fence)
		s.mu.Unlock()
		for poll && !h.err {
			if r := h.call(registry.VkGetFenceStatus, s.device, fence); r == success {
				break
			} else if r != notReady {
				h.do(registry.VkGetFenceStatus, s.device, fence) // which tells
			}
			runtime.Gosched()
		}
		h.do(registry.VkWaitForFences, s.device, 1, h.mem(fence), 1, 60e9)
		h.do(registry.VkResetFences, s.device, 1, h.mem(fence))
		if h.err {
			return
		}
		if !bytes.Equal(bytesAt(places[1], size), want) {
			h.t.Errorf("the copy of %#x holds %x…", seed, bytesAt(places[1], 16))
			h.err = true
		}
		if r := h.call(registry.VkGetEventStatus, s.device, event); r != eventSet {
			h.t.Errorf("the event is %d", r)
			h.err = true
		}
		h.do(registry.VkResetEvent, s.device, event)
		seed++
		want = bytes.Repeat([]byte{seed}, size)
		copy(bytesAt(places[0], size), want)
	}
	for i := range buffers {
		h.call(registry.VkUnmapMemory, s.device, memories[i])
		h.call(registry.VkDestroyBuffer, s.device, buffers[i], 0)
		h.call(registry.VkFreeMemory, s.device, memories[i], 0)
	}
	h.call(registry.VkDestroyEvent, s.device, event, 0)
	h.call(registry.VkDestroyFence, s.device, fence, 0)
	h.call(registry.VkDestroyCommandPool, s.device, pool, 0)
	if poll {
		s.mu.Lock()
		h.do(registry.VkDeviceWaitIdle, s.device)
		s.mu.Unlock()
	}
}

// memfds counts the memfds that are open or mapped in this process, which the
// worker's are too.
func memfds(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	n := bytes.Count(maps, []byte("/memfd:"))
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "/memfd:") {
			n++
		}
	}
	return n
}

// Four threads use three devices of two instances, all at once, while a fifth
// makes and destroys instances and devices.
func TestThreads(t *testing.T) {
	for name, how := range map[string]struct {
		pair  func(testing.TB) (net.Conn, net.Conn)
		files bool
	}{"shared": {sockets, true}, "shadow": {sockets, false}, "tcp": {tcpPair, false}} {
		t.Run(name, func(t *testing.T) {
			before := memfds(t)
			t.Cleanup(func() { // after all that follows has ended
				if left := memfds(t); left > before {
					t.Errorf("%d memfds are open or mapped, %d before", left, before)
				}
			})
			var serving sync.WaitGroup
			t.Cleanup(serving.Wait)
			worker := render.Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
			a := newApp(t, Config{Dial: func(context.Context) (Connection, error) {
				client, far := how.pair(t)
				serving.Go(func() {
					if err := render.Serve(context.Background(), wire.NewConn(far, wire.Config{}), worker); err != nil {
						t.Errorf("worker: %v", err)
					}
				})
				return Connection{Wire: wire.NewConn(client, wire.Config{}), Files: how.files}, nil
			}})
			instances := []uint64{a.instance(), a.instance()}
			var devices []*sharedDevice
			for _, i := range []int{0, 0, 1} {
				device := a.device(a.physical(instances[i]))
				devices = append(devices, &sharedDevice{device: device, queue: a.queue(device)})
			}
			end := time.Now().Add(stressTime())
			var threads sync.WaitGroup
			var rounds atomic.Int64
			for w := range 4 {
				h := &thread{app: a, words: make([]uint64, 4096)}
				threads.Go(func() {
					for i := 0; time.Now().Before(end) && !h.err; i++ {
						h.round(devices[(w+i)%len(devices)], byte(16*w+i), (w+i)%3 == 0)
						rounds.Add(1)
					}
				})
			}
			for time.Now().Before(end) && !t.Failed() {
				instance := a.instance()
				device := a.device(a.physical(instance))
				a.queue(device)
				a.call(registry.VkDestroyDevice, device, 0)
				a.call(registry.VkDestroyInstance, instance, 0)
			}
			threads.Wait()
			for _, s := range devices {
				a.call(registry.VkDestroyDevice, s.device, 0)
			}
			for _, i := range instances {
				a.call(registry.VkDestroyInstance, i, 0)
			}
			if n := a.d.objects.count(); n != 0 {
				t.Errorf("%d objects are left", n)
			}
			if log := a.logged(); log != "" {
				t.Errorf("log:\n%s", log)
			}
			t.Logf("%d rounds", rounds.Load())
		})
	}
}
