// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"os"
	"runtime"
	"structs"
	"testing"
	"unsafe"

	"github.com/memspan/memspan/internal/vk"
)

// A native is a device of the first GPU, made without the renderer, with
// timeline semaphores.
type native struct {
	t        testing.TB
	device   *device
	queue    uintptr
	proc     func(string) uintptr
	instance func(string) uintptr
}

type applicationInfo struct {
	_       structs.HostLayout
	sType   uint32
	next    uint64
	name    uint64
	version uint32
	engine  uint64
	eVer    uint32
	api     uint32
}

type instanceInfo struct {
	_              structs.HostLayout
	sType          uint32
	next           uint64
	flags          uint32
	application    unsafe.Pointer
	layers         uint32
	layerNames     uint64
	extensions     uint32
	extensionNames uint64
}

type queueInfo struct {
	_          structs.HostLayout
	sType      uint32
	next       uint64
	flags      uint32
	family     uint32
	count      uint32
	priorities unsafe.Pointer
}

type timelineFeatures struct {
	_     structs.HostLayout
	sType uint32
	next  uint64
	on    uint32
}

type deviceInfo struct {
	_              structs.HostLayout
	sType          uint32
	next           unsafe.Pointer
	flags          uint32
	queues         uint32
	queueInfos     unsafe.Pointer
	layers         uint32
	layerNames     uint64
	extensions     uint32
	extensionNames uint64
	features       uint64
}

func rawCall(proc uintptr, args ...uint64) vk.Result {
	return new(caller).call(proc, args...)
}

// noVulkan ends a test that finds no Vulkan: it fails, unless the environment says
// that there is none.
func noVulkan(t testing.TB, why any) {
	t.Helper()
	if os.Getenv("MEMSPAN_TEST_NO_VULKAN") == "1" {
		t.Skip(why)
	}
	t.Fatal(why)
}

func openNative(t testing.TB) *native {
	t.Helper()
	loader, err := vk.OpenLoader()
	if err != nil {
		noVulkan(t, err)
	}
	app := &applicationInfo{api: uint32(vk.MakeVersion(1, 2))}
	info := &instanceInfo{sType: 1, application: unsafe.Pointer(app)}
	instance := new(uintptr)
	if r := rawCall(loader.InstanceProc(0, "vkCreateInstance"), address(info), 0, address(instance)); r != 0 {
		noVulkan(t, r)
	}
	iproc := func(name string) uintptr { return loader.InstanceProc(*instance, name) }
	t.Cleanup(func() { rawCall(iproc("vkDestroyInstance"), uint64(*instance), 0) })
	count, gpu := new(uint32), new(uintptr)
	*count = 1
	if r := rawCall(iproc("vkEnumeratePhysicalDevices"), uint64(*instance), address(count), address(gpu)); r < 0 || *count == 0 {
		noVulkan(t, r)
	}
	priority := new(float32)
	queues := &queueInfo{sType: 2, count: 1, priorities: unsafe.Pointer(priority)}
	features := &timelineFeatures{sType: 1000207000, on: 1}
	create := &deviceInfo{sType: 3, next: unsafe.Pointer(features), queues: 1, queueInfos: unsafe.Pointer(queues)}
	handle := new(uintptr)
	if r := rawCall(iproc("vkCreateDevice"), uint64(*gpu), address(create), 0, address(handle)); r != 0 {
		t.Fatal(r)
	}
	runtime.KeepAlive(app)
	runtime.KeepAlive(queues)
	runtime.KeepAlive(features)
	runtime.KeepAlive(priority)
	n := &native{t: t, instance: iproc}
	getProc := iproc("vkGetDeviceProcAddr")
	n.proc = func(name string) uintptr { return vk.DeviceProc(getProc, *handle, name) }
	if n.device, err = newDevice(*handle, n.proc); err != nil {
		t.Fatal(err)
	}
	rawCall(n.proc("vkGetDeviceQueue"), uint64(*handle), 0, 0, address(&n.queue))
	t.Cleanup(func() {
		rawCall(n.proc("vkDeviceWaitIdle"), uint64(*handle))
		n.device.close(new(caller))
		rawCall(n.proc("vkDestroyDevice"), uint64(*handle), 0)
	})
	return n
}

type semaphoreInfo struct {
	_     structs.HostLayout
	sType uint32
	next  unsafe.Pointer
	flags uint32
}

type semaphoreTypeInfo struct {
	_       structs.HostLayout
	sType   uint32
	next    uint64
	kind    uint32
	initial uint64
}

// timeline makes a timeline semaphore of value 0.
func (n *native) timeline() uint64 {
	kind := &semaphoreTypeInfo{sType: 1000207002, kind: 1}
	info := &semaphoreInfo{sType: 9, next: unsafe.Pointer(kind)}
	s := new(uint64)
	if r := rawCall(n.proc("vkCreateSemaphore"), uint64(n.device.real), address(info), 0, address(s)); r != 0 {
		n.t.Fatal(r)
	}
	runtime.KeepAlive(kind)
	n.t.Cleanup(func() {
		rawCall(n.proc("vkDeviceWaitIdle"), uint64(n.device.real))
		rawCall(n.proc("vkDestroySemaphore"), uint64(n.device.real), *s, 0)
	})
	return *s
}

type signalInfo struct {
	_         structs.HostLayout
	sType     uint32
	next      uint64
	semaphore uint64
	value     uint64
}

// signal sets a timeline semaphore from the host.
func (n *native) signal(semaphore, value uint64) {
	info := &signalInfo{sType: 1000207005, semaphore: semaphore, value: value}
	if r := rawCall(n.proc("vkSignalSemaphore"), uint64(n.device.real), address(info)); r != 0 {
		n.t.Error(r)
	}
}

type nativeSubmit struct {
	_             structs.HostLayout
	sType         uint32
	next          unsafe.Pointer
	waits         uint32
	waitHandles   unsafe.Pointer
	waitStages    unsafe.Pointer
	commands      uint32
	commandsAt    uint64
	signals       uint32
	signalHandles unsafe.Pointer
}

type timelineSubmit struct {
	_            structs.HostLayout
	sType        uint32
	next         uint64
	waits        uint32
	waitValues   unsafe.Pointer
	signals      uint32
	signalValues unsafe.Pointer
}

// submit submits a batch that waits for one value and signals another, each if
// its semaphore is not 0, then a fence if not 0.
func (n *native) submit(wait, waitValue, signal, signalValue, fence uint64) {
	values := &timelineSubmit{sType: 1000207003}
	batch := &nativeSubmit{sType: 4, next: unsafe.Pointer(values)}
	stage := new(uint32)
	*stage = 0x10000
	words := &[4]uint64{wait, waitValue, signal, signalValue}
	if wait != 0 {
		batch.waits, batch.waitHandles, batch.waitStages = 1, unsafe.Pointer(&words[0]), unsafe.Pointer(stage)
		values.waits, values.waitValues = 1, unsafe.Pointer(&words[1])
	}
	if signal != 0 {
		batch.signals, batch.signalHandles = 1, unsafe.Pointer(&words[2])
		values.signals, values.signalValues = 1, unsafe.Pointer(&words[3])
	}
	if r := rawCall(n.device.sync.queueSubmit, uint64(n.queue), 1, address(batch), fence); r != 0 {
		n.t.Fatal(r)
	}
	runtime.KeepAlive(values)
	runtime.KeepAlive(stage)
	runtime.KeepAlive(words)
}
