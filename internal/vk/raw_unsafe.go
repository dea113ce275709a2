// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"fmt"
	"reflect"
	"structs"
	"unsafe"

	"github.com/ebitengine/purego"
)

// A Loader finds the addresses of Vulkan's functions, for callers that know the
// functions' arguments themselves. It may be used concurrently.
type Loader struct {
	getInstanceProc uintptr
}

// OpenLoader loads libvulkan.so.1. It stays in the process. The error wraps
// ErrAbsent if there is none; whether there is a driver is not known yet.
func OpenLoader() (*Loader, error) {
	lib, err := purego.Dlopen("libvulkan.so.1", purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%w: no loader (%w): %s", ErrAbsent, err, howToInstall)
	}
	l := new(Loader)
	if l.getInstanceProc, err = purego.Dlsym(lib, "vkGetInstanceProcAddr"); err != nil {
		return nil, fmt.Errorf("%w: libvulkan.so.1 is no Vulkan loader: %w", ErrAbsent, err)
	}
	return l, nil
}

// InstanceProc returns the address of a function of a VkInstance, or of a
// global one if instance is 0; 0 if it has no such function.
func (l *Loader) InstanceProc(instance uintptr, name string) uintptr {
	return call(l.getInstanceProc, instance, uintptr(unsafe.Pointer(cString(name))))
}

// DeviceProc returns the address of a function of a VkDevice, without the
// loader's dispatch; 0 if it has no such function. getDeviceProc is the
// address of vkGetDeviceProcAddr, from InstanceProc.
func DeviceProc(getDeviceProc, device uintptr, name string) uintptr {
	return call(getDeviceProc, device, uintptr(unsafe.Pointer(cString(name))))
}

// RawArgs is how many arguments a raw call has at most.
const RawArgs = 16

// A RawCall is one call of a C function: its address, its arguments in the
// order of the declaration without those that are floats, and those apart.
// Every Vulkan function fits. Integers and pointers are extended to 64 bits;
// pointers must stay valid during the call, which is the caller's business: for
// the collector they are numbers. A float is its 32 bits.
type RawCall struct {
	_      structs.HostLayout
	Proc   uintptr
	Args   [RawArgs]uint64
	Floats [4]uint64
	Result uint64 // of the call; of a VkResult the lower half is meant
	Float  bool   // it has Floats
	pass   [2]uintptr
}

// Address returns where p points as a number, for a RawCall and for what C finds
// by way of its arguments. It sees to it that this is on the heap, whose objects
// do not move: a goroutine's stack does, whenever it grows. The caller keeps the
// object alive until C has done with it.
func Address[T any](p *T) uint64 {
	// What package reflect turns into a number escapes, which it makes sure of.
	return uint64(reflect.ValueOf(p).Pointer())
}

// Raw calls one function. It does not allocate.
func Raw(c *RawCall) { rawBatch(unsafe.Slice(c, 1)) }

// RawBatch calls the functions in order, which costs little more than one call.
// It does not allocate. Nothing is undone or left out if a function fails.
func RawBatch(calls []RawCall) {
	if len(calls) > 0 {
		rawBatch(calls)
	}
}
