// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/render"
	"github.com/memspan/memspan/wire"
)

// withWorker returns a configuration whose workers run in this process, on
// Mesa's software driver or whatever there is.
func withWorker(t testing.TB) Config { return withWorkerOf(t, render.Config{}) }

// withWorkerOf is withWorker with workers that are configured so.
func withWorkerOf(t testing.TB, worker render.Config) Config {
	if worker.Log == nil {
		worker.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return Config{Dial: func(context.Context) (Connection, error) {
		client, far := sockets(t)
		wg.Go(func() {
			err := render.Serve(context.Background(), wire.NewConn(far, wire.Config{}), worker)
			if err != nil {
				t.Errorf("worker: %v", err)
			}
		})
		return Connection{Wire: wire.NewConn(client, wire.Config{}), Files: true}, nil
	}}
}

// From nothing to a buffer that the device has filled.
func TestFillBuffer(t *testing.T) {
	var trace bytes.Buffer
	cfg := withWorker(t)
	cfg.Trace = &trace
	a := newApp(t, cfg)
	instance := a.instance()
	physical := a.physical(instance)
	device := a.device(physical)
	queue := a.queue(device)
	if again := a.queue(device); again != queue {
		t.Errorf("the queue is %#x, and %#x", queue, again)
	}
	buffer := a.make(registry.VkCreateBuffer, device, a.words(sBuffer, 0, 0, 65536, two(3, 0), 0, 0), 0)
	need := a.room(24)
	a.call(registry.VkGetBufferMemoryRequirements, device, buffer, need)
	if load64(need) < 65536 || load32(need+16) == 0 {
		t.Fatalf("memory requirements: size %d, types %#x", load64(need), load32(need+16))
	}
	memory := a.make(registry.VkAllocateMemory, device, a.words(sAllocate, 0, load64(need), 0), 0)
	a.must(registry.VkBindBufferMemory, device, buffer, memory, 0)
	pool, cb := a.commandBuffer(device)
	a.begin(cb)
	a.call(registry.VkCmdFillBuffer, cb, buffer, 0, forEver, 0x12345678)
	a.must(registry.VkEndCommandBuffer, cb)
	fence := a.fence(device)
	if r := a.call(registry.VkGetFenceStatus, device, fence); r != notReady {
		t.Errorf("the fence is %d before anything was submitted", r)
	}
	for range 3 {
		a.must(registry.VkQueueSubmit, queue, 1, a.submission(cb), fence)
		a.waitFor(device, fence)
		a.must(registry.VkGetFenceStatus, device, fence)
		a.must(registry.VkResetFences, device, 1, a.words(fence))
		if r := a.call(registry.VkGetFenceStatus, device, fence); r != notReady {
			t.Errorf("the fence is %d after its reset", r)
		}
	}
	a.must(registry.VkQueueSubmit, queue, 1, a.submission(cb), fence)
	for a.call(registry.VkGetFenceStatus, device, fence) == notReady { // a poll is enough
	}
	a.must(registry.VkDeviceWaitIdle, device)
	a.call(registry.VkDestroyFence, device, fence, 0)
	a.call(registry.VkDestroyCommandPool, device, pool, 0)
	a.call(registry.VkDestroyBuffer, device, buffer, 0)
	a.call(registry.VkFreeMemory, device, memory, 0)
	a.call(registry.VkDestroyDevice, device, 0)
	a.call(registry.VkDestroyInstance, instance, 0)
	if n, m := a.d.objects.count(), a.c.count(); n != 0 || m != 0 {
		t.Errorf("%d objects and %d handles are left", n, m)
	}
	if log := a.logged(); log != "" {
		t.Errorf("log:\n%s", log)
	}
	t.Log("\n" + trace.String())
	for _, name := range []string{"vkCreateBuffer", "vkQueueSubmit", "vkWaitForFences"} {
		if !strings.Contains(trace.String(), name+"\n") {
			t.Errorf("%s is missing in the trace", name)
		}
	}
}

func (c *cMemory) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.live)
}

func (a *app) physical(instance uint64) uint64 {
	a.t.Helper()
	n := a.words(1)
	out := a.words(0)
	if r := a.call(registry.VkEnumeratePhysicalDevices, instance, n, out); r != success && r != incomplete {
		a.t.Fatalf("physical devices: VkResult %d; log:\n%s", r, a.logged())
	}
	return load64(out)
}
