// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
)

const howToInstall = "install a driver for the GPU, or the software one: apt install libvulkan1 mesa-vulkan-drivers"

// An Instance is a connection to the Vulkan loader. Its methods must not be
// called concurrently with Close.
type Instance struct {
	handle  uintptr
	getProc uintptr
	version Version // what the instance was made with
	devices []uintptr
	infos   []DeviceInfo

	destroyInstance, enumeratePhysicalDevices                 uintptr
	getProperties, getProperties2, getMemoryProperties        uintptr
	getQueueFamilyProperties, createDevice, getDeviceProcAddr uintptr
	enumerateExtensions, getFeatures                          uintptr
}

// call calls a C function. The directive keeps what the arguments point to
// alive and on the heap until the function returns, as for syscall.Syscall.
//
//go:uintptrescapes
func call(fn uintptr, args ...uintptr) uintptr {
	r, _, _ := purego.SyscallN(fn, args...)
	return r
}

// check turns the value a Vulkan function returned into an error.
func check(name string, r uintptr) error {
	// A VkResult is a C int: the upper half of the register is undefined.
	if result := Result(int32(r)); result != Success {
		return &Error{Call: name, Result: result}
	}
	return nil
}

// Open loads libvulkan.so.1 and its drivers and lists the devices. The loader
// stays in the process after Close: drivers do not all survive dlclose.
func Open() (*Instance, error) {
	lib, err := purego.Dlopen("libvulkan.so.1", purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%w: no loader (%w): %s", ErrAbsent, err, howToInstall)
	}
	i := new(Instance)
	if i.getProc, err = purego.Dlsym(lib, "vkGetInstanceProcAddr"); err != nil {
		return nil, fmt.Errorf("%w: libvulkan.so.1 is no Vulkan loader: %w", ErrAbsent, err)
	}
	if err := i.create(); err != nil {
		return nil, err
	}
	if err := i.enumerate(); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// Devices opens Vulkan, lists the devices, and closes it again.
func Devices() ([]DeviceInfo, error) {
	i, err := Open()
	if err != nil {
		return nil, err
	}
	defer i.Close()
	return i.Devices(), nil
}

// Devices returns the devices that were there at Open, by index.
func (i *Instance) Devices() []DeviceInfo { return i.infos }

// Close destroys the instance. Devices must be closed before.
func (i *Instance) Close() {
	if i.handle != 0 {
		call(i.destroyInstance, i.handle, 0)
		i.handle = 0
	}
}

// proc returns the address of a function of the instance; before there is one,
// of a global function. It is 0 if the loader does not know the name.
func (i *Instance) proc(name string) uintptr {
	return call(i.getProc, i.handle, uintptr(unsafe.Pointer(cString(name))))
}

func (i *Instance) create() error {
	// A loader without vkEnumerateInstanceVersion is of version 1.0, and its
	// drivers may refuse to be asked for more.
	i.version = MakeVersion(1, 0)
	if enumerateVersion := i.proc("vkEnumerateInstanceVersion"); enumerateVersion != 0 {
		have := new(Version)
		if err := check("vkEnumerateInstanceVersion", call(enumerateVersion, uintptr(unsafe.Pointer(have)))); err != nil {
			return err
		}
		i.version = min(*have, MakeVersion(1, 2))
	}
	info := &instanceCreateInfo{
		sType:       typeInstanceCreateInfo,
		application: &applicationInfo{sType: typeApplicationInfo, name: cString("memspan"), apiVersion: i.version},
	}
	handle := new(uintptr)
	err := check("vkCreateInstance", call(i.proc("vkCreateInstance"), uintptr(unsafe.Pointer(info)), 0, uintptr(unsafe.Pointer(handle))))
	if errors.Is(err, ErrIncompatibleDriver) {
		return fmt.Errorf("%w: the loader found no driver (%w): %s", ErrAbsent, err, howToInstall)
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	i.handle = *handle
	i.destroyInstance = i.proc("vkDestroyInstance")
	i.enumeratePhysicalDevices = i.proc("vkEnumeratePhysicalDevices")
	i.getProperties = i.proc("vkGetPhysicalDeviceProperties")
	i.getProperties2 = i.proc("vkGetPhysicalDeviceProperties2")
	i.getMemoryProperties = i.proc("vkGetPhysicalDeviceMemoryProperties")
	i.getQueueFamilyProperties = i.proc("vkGetPhysicalDeviceQueueFamilyProperties")
	i.createDevice = i.proc("vkCreateDevice")
	i.getDeviceProcAddr = i.proc("vkGetDeviceProcAddr")
	i.enumerateExtensions = i.proc("vkEnumerateDeviceExtensionProperties")
	i.getFeatures = i.proc("vkGetPhysicalDeviceFeatures")
	return nil
}

func (i *Instance) enumerate() error {
	count := new(uint32)
	err := check("vkEnumeratePhysicalDevices", call(i.enumeratePhysicalDevices, i.handle, uintptr(unsafe.Pointer(count)), 0))
	if err != nil || *count == 0 {
		if err == nil {
			err = errors.New("it lists none")
		}
		return fmt.Errorf("%w: no driver offers a device (%w): %s", ErrAbsent, err, howToInstall)
	}
	i.devices = make([]uintptr, *count)
	r := call(i.enumeratePhysicalDevices, i.handle, uintptr(unsafe.Pointer(count)), uintptr(unsafe.Pointer(&i.devices[0])))
	// VK_INCOMPLETE, a positive result: a device appeared since the count was
	// taken. Those that fitted are good.
	if err := check("vkEnumeratePhysicalDevices", r); err != nil && int32(r) < 0 {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	i.devices = i.devices[:*count]
	for n, handle := range i.devices {
		info := i.describe(handle)
		info.Index = n
		i.infos = append(i.infos, info)
	}
	return nil
}

// describe asks everything a DeviceInfo says of one physical device.
func (i *Instance) describe(device uintptr) DeviceInfo {
	p := new(physicalDeviceProperties)
	call(i.getProperties, device, uintptr(unsafe.Pointer(p)))
	info := DeviceInfo{
		Name:            text(p.deviceName[:]),
		Type:            p.deviceType,
		API:             p.apiVersion,
		DriverVersion:   p.driverVersion,
		Vendor:          p.vendorID,
		Device:          p.deviceID,
		MaxAllocations:  p.limits.maxMemoryAllocations,
		NonCoherentAtom: int64(p.limits.nonCoherentAtomSize),
	}
	i.describe2(device, &info)
	info.ImportsHostMemory = i.has(device, "VK_EXT_external_memory_host")
	f := i.features(device)
	info.Kernels = KernelLimits{
		Invocations: p.limits.maxInvocations, GroupSize: p.limits.maxGroupSize, Groups: p.limits.maxGroupCount[0],
		Float64: f.shaderFloat64 != 0, Int64: f.shaderInt64 != 0, Int16: f.shaderInt16 != 0,
	}

	m := new(physicalDeviceMemoryProperties)
	call(i.getMemoryProperties, device, uintptr(unsafe.Pointer(m)))
	for _, t := range m.types[:min(m.typeCount, uint32(len(m.types)))] {
		info.Types = append(info.Types, MemoryType{Heap: int(t.heap), Flags: t.flags})
	}
	for _, h := range m.heaps[:min(m.heapCount, uint32(len(m.heaps)))] {
		const deviceLocalBit = 1
		info.Heaps = append(info.Heaps, Heap{Size: int64(min(h.size, math.MaxInt64)), DeviceLocal: h.flags&deviceLocalBit != 0})
	}

	count := new(uint32)
	call(i.getQueueFamilyProperties, device, uintptr(unsafe.Pointer(count)), 0)
	if *count > 0 {
		families := make([]queueFamilyProperties, *count)
		call(i.getQueueFamilyProperties, device, uintptr(unsafe.Pointer(count)), uintptr(unsafe.Pointer(&families[0])))
		for _, f := range families[:*count] {
			info.Queues = append(info.Queues, QueueFamily{Flags: f.flags, Count: int(f.count)})
		}
	}
	return info
}

// features returns those features in use that a physical device has: they are
// enabled where they are there.
func (i *Instance) features(device uintptr) *physicalDeviceFeatures {
	have := new(physicalDeviceFeatures)
	call(i.getFeatures, device, uintptr(unsafe.Pointer(have)))
	return &physicalDeviceFeatures{
		robustBufferAccess: have.robustBufferAccess,
		shaderFloat64:      have.shaderFloat64, shaderInt64: have.shaderInt64, shaderInt16: have.shaderInt16,
	}
}

// describe2 adds what Vulkan 1.1 and 1.2 say beyond 1.0. A structure may only
// be asked of a device whose version, and whose instance's, has it.
func (i *Instance) describe2(device uintptr, info *DeviceInfo) {
	version := min(i.version, info.API)
	if version < MakeVersion(1, 1) || i.getProperties2 == 0 {
		return
	}
	driver := &physicalDeviceDriverProperties{sType: typeDriverProperties}
	id := &physicalDeviceIDProperties{sType: typeIDProperties}
	if version >= MakeVersion(1, 2) {
		id.pNext = unsafe.Pointer(driver) // the chain is the C API's untyped list
	}
	p := &physicalDeviceProperties2{sType: typeProperties2, pNext: unsafe.Pointer(id)}
	call(i.getProperties2, device, uintptr(unsafe.Pointer(p)))
	info.UUID = hex.EncodeToString(id.deviceUUID[:])
	info.Driver = strings.TrimSpace(text(driver.driverName[:]) + " " + text(driver.driverInfo[:]))
}

// has reports whether a device has an extension. A driver that fails to say has
// none.
func (i *Instance) has(device uintptr, extension string) bool {
	count := new(uint32)
	if call(i.enumerateExtensions, device, 0, uintptr(unsafe.Pointer(count)), 0) != 0 || *count == 0 {
		return false
	}
	list := make([]extensionProperties, *count)
	r := call(i.enumerateExtensions, device, 0, uintptr(unsafe.Pointer(count)), uintptr(unsafe.Pointer(&list[0])))
	return int32(r) >= 0 && slices.ContainsFunc(list[:min(int(*count), len(list))], func(p extensionProperties) bool {
		return text(p.name[:]) == extension
	})
}

// text returns the NUL-terminated string in b.
func text(b []byte) string {
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b)
}
