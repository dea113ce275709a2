// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"runtime"
	"structs"
	"time"

	"github.com/memspan/memspan/internal/vk"
)

// A caller calls the functions that concern waiting, with its own memory for
// arguments, so that a call allocates nothing. One goroutine at a time uses it.
type caller struct {
	raw       vk.RawCall
	handle    uint64 // *pFences, *pSemaphores
	value     uint64
	fenceInfo fenceCreateInfo
	waitInfo  semaphoreWaitInfo
}

type fenceCreateInfo struct {
	_     structs.HostLayout
	sType uint32
	next  uint64
	flags uint32
}

type semaphoreWaitInfo struct {
	_          structs.HostLayout
	sType      uint32
	next       uint64
	flags      uint32
	count      uint32
	semaphores *uint64
	values     *uint64
}

const (
	typeFenceCreateInfo   = 8
	typeSemaphoreWaitInfo = 1000207004
)

// call calls a function with arguments that are plain numbers: those of memory
// are by address, and the caller keeps that alive.
func (c *caller) call(proc uintptr, args ...uint64) vk.Result {
	c.raw.Proc = proc
	copy(c.raw.Args[:], args)
	vk.Raw(&c.raw)
	runtime.KeepAlive(c)
	return vk.Result(int32(c.raw.Result))
}

// address returns where p points, which is on the heap.
func address[T any](p *T) uint64 { return vk.Address(p) }

func (c *caller) createFence(d *device) (uint64, error) {
	c.fenceInfo = fenceCreateInfo{sType: typeFenceCreateInfo}
	r := c.call(d.sync.createFence, uint64(d.real), address(&c.fenceInfo), 0, address(&c.handle))
	return c.handle, resultError("vkCreateFence", r)
}

func (c *caller) destroyFence(d *device, fence uint64) {
	c.call(d.sync.destroyFence, uint64(d.real), fence, 0)
}

func (c *caller) resetFence(d *device, fence uint64) error {
	c.handle = fence
	return resultError("vkResetFences", c.call(d.sync.resetFences, uint64(d.real), 1, address(&c.handle)))
}

// submitFence has fence signalled when all that was submitted to a queue before
// is done. The queue must not be in use by another call.
func (c *caller) submitFence(d *device, queue uintptr, fence uint64) error {
	return resultError("vkQueueSubmit", c.call(d.sync.queueSubmit, uint64(queue), 0, 0, fence))
}

// fenceStatus returns vk.Success, notReady or an error.
func (c *caller) fenceStatus(d *device, fence uint64) vk.Result {
	return c.call(d.sync.getFenceStatus, uint64(d.real), fence)
}

// waitFence returns vk.Success, vk.Timeout or an error.
func (c *caller) waitFence(d *device, fence uint64, timeout time.Duration) vk.Result {
	c.handle = fence
	return c.call(d.sync.waitForFences, uint64(d.real), 1, address(&c.handle), 1, uint64(timeout))
}

// semaphoreValue returns the value of a timeline semaphore.
func (c *caller) semaphoreValue(d *device, semaphore uint64) (uint64, vk.Result) {
	r := c.call(d.sync.getSemaphoreCounterValue, uint64(d.real), semaphore, address(&c.value))
	return c.value, r
}

// waitSemaphore waits until a timeline semaphore has a value. It returns
// vk.Success, vk.Timeout or an error.
func (c *caller) waitSemaphore(d *device, semaphore, value uint64, timeout time.Duration) vk.Result {
	c.handle, c.value = semaphore, value
	c.waitInfo = semaphoreWaitInfo{sType: typeSemaphoreWaitInfo, count: 1, semaphores: &c.handle, values: &c.value}
	return c.call(d.sync.waitSemaphores, uint64(d.real), address(&c.waitInfo), uint64(timeout))
}
