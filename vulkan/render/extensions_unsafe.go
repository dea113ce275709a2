// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/codec"
)

// askExtensions asks the driver for all extensions, as an array of
// VkExtensionProperties. The count is argument n.
func (r *renderer) askExtensions(c *call, n int) ([]byte, vk.Result, error) {
	proc := r.proc(c.index, c.first)
	if proc == 0 {
		return nil, 0, fmt.Errorf("%w: the driver has no %s", codec.ErrUnsupported, c.Name)
	}
	array, result := r.caller.extensions(proc, c.args[:n])
	return array, result, nil
}

// extensions calls vkEnumerate…ExtensionProperties with what stands before the
// count.
func (c *caller) extensions(proc uintptr, before []uint64) ([]byte, vk.Result) {
	n := len(before)
	args := make([]uint64, n+2)
	copy(args, before)
	count := new(uint32)
	args[n] = address(count)
	if result := c.call(proc, args...); result < 0 {
		return nil, result
	}
	array := make([]byte, int(*count)*extensionProperties+1)
	args[n+1] = address(unsafe.SliceData(array))
	result := c.call(proc, args...)
	runtime.KeepAlive(array)
	return array[:min(int(*count)*extensionProperties, len(array))], result
}
