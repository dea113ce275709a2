// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/hex"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
)

const incomplete = 5 // VK_INCOMPLETE

// enumerate answers which physical devices there are: all, or the one that is
// offered.
func (r *renderer) enumerate(c *call) error {
	status, done, err := r.enumerateOffered(c, func(array structure, i uint32, real uint64) {
		array.set64(uintptr(i)*8, real)
	})
	if done || err != nil {
		return err
	}
	return r.conclude(c, status)
}

// enumerateGroups answers which groups of them there are: the one that is
// offered is in a group of its own.
func (r *renderer) enumerateGroups(c *call) error {
	const size = 288 // of a VkPhysicalDeviceGroupProperties
	status, done, err := r.enumerateOffered(c, func(array structure, i uint32, real uint64) {
		group := array.add(i, size)
		clear(group.bytes(16, size-16))
		group.set32(16, 1)
		group.set64(24, real)
	})
	if done || err != nil {
		return err
	}
	return r.answer(c, status)
}

// enumerateOffered stores the number of physical devices that are offered, and
// has store store as many of them as the array has room for. If all are, or the
// call fails, the call is done already.
func (r *renderer) enumerateOffered(c *call, store func(array structure, i uint32, real uint64)) (status uint64, done bool, err error) {
	if r.cfg.Device == "" || c.first == nil {
		return 0, true, r.execute(c)
	}
	offered, result := r.offered(c)
	if result < 0 {
		return 0, true, r.answer(c, uint64(uint32(result)))
	}
	count, array := structure(c.args[1]), structure(c.args[2])
	total := uint32(len(offered))
	if array != 0 {
		if room := count.u32(0); room < total {
			total, status = room, incomplete
		}
		for i, real := range offered[:total] {
			store(array, uint32(i), real)
		}
	}
	count.set32(0, total)
	return status, false, nil
}

// offered returns the one physical device that is offered, or none if there is
// none like that.
func (r *renderer) offered(c *call) ([]uint64, vk.Result) {
	all, result := r.caller.physicalDevices(r.proc(int(registry.VkEnumeratePhysicalDevices), c.first), c.first.real)
	if result < 0 {
		return nil, result
	}
	var names, uuids []string
	for _, real := range all {
		name, uuid := r.caller.identity(r.proc(int(registry.VkGetPhysicalDeviceProperties2), c.first), real)
		names, uuids = append(names, name), append(uuids, uuid)
	}
	if i := choose(r.cfg.Device, names, uuids); i >= 0 {
		return all[i : i+1], vk.Success
	}
	r.cfg.Log.Warn("vulkan: no such GPU", "want", r.cfg.Device, "have", names)
	return nil, vk.Success
}

// choose returns the index of the device that is wanted, or -1.
func choose(want string, names, uuids []string) int {
	lower := strings.ToLower(want)
	if i, err := strconv.Atoi(want); err == nil && i >= 0 && i < len(names) {
		return i
	}
	begins := func(uuid string) bool {
		return uuid != "" && strings.HasPrefix(uuid, strings.ReplaceAll(lower, "-", ""))
	}
	if i := slices.IndexFunc(uuids, begins); i >= 0 {
		return i
	}
	return slices.IndexFunc(names, func(name string) bool { return strings.Contains(strings.ToLower(name), lower) })
}

// physicalDevices calls vkEnumeratePhysicalDevices.
func (c *caller) physicalDevices(proc uintptr, instance uint64) ([]uint64, vk.Result) {
	count := new(uint32)
	if result := c.call(proc, instance, address(count), 0); result < 0 {
		return nil, result
	}
	list := make([]uint64, int(*count)+1)
	result := c.call(proc, instance, address(count), address(&list[0]))
	runtime.KeepAlive(list)
	return list[:min(int(*count), len(list))], result
}

// identity returns the name of a physical device, and its UUID as hexadecimal
// digits.
func (c *caller) identity(proc uintptr, physical uint64) (name, uuid string) {
	if proc == 0 {
		return "", ""
	}
	id := new([8]uint64{1000071004})                 // VkPhysicalDeviceIDProperties
	all := new([105]uint64{1000059001, address(id)}) // VkPhysicalDeviceProperties2
	c.call(proc, physical, address(all))
	name = cText(structure(address(all)).bytes(16+20, 256))
	uuid = hex.EncodeToString(structure(address(id)).bytes(16, 16))
	runtime.KeepAlive(id)
	runtime.KeepAlive(all)
	return name, uuid
}
