// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"errors"
	"runtime"
	"time"
	"unsafe"
)

// Commands are a list of commands for the queue, with the fence that tells
// when they are done. They are recorded, submitted and waited for over and
// over. The pool that all of a device's Commands share may be used by one
// goroutine at a time; Wait may run beside it.
type Commands struct {
	d      *Device
	buffer *uintptr
	fence  Fence

	// What every submission needs is made once: nothing is allocated later.
	beginInfo *commandBufferBeginInfo
	submit    *submitInfo
	before    *memoryBarrier
	after     *memoryBarrier
	pinner    runtime.Pinner
}

// The stages and accesses of Vulkan 1.0 in use.
const (
	stageCompute        = 0x0800
	stageTransfer       = 0x1000
	stageHost           = 0x4000
	accessShaderRead    = 0x0020
	accessShaderWrite   = 0x0040
	accessTransferRead  = 0x0800
	accessTransferWrite = 0x1000
	accessHostRead      = 0x2000
	accessHostWrite     = 0x4000
)

// NewCommands makes an empty list.
func (d *Device) NewCommands() (*Commands, error) {
	c := &Commands{d: d, buffer: new(uintptr)}
	info := &commandBufferAllocateInfo{sType: typeCommandBufferAllocateInfo, pool: d.pool, count: 1}
	if err := check("vkAllocateCommandBuffers", call(d.procs.allocateCommands, d.handle, uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(c.buffer)))); err != nil {
		return nil, err
	}
	fenceInfo := &fenceCreateInfo{sType: typeFenceCreateInfo}
	fence := new(Fence)
	if err := check("vkCreateFence", call(d.procs.createFence, d.handle, uintptr(unsafe.Pointer(fenceInfo)), 0, uintptr(unsafe.Pointer(fence)))); err != nil {
		return nil, err
	}
	c.fence = *fence
	const oneTimeSubmit = 1
	c.beginInfo = &commandBufferBeginInfo{sType: typeCommandBufferBeginInfo, flags: oneTimeSubmit}
	c.submit = &submitInfo{sType: typeSubmitInfo, commandCount: 1, commands: c.buffer}
	c.before = &memoryBarrier{
		sType: typeMemoryBarrier,
		src:   accessTransferWrite | accessHostWrite, dst: accessTransferRead | accessTransferWrite,
	}
	c.after = &memoryBarrier{sType: typeMemoryBarrier, src: accessTransferWrite, dst: accessHostRead}
	if d.stages&stageCompute != 0 {
		c.before.src |= accessShaderWrite
		c.before.dst |= accessShaderRead | accessShaderWrite
		c.after.src |= accessShaderWrite
	}
	c.pinner.Pin(c.buffer) // the driver follows submit.commands
	return c, nil
}

// Close destroys the list's fence; its commands go with the device. They must
// not be pending.
func (c *Commands) Close() {
	call(c.d.procs.destroyFence, c.d.handle, uintptr(c.fence), 0)
	c.pinner.Unpin()
}

// Begin empties the list and starts it with a barrier: what earlier submissions
// and the CPU wrote is seen by the commands that follow.
func (c *Commands) Begin() error {
	p := &c.d.procs
	if err := check("vkBeginCommandBuffer", call(p.begin, *c.buffer, uintptr(unsafe.Pointer(c.beginInfo)))); err != nil {
		return err
	}
	call(p.barrier, *c.buffer, c.d.stages|stageHost, c.d.stages, 0, 1, uintptr(unsafe.Pointer(c.before)), 0, 0, 0, 0)
	return nil
}

// Copy records copies from src to dst. Ranges must not overlap.
func (c *Commands) Copy(dst, src Buffer, ranges ...BufferCopy) {
	call(c.d.procs.copyBuffer, *c.buffer, uintptr(src), uintptr(dst), uintptr(len(ranges)), uintptr(unsafe.Pointer(unsafe.SliceData(ranges))))
}

// Fill records stores of a word, repeated, to bytes [off, off+n) of dst. Both
// are multiples of 4.
func (c *Commands) Fill(dst Buffer, off, n int64, word uint32) {
	call(c.d.procs.fillBuffer, *c.buffer, uintptr(dst), uintptr(off), uintptr(n), uintptr(word))
}

// Submit ends the list, with a barrier that lets the CPU see what the commands
// wrote, and gives it to the queue.
func (c *Commands) Submit() error {
	p := &c.d.procs
	call(p.barrier, *c.buffer, c.d.stages, stageHost, 0, 1, uintptr(unsafe.Pointer(c.after)), 0, 0, 0, 0)
	if err := check("vkEndCommandBuffer", call(p.end, *c.buffer)); err != nil {
		return err
	}
	fence := new(Fence)
	*fence = c.fence
	if err := check("vkResetFences", call(p.resetFences, c.d.handle, 1, uintptr(unsafe.Pointer(fence)))); err != nil {
		return err
	}
	return check("vkQueueSubmit", call(p.submit, c.d.queue, 1, uintptr(unsafe.Pointer(c.submit)), uintptr(c.fence)))
}

// Done reports, without waiting, whether the submitted commands are done.
func (c *Commands) Done() (bool, error) {
	const notReady = 1
	r := call(c.d.procs.fenceStatus, c.d.handle, uintptr(c.fence))
	if int32(r) == notReady {
		return false, nil
	}
	return true, check("vkGetFenceStatus", r)
}

// ErrTimeout says that commands were not done in time.
var ErrTimeout = errors.New("vk: the device did not finish in time")

// Wait waits until the submitted commands are done, for at most timeout.
func (c *Commands) Wait(timeout time.Duration) error {
	fence := new(Fence)
	*fence = c.fence
	r := call(c.d.procs.waitForFences, c.d.handle, 1, uintptr(unsafe.Pointer(fence)), 1, uintptr(timeout.Nanoseconds()))
	if Result(int32(r)) == Timeout {
		return ErrTimeout
	}
	return check("vkWaitForFences", r)
}
