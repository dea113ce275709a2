// SPDX-License-Identifier: Apache-2.0

package driver

import "github.com/memspan/memspan/vulkan/registry"

// What stands here until memory.go does.

func (d *Driver) allocateMemory(a *registry.Args) uint64 {
	return d.createAndWait(registry.VkAllocateMemory, a)
}
func (d *Driver) freeMemory(a *registry.Args) uint64 { return d.destroy(registry.VkFreeMemory, a) }
func (d *Driver) mapMemory(*registry.Args) uint64    { return vkResult(mapFailed) }
func (d *Driver) unmapMemory(*registry.Args) uint64  { return success }
func (d *Driver) flushRanges(*registry.Args) uint64  { return success }
func (d *Driver) invalidateRanges(*registry.Args) uint64 {
	return success
}
func (d *Driver) releaseAll(*deviceState) error { return nil }
func (d *Driver) applyChanged([]byte) error     { return nil }
