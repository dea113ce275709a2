// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"errors"
	"runtime"
	"unsafe"
)

// The constants of Vulkan 1.0 in use for kernels.
const (
	computeShader = 0x20
	storageBuffer = 7
	bindCompute   = 1
)

// Kernels are what compute kernels of a device have in common: one storage
// buffer, binding 0 of set 0, and push constants.
type Kernels struct {
	d         *Device
	setLayout uint64
	layout    uint64
	pool      uint64
	push      int
}

// A Binding is a storage buffer as a kernel sees it.
type Binding uint64

// A Kernel is a compute pipeline; 0 is none.
type Kernel uint64

// NewKernels makes what kernels with so many bytes of push constants need, and
// so many bindings. The device's queue must be able to compute.
func (d *Device) NewKernels(push, bindings int) (*Kernels, []Binding, error) {
	if d.stages&stageCompute == 0 {
		return nil, nil, errors.New("vk: the device's queue runs no kernels")
	}
	k := &Kernels{d: d, push: push}
	list, err := k.make(bindings)
	if err != nil {
		k.Close()
		return nil, nil, err
	}
	return k, list, nil
}

func (k *Kernels) make(bindings int) ([]Binding, error) {
	var pinner runtime.Pinner // C follows pointers within what it is given
	defer pinner.Unpin()
	d, p := k.d, &k.d.procs
	binding := &setLayoutBinding{kind: storageBuffer, count: 1, stages: computeShader}
	pinner.Pin(binding)
	if err := d.create("vkCreateDescriptorSetLayout", p.createSetLayout, unsafe.Pointer(&setLayoutCreateInfo{
		sType: typeSetLayoutCreateInfo, count: 1, bindings: binding,
	}), &k.setLayout); err != nil {
		return nil, err
	}
	sets := make([]uint64, bindings)
	for i := range sets {
		sets[i] = k.setLayout
	}
	push := &pushConstantRange{stages: computeShader, size: uint32(k.push)}
	pinner.Pin(&sets[0])
	pinner.Pin(push)
	if err := d.create("vkCreatePipelineLayout", p.createPipelineLayout, unsafe.Pointer(&pipelineLayoutCreateInfo{
		sType: typePipelineLayoutCreateInfo, setCount: 1, sets: &sets[0], pushCount: 1, push: push,
	}), &k.layout); err != nil {
		return nil, err
	}
	size := &descriptorPoolSize{kind: storageBuffer, count: uint32(bindings)}
	pinner.Pin(size)
	if err := d.create("vkCreateDescriptorPool", p.createDescriptorPool, unsafe.Pointer(&descriptorPoolCreateInfo{
		sType: typeDescriptorPoolCreateInfo, maxSets: uint32(bindings), sizeCount: 1, sizes: size,
	}), &k.pool); err != nil {
		return nil, err
	}
	list := make([]Binding, bindings)
	info := &descriptorSetAllocateInfo{sType: typeDescriptorSetAllocateInfo, pool: k.pool, count: uint32(bindings), layouts: &sets[0]}
	return list, check("vkAllocateDescriptorSets", call(p.allocateSets, d.handle, uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&list[0]))))
}

// create calls a function that makes one object.
func (d *Device) create(name string, proc uintptr, info unsafe.Pointer, object *uint64) error {
	made := new(uint64)
	if err := check(name, call(proc, d.handle, uintptr(info), 0, uintptr(unsafe.Pointer(made)))); err != nil {
		return err
	}
	*object = *made
	return nil
}

// Close destroys what NewKernels made. Kernels must be destroyed before, and
// nothing may use bindings.
func (k *Kernels) Close() {
	p := &k.d.procs
	call(p.destroyDescriptorPool, k.d.handle, uintptr(k.pool), 0)
	call(p.destroyPipelineLayout, k.d.handle, uintptr(k.layout), 0)
	call(p.destroySetLayout, k.d.handle, uintptr(k.setLayout), 0)
}

// Create makes a kernel of a SPIR-V module, whose entry point is main. The driver
// believes what the module says: one that breaks SPIR-V's rules may crash the
// process.
func (k *Kernels) Create(code []uint32) (Kernel, error) {
	var pinner runtime.Pinner // C follows pointers within what it is given
	defer pinner.Unpin()
	d, p := k.d, &k.d.procs
	words := append([]uint32(nil), code...)
	pinner.Pin(&words[0])
	var module uint64
	if err := d.create("vkCreateShaderModule", p.createModule, unsafe.Pointer(&shaderModuleCreateInfo{
		sType: typeShaderModuleCreateInfo, size: uint64(4 * len(words)), code: &words[0],
	}), &module); err != nil {
		return 0, err
	}
	defer call(p.destroyModule, d.handle, uintptr(module), 0)
	name := cString("main")
	pinner.Pin(name)
	info := &computePipelineCreateInfo{
		sType: typeComputePipelineCreateInfo, layout: k.layout, baseIndex: -1,
		stage: shaderStageCreateInfo{sType: typeShaderStageCreateInfo, stage: computeShader, module: module, name: name},
	}
	made := new(Kernel)
	err := check("vkCreateComputePipelines", call(p.createComputePipelines, d.handle, 0, 1, uintptr(unsafe.Pointer(info)), 0, uintptr(unsafe.Pointer(made))))
	return *made, err
}

// Destroy destroys a kernel that no pending command uses. 0 is ignored.
func (k *Kernels) Destroy(kernel Kernel) {
	call(k.d.procs.destroyPipeline, k.d.handle, uintptr(kernel), 0)
}

// Bind makes a binding, which no pending command uses, bytes [off, off+n) of a
// buffer. Off is a multiple of 256, n one of 4.
func (k *Kernels) Bind(to Binding, b Buffer, off, n int64) {
	var pinner runtime.Pinner // C follows pointers within what it is given
	defer pinner.Unpin()
	info := &descriptorBufferInfo{buffer: b, offset: uint64(off), size: uint64(n)}
	pinner.Pin(info)
	write := &writeDescriptorSet{sType: typeWriteDescriptorSet, set: uint64(to), count: 1, kind: storageBuffer, buffers: info}
	call(k.d.procs.updateSets, k.d.handle, 1, uintptr(unsafe.Pointer(write)), 0, 0)
}

// Dispatch records a kernel's run of so many work groups on a binding. Push, of
// at most as many bytes as NewKernels was told and a multiple of 4, are the first
// push constants.
func (c *Commands) Dispatch(k *Kernels, kernel Kernel, on Binding, push []byte, groups int) {
	p := &c.d.procs
	set := new(Binding)
	*set = on
	call(p.bindPipeline, *c.buffer, bindCompute, uintptr(kernel))
	call(p.bindSets, *c.buffer, bindCompute, uintptr(k.layout), 0, 1, uintptr(unsafe.Pointer(set)), 0, 0)
	if len(push) > 0 {
		call(p.pushConstants, *c.buffer, uintptr(k.layout), computeShader, 0, uintptr(len(push)), uintptr(unsafe.Pointer(unsafe.SliceData(push))))
	}
	call(p.dispatch, *c.buffer, uintptr(groups), 1, 1)
}
