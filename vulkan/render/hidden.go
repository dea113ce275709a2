// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"fmt"
	"strings"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
)

// hidden are the features that a driver may have and that are not offered. The
// offsets are of the VkBool32 in the structure of that sType.
var hidden = []struct {
	name   string
	sType  uint32
	offset uintptr
}{
	// Protected memory can be read by nobody, so its contents could not be
	// carried; its queues and submissions are of a kind of their own.
	{"protectedMemory", 49, 16 + 9*4},   // VkPhysicalDeviceVulkan11Features
	{"protectedMemory", 1000145001, 16}, // VkPhysicalDeviceProtectedMemoryFeatures
	// Capture and replay asks for the addresses of an earlier run, which
	// allocations with memory of our own import cannot promise.
	{"bufferDeviceAddressCaptureReplay", 51, 16 + 39*4}, // VkPhysicalDeviceVulkan12Features
	{"bufferDeviceAddressCaptureReplay", 1000257000, 20},
	{"bufferDeviceAddressCaptureReplay", 1000244000, 20},
	// It is about protected memory.
	{"pipelineProtectedAccess", 1000466000, 16}, // VkPhysicalDevicePipelineProtectedAccessFeaturesEXT
}

// errHidden is a feature that is not offered.
var errHidden = fmt.Errorf("render: %w", vk.Result(-8))

// queueFlags are the abilities of queues that are offered: graphics, compute,
// transfer and sparse binding. Of the others protected memory is not offered,
// and the commands of video and optical flow are not in the tables.
const queueFlags = 0xf

// queueFamilies tells what the families of queues can do.
func (r *renderer) queueFamilies(c *call) error {
	if array, count := c.args[2], structure(c.args[1]); array != 0 {
		// SwiftShader says that it has as many as there is room for.
		room := count.u32(0)
		c.args[2] = 0
		if _, err := r.invoke(c); err != nil {
			return r.refuse(c, err)
		}
		count.set32(0, min(room, count.u32(0)))
		c.args[2] = array
	}
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	size, at := uint32(24), uintptr(0) // VkQueueFamilyProperties
	if strings.HasSuffix(strings.TrimSuffix(c.Name, "KHR"), "2") {
		size, at = 40, 16 // VkQueueFamilyProperties2
	}
	if array := structure(c.args[2]); array != 0 {
		for i := range structure(c.args[1]).u32(0) {
			family := array.add(i, size)
			family.set32(at, family.u32(at)&queueFlags)
		}
	}
	return r.answer(c, result)
}

// An extensionProperties is a VkExtensionProperties.
const (
	extensionNameSize   = 256
	extensionProperties = extensionNameSize + 4
)

// extensions answers which extensions there are: those that the driver has and
// the tables carry.
func (r *renderer) extensions(c *call) error {
	instance := c.first == nil
	// The arguments are the object, if any, layer, count and array.
	n := len(c.Params) - 2
	layer, count, array := c.args[n-1], structure(c.args[n]), structure(c.args[n+1])
	if layer != 0 {
		// The loader on the application's side asks layers itself.
		count.set32(0, 0)
		return r.answer(c, 0)
	}
	have, result, err := r.askExtensions(c, n)
	if err != nil {
		return r.refuse(c, err)
	}
	if result < 0 {
		return r.answer(c, uint64(uint32(result)))
	}
	kept := have[:0]
	for len(have) >= extensionProperties {
		one := have[:extensionProperties]
		have = have[extensionProperties:]
		if x, ok := registry.ExtensionByName(cText(one[:extensionNameSize])); ok && x.Instance == instance {
			kept = append(kept, one...)
		}
	}
	total := uint32(len(kept) / extensionProperties)
	status := uint64(0)
	if array != 0 {
		if room := count.u32(0); room < total {
			total, status = room, incomplete
		}
		copy(array.bytes(0, int(total)*extensionProperties), kept)
	}
	count.set32(0, total)
	return r.answer(c, status)
}

// cText returns the NUL-terminated string in b.
func cText(b []byte) string {
	for i, x := range b {
		if x == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
