// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"fmt"
	"slices"
	"strings"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/tier"
)

// A kind is a way in which slabs are made: a memory type, and what the CPU may
// do with it.
type kind struct {
	Type     int  // index of the memory type
	Mapped   bool // the CPU writes it in place
	Cached   bool // the CPU reads it in place too
	Coherent bool // without flushes and invalidations
}

// choice is which kinds a device's placements and its staging chunks get.
type choice struct {
	kinds   []kind
	place   [3]int // index into kinds, by tier.Placement
	staging kind
}

// coreFlags are the flags of memory types that need no feature enabled.
const coreFlags = vk.DeviceLocal | vk.HostVisible | vk.HostCoherent | vk.HostCached

// choose picks memory types for buffers, which may be bound to those that
// allows reports.
func choose(info DeviceInfo, allows func(memoryType int) bool, hideVisible, hideCoherent bool) (choice, error) {
	// best returns the type with the highest score; a negative one disqualifies.
	best := func(score func(t vk.MemoryType) int64) (int, bool) {
		index, top := 0, int64(-1)
		for i, t := range info.Types {
			if t.Flags&^coreFlags != 0 || !allows(i) {
				continue
			}
			if s := score(t); s > top {
				index, top = i, s
			}
		}
		return index, top >= 0
	}
	flag := func(t vk.MemoryType, f vk.MemoryFlags, score int64) int64 {
		if t.Flags.Has(f) {
			return score
		}
		return 0
	}

	// What the CPU reads must be cached: reads of other mapped memory go over
	// the bus a few bytes at a time.
	host, ok := best(func(t vk.MemoryType) int64 {
		if !t.Flags.Has(vk.HostVisible) {
			return -1
		}
		return flag(t, vk.HostCached, 2) + flag(t, vk.HostCoherent, 1)
	})
	if !ok {
		return choice{}, fmt.Errorf("device %q has no memory that the CPU can map", info.Name)
	}
	// The largest heap is the device's own memory, not the window through which
	// the CPU sees a part of it. On it, a type that the CPU can map is better.
	local, ok := best(func(t vk.MemoryType) int64 {
		if !t.Flags.Has(vk.DeviceLocal) {
			return -1
		}
		return info.Heaps[t.Heap].Size&^7 + flag(t, vk.HostVisible, 4) + flag(t, vk.HostCached, 2) + flag(t, vk.HostCoherent, 1)
	})
	if !ok {
		local = host // an integrated device may have nothing nearer
	}

	kindOf := func(memoryType int) kind {
		f := info.Types[memoryType].Flags
		return kind{
			Type: memoryType, Mapped: f.Has(vk.HostVisible), Cached: f.Has(vk.HostVisible | vk.HostCached),
			Coherent: f.Has(vk.HostCoherent) && !hideCoherent,
		}
	}
	c := choice{staging: kindOf(host)}
	hostKind, localKind := kindOf(host), kindOf(local)
	if hideVisible {
		localKind.Mapped, localKind.Cached = false, false
	}
	if !c.staging.Cached { // staged reads would gain nothing
		hostKind.Cached, localKind.Cached = hostKind.Mapped, localKind.Mapped
	}
	c.kinds = []kind{localKind}
	c.place[tier.AnyMemory], c.place[tier.DeviceLocal], c.place[tier.HostVisible] = 0, 0, 0
	if hostKind != localKind {
		c.place[tier.HostVisible] = len(c.kinds)
		c.kinds = append(c.kinds, hostKind)
	}
	return c, nil
}

// selectDevice finds the device that Config.Device asks for.
func selectDevice(devices []DeviceInfo, want string) (DeviceInfo, error) {
	if want == "" {
		for _, d := range devices {
			if d.Type == vk.DiscreteGPU {
				return d, nil
			}
		}
		return devices[0], nil
	}
	lower := strings.ToLower(want)
	for _, matches := range []func(DeviceInfo) bool{
		func(d DeviceInfo) bool { return fmt.Sprint(d.Index) == want },
		func(d DeviceInfo) bool { return strings.HasPrefix(d.UUID, strings.ReplaceAll(lower, "-", "")) },
		func(d DeviceInfo) bool { return strings.Contains(strings.ToLower(d.Name), lower) },
	} {
		if i := slices.IndexFunc(devices, matches); i >= 0 {
			return devices[i], nil
		}
	}
	var have []string
	for _, d := range devices {
		have = append(have, fmt.Sprintf("%d: %s", d.Index, d.Name))
	}
	return DeviceInfo{}, fmt.Errorf("no device is %q by index, UUID or name; there are %s", want, strings.Join(have, ", "))
}
