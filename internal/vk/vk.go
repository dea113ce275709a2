// SPDX-License-Identifier: Apache-2.0

package vk

import (
	"errors"
	"fmt"
	"strings"
)

// ErrAbsent is what Open and Devices return, wrapped with what is missing and
// how to get it, where there is no Vulkan.
var ErrAbsent = errors.New("vulkan is absent")

// A DeviceInfo describes one physical device.
type DeviceInfo struct {
	Index         int           `json:"index"` // in the order of vkEnumeratePhysicalDevices
	Name          string        `json:"name"`
	Type          DeviceType    `json:"type"`
	API           Version       `json:"api"`
	UUID          string        `json:"uuid,omitempty"`   // hexadecimal; empty before Vulkan 1.1
	Driver        string        `json:"driver,omitempty"` // name and version in words; empty before Vulkan 1.2
	DriverVersion uint32        `json:"driver_version"`   // the vendor's own encoding
	Vendor        uint32        `json:"vendor"`           // PCI id, or a Khronos one above 0xffff
	Device        uint32        `json:"device"`           // PCI id
	Heaps         []Heap        `json:"heaps"`
	Types         []MemoryType  `json:"types"`
	Queues        []QueueFamily `json:"queues"`

	// MaxAllocations is how many Memory may exist at one time.
	MaxAllocations uint32 `json:"max_allocations"`
	// NonCoherentAtom is the unit, in bytes, of Flush and Invalidate. The
	// specification limits it to powers of two up to 256.
	NonCoherentAtom int64 `json:"non_coherent_atom"`
	// ImportsHostMemory is whether the driver can use memory of the process's own
	// as device memory: it has VK_EXT_external_memory_host.
	ImportsHostMemory bool `json:"imports_host_memory"`
	// Kernels is what compute kernels may ask of it.
	Kernels KernelLimits `json:"kernels"`
}

// KernelLimits are the limits of a device for compute kernels.
type KernelLimits struct {
	Invocations uint32    `json:"invocations"` // of a work group
	GroupSize   [3]uint32 `json:"group_size"`  // of its sides
	Groups      uint32    `json:"groups"`      // of a dispatch, in its first dimension
	// The types beyond 32-bit numbers that a kernel may compute with.
	Float64 bool `json:"float64"`
	Int64   bool `json:"int64"`
	Int16   bool `json:"int16"`
}

// A Heap is memory that several memory types may draw on.
type Heap struct {
	Size        int64 `json:"size"`         // bytes
	DeviceLocal bool  `json:"device_local"` // the device's own, not the system's
}

// A MemoryType is one way to use a heap. Its number is its index in
// DeviceInfo.Types.
type MemoryType struct {
	Heap  int         `json:"heap"`
	Flags MemoryFlags `json:"flags"`
}

// A QueueFamily is a set of queues that can do the same.
type QueueFamily struct {
	Flags QueueFlags `json:"flags"`
	Count int        `json:"count"`
}

// A Version is a Vulkan version: major, minor and patch in one number.
type Version uint32

// MakeVersion returns major.minor.0.
func MakeVersion(major, minor uint32) Version { return Version(major<<22 | minor<<12) }

// String returns "major.minor.patch".
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v>>22&0x7f, v>>12&0x3ff, v&0xfff)
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler for the form of String.
func (v *Version) UnmarshalText(text []byte) error {
	var major, minor, patch uint32
	if _, err := fmt.Sscanf(string(text), "%d.%d.%d", &major, &minor, &patch); err != nil {
		return fmt.Errorf("vk: version %q: %w", text, err)
	}
	*v = MakeVersion(major, minor) | Version(patch&0xfff)
	return nil
}

// DeviceType says what kind of device it is.
type DeviceType uint32

// The device types.
const (
	Other DeviceType = iota
	IntegratedGPU
	DiscreteGPU
	VirtualGPU
	CPU
)

var deviceTypeNames = []string{"other", "integrated", "discrete", "virtual", "cpu"}

// String returns "other", "integrated", "discrete", "virtual" or "cpu".
func (t DeviceType) String() string {
	if int(t) < len(deviceTypeNames) {
		return deviceTypeNames[t]
	}
	return fmt.Sprintf("DeviceType(%d)", uint32(t))
}

// MarshalText implements encoding.TextMarshaler with the names of String.
func (t DeviceType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler for the names of String;
// unknown ones become Other.
func (t *DeviceType) UnmarshalText(text []byte) error {
	*t = Other
	for i, name := range deviceTypeNames {
		if name == string(text) {
			*t = DeviceType(i)
		}
	}
	return nil
}

// MemoryFlags are the properties of a memory type.
type MemoryFlags uint32

// The memory flags of Vulkan 1.0 that concern plain buffers. A type with any
// other flag may need a feature to be enabled before it is used.
const (
	DeviceLocal MemoryFlags = 1 << iota
	HostVisible
	HostCoherent
	HostCached
)

// Has reports whether all of want are set.
func (f MemoryFlags) Has(want MemoryFlags) bool { return f&want == want }

// String returns the flags' names joined by "|", or "0".
func (f MemoryFlags) String() string {
	return flagString(uint32(f), "device-local", "host-visible", "host-coherent", "host-cached", "lazy", "protected")
}

// QueueFlags say what a queue family can do.
type QueueFlags uint32

// The queue flags. Graphics and compute queues can transfer too, whether or
// not they say so.
const (
	Graphics QueueFlags = 1 << iota
	Compute
	Transfer
)

// String returns the flags' names joined by "|", or "0".
func (f QueueFlags) String() string {
	return flagString(uint32(f), "graphics", "compute", "transfer", "sparse")
}

func flagString(flags uint32, names ...string) string {
	var set []string
	for i, name := range names {
		if flags&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	if rest := flags &^ (1<<len(names) - 1); rest != 0 || len(set) == 0 {
		set = append(set, fmt.Sprintf("%#x", rest))
	}
	return strings.Join(set, "|")
}

// A Result is a VkResult. The negative ones are errors.
type Result int32

// The results that callers tell apart.
const (
	Success               Result = 0
	Timeout               Result = 2
	ErrOutOfHostMemory    Result = -1
	ErrOutOfDeviceMemory  Result = -2
	ErrInitialization     Result = -3
	ErrDeviceLost         Result = -4
	ErrIncompatibleDriver Result = -9
	ErrTooManyObjects     Result = -10
)

var resultNames = map[Result]string{
	0: "VK_SUCCESS", 1: "VK_NOT_READY", 2: "VK_TIMEOUT", 5: "VK_INCOMPLETE",
	-1: "VK_ERROR_OUT_OF_HOST_MEMORY", -2: "VK_ERROR_OUT_OF_DEVICE_MEMORY", -3: "VK_ERROR_INITIALIZATION_FAILED",
	-4: "VK_ERROR_DEVICE_LOST", -5: "VK_ERROR_MEMORY_MAP_FAILED", -6: "VK_ERROR_LAYER_NOT_PRESENT",
	-7: "VK_ERROR_EXTENSION_NOT_PRESENT", -8: "VK_ERROR_FEATURE_NOT_PRESENT", -9: "VK_ERROR_INCOMPATIBLE_DRIVER",
	-10: "VK_ERROR_TOO_MANY_OBJECTS", -12: "VK_ERROR_FRAGMENTED_POOL", -13: "VK_ERROR_UNKNOWN",
}

// Error returns the name of the specification, like "VK_ERROR_DEVICE_LOST".
func (r Result) Error() string {
	if name, ok := resultNames[r]; ok {
		return name
	}
	return fmt.Sprintf("VkResult(%d)", int32(r))
}

// An Error is a call that did not succeed. errors.Is finds its Result.
type Error struct {
	Call   string // like "vkAllocateMemory"
	Result Result
}

func (e *Error) Error() string { return e.Call + ": " + e.Result.Error() }

// Unwrap returns the Result.
func (e *Error) Unwrap() error { return e.Result }
