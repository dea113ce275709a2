// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"fmt"
	"runtime"
	"unsafe"
)

// Handles of Vulkan's objects; 0 is none.
type (
	Memory uint64
	Buffer uint64
	Fence  uint64
)

// A Device is a logical device with one queue. Its methods may be called
// concurrently where Vulkan allows it: not for one object at a time, and not
// those of the queue and of Commands.
type Device struct {
	handle uintptr
	queue  uintptr
	pool   uint64
	stages uintptr // of its queue, in which memory is used
	procs  deviceProcs
}

type deviceProcs struct {
	destroyDevice, getDeviceQueue, deviceWaitIdle                  uintptr
	allocateMemory, freeMemory, mapMemory                          uintptr
	unmapMemory, flushRanges, invalidateRanges                     uintptr
	createBuffer, destroyBuffer, getRequirements, bindBufferMemory uintptr
	createPool, destroyPool, allocateCommands                      uintptr
	begin, end, copyBuffer, fillBuffer, barrier                    uintptr
	createFence, destroyFence, resetFences, waitForFences, submit  uintptr
	fenceStatus                                                    uintptr

	createModule, destroyModule, createSetLayout, destroySetLayout uintptr
	createPipelineLayout, destroyPipelineLayout                    uintptr
	createComputePipelines, destroyPipeline                        uintptr
	createDescriptorPool, destroyDescriptorPool                    uintptr
	allocateSets, updateSets                                       uintptr
	bindPipeline, bindSets, pushConstants, dispatch                uintptr
}

// OpenDevice makes a logical device of the device with the given index, with
// one queue of the given family. What kernels on it access beyond a buffer's end
// stays within the memory that the buffer is bound to.
func (i *Instance) OpenDevice(index, family int) (*Device, error) {
	var pinner runtime.Pinner // C follows pointers within what it is given
	defer pinner.Unpin()
	priority := new(float32)
	queue := &deviceQueueCreateInfo{sType: typeDeviceQueueCreateInfo, family: uint32(family), count: 1, priorities: priority}
	features := i.features(i.devices[index])
	info := &deviceCreateInfo{sType: typeDeviceCreateInfo, queueCount: 1, queues: queue, features: features}
	pinner.Pin(priority)
	pinner.Pin(queue)
	pinner.Pin(features)

	d, handle := &Device{stages: stageTransfer}, new(uintptr)
	if i.infos[index].Queues[family].Flags&Compute != 0 {
		d.stages |= stageCompute
	}
	err := check("vkCreateDevice", call(i.createDevice, i.devices[index], uintptr(unsafe.Pointer(info)), 0, uintptr(unsafe.Pointer(handle))))
	if err != nil {
		return nil, fmt.Errorf("open device %d (%s): %w", index, i.infos[index].Name, err)
	}
	d.handle = *handle
	if err := d.load(i.getDeviceProcAddr); err != nil {
		return nil, err
	}
	call(d.procs.getDeviceQueue, d.handle, uintptr(family), 0, uintptr(unsafe.Pointer(handle)))
	d.queue = *handle

	const resetCommandBuffer = 2
	poolInfo := &commandPoolCreateInfo{sType: typeCommandPoolCreateInfo, flags: resetCommandBuffer, family: uint32(family)}
	pool := new(uint64)
	err = check("vkCreateCommandPool", call(d.procs.createPool, d.handle, uintptr(unsafe.Pointer(poolInfo)), 0, uintptr(unsafe.Pointer(pool))))
	if err != nil {
		d.Close()
		return nil, err
	}
	d.pool = *pool
	return d, nil
}

func (d *Device) load(getProc uintptr) error {
	p := &d.procs
	for name, proc := range map[string]*uintptr{
		"vkDestroyDevice": &p.destroyDevice, "vkGetDeviceQueue": &p.getDeviceQueue, "vkDeviceWaitIdle": &p.deviceWaitIdle,
		"vkAllocateMemory": &p.allocateMemory, "vkFreeMemory": &p.freeMemory, "vkMapMemory": &p.mapMemory,
		"vkUnmapMemory":             &p.unmapMemory,
		"vkFlushMappedMemoryRanges": &p.flushRanges, "vkInvalidateMappedMemoryRanges": &p.invalidateRanges,
		"vkCreateBuffer": &p.createBuffer, "vkDestroyBuffer": &p.destroyBuffer,
		"vkGetBufferMemoryRequirements": &p.getRequirements, "vkBindBufferMemory": &p.bindBufferMemory,
		"vkCreateCommandPool": &p.createPool, "vkDestroyCommandPool": &p.destroyPool,
		"vkAllocateCommandBuffers": &p.allocateCommands, "vkBeginCommandBuffer": &p.begin, "vkEndCommandBuffer": &p.end,
		"vkCmdCopyBuffer": &p.copyBuffer, "vkCmdFillBuffer": &p.fillBuffer, "vkCmdPipelineBarrier": &p.barrier,
		"vkCreateFence": &p.createFence, "vkDestroyFence": &p.destroyFence, "vkResetFences": &p.resetFences,
		"vkWaitForFences": &p.waitForFences, "vkQueueSubmit": &p.submit, "vkGetFenceStatus": &p.fenceStatus,
		"vkCreateShaderModule": &p.createModule, "vkDestroyShaderModule": &p.destroyModule,
		"vkCreateDescriptorSetLayout": &p.createSetLayout, "vkDestroyDescriptorSetLayout": &p.destroySetLayout,
		"vkCreatePipelineLayout": &p.createPipelineLayout, "vkDestroyPipelineLayout": &p.destroyPipelineLayout,
		"vkCreateComputePipelines": &p.createComputePipelines, "vkDestroyPipeline": &p.destroyPipeline,
		"vkCreateDescriptorPool": &p.createDescriptorPool, "vkDestroyDescriptorPool": &p.destroyDescriptorPool,
		"vkAllocateDescriptorSets": &p.allocateSets, "vkUpdateDescriptorSets": &p.updateSets,
		"vkCmdBindPipeline": &p.bindPipeline, "vkCmdBindDescriptorSets": &p.bindSets,
		"vkCmdPushConstants": &p.pushConstants, "vkCmdDispatch": &p.dispatch,
	} {
		if *proc = call(getProc, d.handle, uintptr(unsafe.Pointer(cString(name)))); *proc == 0 {
			return fmt.Errorf("vk: the driver has no %s", name)
		}
	}
	return nil
}

// Close waits until the device is idle and destroys it. Memory and buffers
// should be gone by then.
func (d *Device) Close() {
	call(d.procs.deviceWaitIdle, d.handle)
	if d.pool != 0 {
		call(d.procs.destroyPool, d.handle, uintptr(d.pool), 0)
	}
	call(d.procs.destroyDevice, d.handle, 0)
}

// Allocate takes size bytes of a memory type.
func (d *Device) Allocate(size int64, memoryType int) (Memory, error) {
	info := &memoryAllocateInfo{sType: typeMemoryAllocateInfo, size: uint64(size), index: uint32(memoryType)}
	m := new(Memory)
	err := check("vkAllocateMemory", call(d.procs.allocateMemory, d.handle, uintptr(unsafe.Pointer(info)), 0, uintptr(unsafe.Pointer(m))))
	return *m, err
}

// Free gives memory back, and unmaps it. 0 is ignored.
func (d *Device) Free(m Memory) { call(d.procs.freeMemory, d.handle, uintptr(m), 0) }

// Map maps the first size bytes of m. They are valid until m is unmapped or
// freed.
func (d *Device) Map(m Memory, size int64) ([]byte, error) {
	const wholeSize = ^uintptr(0)
	p := new(unsafe.Pointer)
	err := check("vkMapMemory", call(d.procs.mapMemory, d.handle, uintptr(m), 0, wholeSize, 0, uintptr(unsafe.Pointer(p))))
	if err != nil {
		return nil, err
	}
	// The memory is the driver's mapping, not Go's: the collector ignores it.
	return unsafe.Slice((*byte)(*p), size), nil
}

// Unmap ends a mapping: its bytes must not be used any more.
func (d *Device) Unmap(m Memory) { call(d.procs.unmapMemory, d.handle, uintptr(m)) }

// Flush makes the CPU's writes to bytes [off, off+n) of mapped, non-coherent
// memory visible to the device. Both are multiples of NonCoherentAtom.
func (d *Device) Flush(m Memory, off, n int64) error {
	r := &mappedMemoryRange{sType: typeMappedMemoryRange, memory: m, offset: uint64(off), size: uint64(n)}
	return check("vkFlushMappedMemoryRanges", call(d.procs.flushRanges, d.handle, 1, uintptr(unsafe.Pointer(r))))
}

// Invalidate makes what the device wrote to bytes [off, off+n) of mapped,
// non-coherent memory visible to the CPU. Both are multiples of
// NonCoherentAtom.
func (d *Device) Invalidate(m Memory, off, n int64) error {
	r := &mappedMemoryRange{sType: typeMappedMemoryRange, memory: m, offset: uint64(off), size: uint64(n)}
	return check("vkInvalidateMappedMemoryRanges", call(d.procs.invalidateRanges, d.handle, 1, uintptr(unsafe.Pointer(r))))
}

// Requirements are what a buffer asks of its memory.
type Requirements struct {
	Size      int64 // bytes, at least the buffer's
	Alignment int64 // of the offset it is bound at
	types     uint32
}

// Allows reports whether the buffer may be bound to memory of a type.
func (r Requirements) Allows(memoryType int) bool { return r.types&(1<<memoryType) != 0 }

// bufferUsage is what buffers are for: both ends of transfers, and storage for
// kernels.
const bufferUsage = 1 | 2 | 32

// CreateBuffer makes a buffer of size bytes that copies, fills and kernels may
// use, and says what memory it needs. Buffers of every size allow the same types.
func (d *Device) CreateBuffer(size int64) (Buffer, Requirements, error) {
	info := &bufferCreateInfo{sType: typeBufferCreateInfo, size: uint64(size), usage: bufferUsage}
	b := new(Buffer)
	err := check("vkCreateBuffer", call(d.procs.createBuffer, d.handle, uintptr(unsafe.Pointer(info)), 0, uintptr(unsafe.Pointer(b))))
	if err != nil {
		return 0, Requirements{}, err
	}
	r := new(memoryRequirements)
	call(d.procs.getRequirements, d.handle, uintptr(*b), uintptr(unsafe.Pointer(r)))
	return *b, Requirements{Size: int64(r.size), Alignment: int64(r.alignment), types: r.typeBits}, nil
}

// Bind puts a buffer at the start of m.
func (d *Device) Bind(b Buffer, m Memory) error {
	return check("vkBindBufferMemory", call(d.procs.bindBufferMemory, d.handle, uintptr(b), uintptr(m), 0))
}

// DestroyBuffer destroys a buffer that no pending command uses. 0 is ignored.
func (d *Device) DestroyBuffer(b Buffer) { call(d.procs.destroyBuffer, d.handle, uintptr(b), 0) }
