// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

func TestChoose(t *testing.T) {
	names, uuids := []string{"Radeon X", "GeForce 9", "llvmpipe"}, []string{"aa11bb", "9922", ""}
	for want, index := range map[string]int{"0": 0, "2": 2, "aa-11": 0, "9922": 1, "geforce": 1, "LLVM": 2, "7": -1, "intel": -1} {
		if got := choose(want, names, uuids); got != index {
			t.Errorf("%q: %d, want %d", want, got, index)
		}
	}
}

// One GPU is offered, or none; groups agree.
func TestOfferedDevice(t *testing.T) {
	for want, n := range map[string]uint64{"0": 1, "no such thing": 0} {
		c := begin(t, Config{Device: want, Log: quiet})
		instance := c.made(registry.VkInstance, registry.VkCreateInstance, c.mem(1, 0, 0, 0, 0, 0, 0, 0), 0)
		count := c.mem(9)
		c.do(registry.VkEnumeratePhysicalDevices, instance, count, 0)
		if got := uint64(structure(count).u32(0)); got != n {
			t.Fatalf("%q: %d devices, want %d", want, got, n)
		}
		groups := c.mem(9)
		c.do(registry.VkEnumeratePhysicalDeviceGroups, instance, groups, 0)
		if got := uint64(structure(groups).u32(0)); got != n {
			t.Errorf("%q: %d groups", want, got)
		}
		if n == 0 {
			continue
		}
		out := c.mem(c.handle(registry.VkPhysicalDevice))
		c.do(registry.VkEnumeratePhysicalDevices, instance, count, out)
		list := c.mem(append([]uint64{1000070000}, make([]uint64, 35)...)...)
		c.do(registry.VkEnumeratePhysicalDeviceGroups, instance, groups, list)
		if structure(list).u32(16) != 1 || structure(list).u64(24) != idOf(registry.VkPhysicalDevice, word(out)) {
			t.Errorf("the group has %d devices, the first %#x", structure(list).u32(16), structure(list).u64(24))
		}
	}
}

// What is used is reported, but not at every step.
func TestReport(t *testing.T) {
	var reports []Usage
	c := begin(t, Config{Report: func(u Usage) { reports = append(reports, u) }})
	c.workload(4096)
	c.stopServing()
	if len(reports) == 0 || len(reports) > 5 {
		t.Fatalf("%d reports", len(reports))
	}
	c.r.reportedAt = c.r.reportedAt.Add(-reportEvery)
	c.r.report()
	if last := reports[len(reports)-1]; last.Device == "" || last.Memory < 4096 || last.Objects != c.r.table.count {
		t.Errorf("%+v", last)
	}
}
