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
	typeShaderModuleCreateInfo    structType = 16
	typeShaderStageCreateInfo     structType = 18
	typeComputePipelineCreateInfo structType = 29
	typePipelineLayoutCreateInfo  structType = 30
	typeSetLayoutCreateInfo       structType = 32
	typeDescriptorPoolCreateInfo  structType = 33
	typeDescriptorSetAllocateInfo structType = 34
	typeWriteDescriptorSet        structType = 35
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
	features       *physicalDeviceFeatures
}

// physicalDeviceLimits names the limits in use; the offsets are VkPhysicalDeviceLimits'.
type physicalDeviceLimits struct {
	_                    structs.HostLayout
	_                    [36]byte
	maxMemoryAllocations uint32 // 36
	_                    [180]byte
	maxGroupCount        [3]uint32 // 220
	maxInvocations       uint32    // 232
	maxGroupSize         [3]uint32 // 236
	_                    [248]byte
	nonCoherentAtomSize  uint64 // 496
}

// physicalDeviceFeatures names the features in use; the offsets are
// VkPhysicalDeviceFeatures'. Each is 0 or 1.
type physicalDeviceFeatures struct {
	_                  structs.HostLayout
	robustBufferAccess uint32
	_                  [152]byte
	shaderFloat64      uint32 // 156
	shaderInt64        uint32 // 160
	shaderInt16        uint32 // 164
	_                  [52]byte
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

type shaderModuleCreateInfo struct {
	_     structs.HostLayout
	sType structType
	pNext unsafe.Pointer
	flags uint32
	size  uint64
	code  *uint32
}

type shaderStageCreateInfo struct {
	_              structs.HostLayout
	sType          structType
	pNext          unsafe.Pointer
	flags          uint32
	stage          uint32
	module         uint64
	name           *byte
	specialization unsafe.Pointer
}

type computePipelineCreateInfo struct {
	_         structs.HostLayout
	sType     structType
	pNext     unsafe.Pointer
	flags     uint32
	stage     shaderStageCreateInfo
	layout    uint64
	base      uint64
	baseIndex int32
}

type setLayoutBinding struct {
	_        structs.HostLayout
	binding  uint32
	kind     uint32
	count    uint32
	stages   uint32
	samplers unsafe.Pointer
}

type setLayoutCreateInfo struct {
	_        structs.HostLayout
	sType    structType
	pNext    unsafe.Pointer
	flags    uint32
	count    uint32
	bindings *setLayoutBinding
}

type pushConstantRange struct {
	_      structs.HostLayout
	stages uint32
	offset uint32
	size   uint32
}

type pipelineLayoutCreateInfo struct {
	_         structs.HostLayout
	sType     structType
	pNext     unsafe.Pointer
	flags     uint32
	setCount  uint32
	sets      *uint64
	pushCount uint32
	push      *pushConstantRange
}

type descriptorPoolSize struct {
	_     structs.HostLayout
	kind  uint32
	count uint32
}

type descriptorPoolCreateInfo struct {
	_         structs.HostLayout
	sType     structType
	pNext     unsafe.Pointer
	flags     uint32
	maxSets   uint32
	sizeCount uint32
	sizes     *descriptorPoolSize
}

type descriptorSetAllocateInfo struct {
	_       structs.HostLayout
	sType   structType
	pNext   unsafe.Pointer
	pool    uint64
	count   uint32
	layouts *uint64
}

type descriptorBufferInfo struct {
	_      structs.HostLayout
	buffer Buffer
	offset uint64
	size   uint64
}

type writeDescriptorSet struct {
	_       structs.HostLayout
	sType   structType
	pNext   unsafe.Pointer
	set     uint64
	binding uint32
	element uint32
	count   uint32
	kind    uint32
	images  unsafe.Pointer
	buffers *descriptorBufferInfo
	texels  unsafe.Pointer
}

// cString returns s with its terminating NUL.
func cString(s string) *byte { return unsafe.SliceData(append([]byte(s), 0)) }
