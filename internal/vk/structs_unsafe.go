// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"structs"
	"unsafe"
)

// The structures of vulkan_core.h, as a 64-bit C compiler lays them out. Go
// aligns fields as C does on amd64 and arm64; trailing padding is spelled out
// where the next field would not force it. TestLayout holds them to the header.
//
// Pointers to other structures are Go pointers, so that the collector keeps
// what they point to; it does not move heap objects while C reads them.

type structType uint32

const (
	typeApplicationInfo           structType = 0
	typeInstanceCreateInfo        structType = 1
	typeDeviceQueueCreateInfo     structType = 2
	typeDeviceCreateInfo          structType = 3
	typeSubmitInfo                structType = 4
	typeMemoryAllocateInfo        structType = 5
	typeMappedMemoryRange         structType = 6
	typeFenceCreateInfo           structType = 8
	typeBufferCreateInfo          structType = 12
	typeCommandPoolCreateInfo     structType = 39
	typeCommandBufferAllocateInfo structType = 40
	typeCommandBufferBeginInfo    structType = 42
	typeMemoryBarrier             structType = 46
	typeProperties2               structType = 1000059001
	typeIDProperties              structType = 1000071004
	typeDriverProperties          structType = 1000196000
)

type applicationInfo struct {
	_             structs.HostLayout
	sType         structType
	pNext         unsafe.Pointer
	name          *byte
	version       uint32
	engineName    *byte
	engineVersion uint32
	apiVersion    Version
}

type instanceCreateInfo struct {
	_              structs.HostLayout
	sType          structType
	pNext          unsafe.Pointer
	flags          uint32
	application    *applicationInfo
	layerCount     uint32
	layers         unsafe.Pointer
	extensionCount uint32
	extensions     unsafe.Pointer
}

type deviceQueueCreateInfo struct {
	_          structs.HostLayout
	sType      structType
	pNext      unsafe.Pointer
	flags      uint32
	family     uint32
	count      uint32
	priorities *float32
}

type deviceCreateInfo struct {
	_              structs.HostLayout
	sType          structType
	pNext          unsafe.Pointer
	flags          uint32
	queueCount     uint32
	queues         *deviceQueueCreateInfo
	layerCount     uint32
	layers         unsafe.Pointer
	extensionCount uint32
	extensions     unsafe.Pointer
	features       unsafe.Pointer
}

// physicalDeviceLimits names the limits in use; the offsets are VkPhysicalDeviceLimits'.
type physicalDeviceLimits struct {
	_                    structs.HostLayout
	_                    [36]byte
	maxMemoryAllocations uint32 // 36
	_                    [456]byte
	nonCoherentAtomSize  uint64 // 496
}

type extensionProperties struct {
	_           structs.HostLayout
	name        [256]byte
	specVersion uint32
}

type physicalDeviceProperties struct {
	_                 structs.HostLayout
	apiVersion        Version
	driverVersion     uint32
	vendorID          uint32
	deviceID          uint32
	deviceType        DeviceType
	deviceName        [256]byte
	pipelineCacheUUID [16]byte
	limits            physicalDeviceLimits
	sparse            [5]uint32
}

type physicalDeviceProperties2 struct {
	_          structs.HostLayout
	sType      structType
	pNext      unsafe.Pointer
	properties physicalDeviceProperties
}

type physicalDeviceIDProperties struct {
	_               structs.HostLayout
	sType           structType
	pNext           unsafe.Pointer
	deviceUUID      [16]byte
	driverUUID      [16]byte
	deviceLUID      [8]byte
	deviceNodeMask  uint32
	deviceLUIDValid uint32
}

type physicalDeviceDriverProperties struct {
	_           structs.HostLayout
	sType       structType
	pNext       unsafe.Pointer
	driverID    uint32
	driverName  [256]byte
	driverInfo  [256]byte
	conformance [4]byte
}

type memoryType struct {
	_     structs.HostLayout
	flags MemoryFlags
	heap  uint32
}

type memoryHeap struct {
	_     structs.HostLayout
	size  uint64
	flags uint32
}

type physicalDeviceMemoryProperties struct {
	_         structs.HostLayout
	typeCount uint32
	types     [32]memoryType
	heapCount uint32
	heaps     [16]memoryHeap
}

type queueFamilyProperties struct {
	_                  structs.HostLayout
	flags              QueueFlags
	count              uint32
	timestampValidBits uint32
	granularity        [3]uint32
}

type memoryAllocateInfo struct {
	_     structs.HostLayout
	sType structType
	pNext unsafe.Pointer
	size  uint64
	index uint32
}

type mappedMemoryRange struct {
	_      structs.HostLayout
	sType  structType
	pNext  unsafe.Pointer
	memory Memory
	offset uint64
	size   uint64
}

type bufferCreateInfo struct {
	_           structs.HostLayout
	sType       structType
	pNext       unsafe.Pointer
	flags       uint32
	size        uint64
	usage       uint32
	sharing     uint32
	familyCount uint32
	families    unsafe.Pointer
}

type memoryRequirements struct {
	_         structs.HostLayout
	size      uint64
	alignment uint64
	typeBits  uint32
}

type commandPoolCreateInfo struct {
	_      structs.HostLayout
	sType  structType
	pNext  unsafe.Pointer
	flags  uint32
	family uint32
}

type commandBufferAllocateInfo struct {
	_     structs.HostLayout
	sType structType
	pNext unsafe.Pointer
	pool  uint64
	level uint32
	count uint32
}

type commandBufferBeginInfo struct {
	_           structs.HostLayout
	sType       structType
	pNext       unsafe.Pointer
	flags       uint32
	inheritance unsafe.Pointer
}

type memoryBarrier struct {
	_     structs.HostLayout
	sType structType
	pNext unsafe.Pointer
	src   uint32
	dst   uint32
}

type submitInfo struct {
	_            structs.HostLayout
	sType        structType
	pNext        unsafe.Pointer
	waitCount    uint32
	waits        unsafe.Pointer
	waitStages   unsafe.Pointer
	commandCount uint32
	commands     *uintptr
	signalCount  uint32
	signals      unsafe.Pointer
}

type fenceCreateInfo struct {
	_     structs.HostLayout
	sType structType
	pNext unsafe.Pointer
	flags uint32
}

// BufferCopy is one range for CopyBuffer, in bytes.
type BufferCopy struct {
	_              structs.HostLayout
	Src, Dst, Size uint64
}

// cString returns s with its terminating NUL.
func cString(s string) *byte { return unsafe.SliceData(append([]byte(s), 0)) }
