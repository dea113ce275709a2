// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/render"
)

// Beyond a budget an application is told so, can act on it, and goes on.
func TestBudgets(t *testing.T) {
	const outOfDeviceMemory = -2
	for _, files := range []bool{true, false} {
		t.Run(fmt.Sprintf("memory/files=%v", files), func(t *testing.T) {
			a := newApp(t, budgeted(t, files, render.Config{Memory: 1 << 20}))
			instance := a.instance()
			device := a.device(a.physical(instance))
			out := a.words(0)
			for _, size := range []uint64{2 << 20, 1 << 62, forEver} {
				if r := a.call(registry.VkAllocateMemory, device, a.words(sAllocate, 0, size, 0), 0, out); r != outOfDeviceMemory || load64(out) != 0 {
					t.Errorf("%#x bytes: %d, memory %#x", size, r, load64(out))
				}
			}
			for range 3 { // what is freed can be had again
				memory := a.make(registry.VkAllocateMemory, device, a.words(sAllocate, 0, 1<<20, 0), 0)
				if r := a.call(registry.VkAllocateMemory, device, a.words(sAllocate, 0, 1, 0), 0, out); r != outOfDeviceMemory {
					t.Errorf("one more byte: %d", r)
				}
				a.call(registry.VkFreeMemory, device, memory, 0)
			}
			a.must(registry.VkDeviceWaitIdle, device)
			if log := a.logged(); strings.Contains(log, "lost") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
	t.Run("objects", func(t *testing.T) {
		a := newApp(t, budgeted(t, true, render.Config{Objects: 32}))
		instance := a.instance()
		device := a.device(a.physical(instance))
		var fences []uint64
		for out := a.words(0); ; {
			r := a.call(registry.VkCreateFence, device, a.words(sFence, 0, 0), 0, out)
			if r == outOfHostMemory && len(fences) > 20 {
				break
			}
			if fences = append(fences, load64(out)); r != success || len(fences) > 32 {
				t.Fatalf("fence %d: %d", len(fences), r)
			}
		}
		a.call(registry.VkDestroyFence, device, fences[7], 0)
		a.fence(device)
		a.must(registry.VkDeviceWaitIdle, device)
	})
	t.Run("depth", func(t *testing.T) {
		const depth = 8
		a := newApp(t, budgeted(t, true, render.Config{QueueDepth: depth}))
		instance := a.instance()
		device := a.device(a.physical(instance))
		queue := a.queue(device)
		_, cb := a.commandBuffer(device)
		event := a.make(registry.VkCreateEvent, device, a.words(sEvent, 0, 0), 0)
		a.begin(cb)
		const host, all = 0x4000, 0x10000
		a.call(registry.VkCmdWaitEvents, cb, 1, a.words(event), host, all, 0, 0, 0, 0, 0, 0)
		a.must(registry.VkEndCommandBuffer, cb)
		var fences []uint64
		for range depth {
			fences = append(fences, a.fence(device))
		}
		for range 3 {
			for i, fence := range fences {
				batches := uint64(0)
				if i == 0 {
					batches = 1 // all others wait for it
				}
				a.must(registry.VkQueueSubmit, queue, batches, a.submission(cb), fence)
			}
			for range 2 {
				if r := a.call(registry.VkQueueSubmit, queue, 0, 0, a.fence(device)); r != outOfHostMemory {
					t.Errorf("submission %d: %d", depth+1, r)
				}
			}
			a.must(registry.VkSetEvent, device, event)
			a.must(registry.VkDeviceWaitIdle, device)
			a.must(registry.VkWaitForFences, device, depth, a.words(fences...), 1, forEver)
			a.must(registry.VkResetFences, device, depth, a.words(fences...))
			a.must(registry.VkResetEvent, device, event)
		}
		for range 5 * depth { // it never comes to that
			a.must(registry.VkQueueSubmit, queue, 0, 0, fences[0])
			a.waitFor(device, fences[0])
			a.must(registry.VkResetFences, device, 1, a.words(fences[0]))
		}
		if log := a.logged(); strings.Contains(log, "lost") {
			t.Errorf("log:\n%s", log)
		}
	})
}

// budgeted returns a configuration whose workers have budgets.
func budgeted(t *testing.T, files bool, worker render.Config) Config {
	worker.Log = slog.New(slog.DiscardHandler)
	cfg := withWorkerOf(t, worker)
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context) (Connection, error) {
		c, err := dial(ctx)
		c.Files = files
		return c, err
	}
	return cfg
}
