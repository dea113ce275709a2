// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"fmt"
	"sync"

	"github.com/memspan/memspan/internal/vk"
)

// A device is a VkDevice with the functions that the renderer itself calls.
type device struct {
	real    uintptr
	proc    func(name string) uintptr // the address of a function, 0 if it has none
	sync    syncProcs
	host    hostProcs
	types   []memoryType   // by index
	atom    uint64         // nonCoherentAtomSize, in bytes
	imports *imports       // of memory; nil: not possible
	aside   sync.WaitGroup // calls

	// The stream's goroutine's:
	procs   []uintptr // by command, as instance.procs
	queues  []*queue
	visible []*deviceMemory // that can be mapped, and are not imported

	mu    sync.Mutex
	spare []uint64 // unsignalled fences of the renderer's own, protected by mu
	// open are the submissions under way that write memory which can be mapped,
	// in order, protected by mu.
	open []*submission
}

// A memoryType is what matters of a VkMemoryType.
type memoryType struct {
	visible, coherent bool
	heap              uint64 // how large its VkMemoryHeap is, bytes
}

// hostProcs are the addresses of functions for the host's use of memory.
type hostProcs struct{ mapMemory, unmapMemory, flush, invalidate, imageRequirements, eventStatus uintptr }

// syncProcs are the addresses of functions that concern waiting.
type syncProcs struct {
	createFence, destroyFence, resetFences, getFenceStatus, waitForFences uintptr
	getSemaphoreCounterValue, waitSemaphores                              uintptr // 0 without timeline semaphores
	queueSubmit                                                           uintptr
}

// newDevice finds the functions of a VkDevice by proc.
func newDevice(real uintptr, proc func(name string) uintptr) (*device, error) {
	d := &device{real: real, proc: proc}
	for name, p := range map[string]*uintptr{
		"vkCreateFence": &d.sync.createFence, "vkDestroyFence": &d.sync.destroyFence, "vkResetFences": &d.sync.resetFences,
		"vkGetFenceStatus": &d.sync.getFenceStatus, "vkWaitForFences": &d.sync.waitForFences, "vkQueueSubmit": &d.sync.queueSubmit,
		"vkMapMemory": &d.host.mapMemory, "vkUnmapMemory": &d.host.unmapMemory, "vkFlushMappedMemoryRanges": &d.host.flush,
		"vkInvalidateMappedMemoryRanges": &d.host.invalidate, "vkGetImageMemoryRequirements": &d.host.imageRequirements,
		"vkGetEventStatus": &d.host.eventStatus,
	} {
		if *p = proc(name); *p == 0 {
			return nil, fmt.Errorf("render: the driver has no %s", name)
		}
	}
	for name, p := range map[string]*uintptr{
		"vkGetSemaphoreCounterValue": &d.sync.getSemaphoreCounterValue, "vkWaitSemaphores": &d.sync.waitSemaphores,
	} {
		if *p = proc(name); *p == 0 {
			*p = proc(name + "KHR")
		}
	}
	return d, nil
}

// takeFence returns an unsignalled fence of the renderer's own.
func (d *device) takeFence(c *caller) (uint64, error) {
	d.mu.Lock()
	if n := len(d.spare); n > 0 {
		f := d.spare[n-1]
		d.spare = d.spare[:n-1]
		d.mu.Unlock()
		return f, nil
	}
	d.mu.Unlock()
	return c.createFence(d)
}

// giveFence takes back a fence, which has been signalled.
func (d *device) giveFence(c *caller, fence uint64) error {
	if err := c.resetFence(d, fence); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spare = append(d.spare, fence)
	return nil
}

// close destroys the renderer's own fences. Nothing waits for them any more.
func (d *device) close(c *caller) {
	for _, f := range d.spare {
		c.destroyFence(d, f)
	}
	d.spare = nil
}

// resultError turns what a function returned into an error, which wraps its
// vk.Result if that is negative.
func resultError(call string, r vk.Result) error {
	if r < 0 {
		return &vk.Error{Call: call, Result: r}
	}
	return nil
}
