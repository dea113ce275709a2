// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"strings"
	"testing"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/tier"
)

const (
	dl = vk.DeviceLocal
	hv = vk.HostVisible
	hc = vk.HostCoherent
	hd = vk.HostCached
)

// Memory tables as drivers of these kinds report them.
var (
	gib        = int64(1 << 30)
	discrete   = []vk.Heap{{Size: 24 * gib, DeviceLocal: true}, {Size: 32 * gib}, {Size: 214 << 20, DeviceLocal: true}}
	nvidia     = DeviceInfo{Name: "window", Heaps: discrete, Types: []vk.MemoryType{{Heap: 1}, {Heap: 0, Flags: dl}, {Heap: 1, Flags: hv | hc}, {Heap: 1, Flags: hv | hc | hd}, {Heap: 2, Flags: dl | hv | hc}}}
	resizable  = DeviceInfo{Name: "resizable", Heaps: discrete[:2], Types: []vk.MemoryType{{Heap: 1}, {Heap: 0, Flags: dl}, {Heap: 1, Flags: hv | hc}, {Heap: 1, Flags: hv | hc | hd}, {Heap: 0, Flags: dl | hv | hc}}}
	amd        = DeviceInfo{Name: "vendor flags", Heaps: discrete[:2], Types: []vk.MemoryType{{Heap: 0, Flags: dl | hv | hc | 0x40 | 0x80}, {Heap: 0, Flags: dl}, {Heap: 1, Flags: hv | hc | hd | 0x40}, {Heap: 1, Flags: hv | hc | hd}}}
	integrated = DeviceInfo{Name: "integrated", Heaps: []vk.Heap{{Size: 12 * gib, DeviceLocal: true}}, Types: []vk.MemoryType{{Flags: dl}, {Flags: dl | hv | hc}, {Flags: dl | hv | hc | hd}}}
	phone      = DeviceInfo{Name: "never cached", Heaps: []vk.Heap{{Size: 4 * gib, DeviceLocal: true}}, Types: []vk.MemoryType{{Flags: dl}, {Flags: dl | hv | hc}}}
	incoherent = DeviceInfo{Name: "cached or coherent", Heaps: []vk.Heap{{Size: 4 * gib, DeviceLocal: true}}, Types: []vk.MemoryType{{Flags: dl | hv | hc}, {Flags: dl | hv | hd}}}
	software   = DeviceInfo{Name: "software", Heaps: []vk.Heap{{Size: 2 * gib, DeviceLocal: true}}, Types: []vk.MemoryType{{Flags: dl | hv | hc | hd}}}
)

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		info                       DeviceInfo
		hideVisible, hideCoherent  bool
		local, host, wantedStaging kind
	}{
		{info: nvidia, local: kind{Type: 1, Coherent: false}, host: kind{3, true, true, true}, wantedStaging: kind{3, true, true, true}},
		{info: resizable, local: kind{Type: 4, Mapped: true, Coherent: true}, host: kind{3, true, true, true}, wantedStaging: kind{3, true, true, true}},
		{info: amd, local: kind{Type: 1}, host: kind{3, true, true, true}, wantedStaging: kind{3, true, true, true}},
		{info: integrated, local: kind{2, true, true, true}, host: kind{2, true, true, true}, wantedStaging: kind{2, true, true, true}},
		{info: phone, local: kind{1, true, true, true}, host: kind{1, true, true, true}, wantedStaging: kind{1, true, false, true}},
		{info: incoherent, local: kind{1, true, true, false}, host: kind{1, true, true, false}, wantedStaging: kind{1, true, true, false}},
		{info: software, local: kind{0, true, true, true}, host: kind{0, true, true, true}, wantedStaging: kind{0, true, true, true}},
		{info: software, hideCoherent: true, local: kind{0, true, true, false}, host: kind{0, true, true, false}, wantedStaging: kind{0, true, true, false}},
		{info: software, hideVisible: true, local: kind{0, false, false, true}, host: kind{0, true, true, true}, wantedStaging: kind{0, true, true, true}},
	} {
		got, err := choose(c.info, func(int) bool { return true }, c.hideVisible, c.hideCoherent)
		if err != nil {
			t.Errorf("%s: %v", c.info.Name, err)
			continue
		}
		for p, want := range map[tier.Placement]kind{tier.AnyMemory: c.local, tier.DeviceLocal: c.local, tier.HostVisible: c.host} {
			if k := got.kinds[got.place[p]]; k != want {
				t.Errorf("%s: placement %d: %+v, want %+v", c.info.Name, p, k, want)
			}
		}
		if got.staging != c.wantedStaging {
			t.Errorf("%s: staging %+v, want %+v", c.info.Name, got.staging, c.wantedStaging)
		}
		if same := c.local == c.host; same != (len(got.kinds) == 1) {
			t.Errorf("%s: %d kinds", c.info.Name, len(got.kinds))
		}
	}
}

func TestChooseObeysTheBuffersTypes(t *testing.T) {
	got, err := choose(nvidia, func(i int) bool { return i != 3 }, false, false)
	if err != nil || got.staging.Type != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := choose(nvidia, func(i int) bool { return i < 2 }, false, false); err == nil {
		t.Error("a device without mappable memory was accepted")
	}
}

func TestSelectDevice(t *testing.T) {
	devices := []DeviceInfo{
		{Index: 0, Name: "llvmpipe (LLVM 15)", Type: vk.CPU, UUID: "6d657361"},
		{Index: 1, Name: "Intel Xe", Type: vk.IntegratedGPU, UUID: "1aa0"},
		{Index: 2, Name: "NVIDIA L4", Type: vk.DiscreteGPU, UUID: "0ddb"},
	}
	for want, index := range map[string]int{"": 2, "0": 0, "1": 1, "nvidia": 2, "LLVM": 0, "0D-DB": 2, "1aa": 1} {
		if d, err := selectDevice(devices, want); err != nil || d.Index != index {
			t.Errorf("%q: device %d, %v; want %d", want, d.Index, err, index)
		}
	}
	if d, _ := selectDevice(devices[:2], ""); d.Index != 0 {
		t.Errorf("without a discrete GPU: device %d, want the first", d.Index)
	}
	if _, err := selectDevice(devices, "voodoo"); err == nil || !strings.Contains(err.Error(), "2: NVIDIA L4") {
		t.Errorf("error does not name the devices there are: %v", err)
	}
}
