// SPDX-License-Identifier: Apache-2.0

package vk

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
)

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		(MakeVersion(1, 3) | 230).String():       "1.3.230",
		DiscreteGPU.String():                     "discrete",
		DeviceType(9).String():                   "DeviceType(9)",
		(DeviceLocal | HostCached).String():      "device-local|host-cached",
		MemoryFlags(0).String():                  "0x0",
		(HostVisible | 0x80).String():            "host-visible|0x80",
		(Graphics | Transfer).String():           "graphics|transfer",
		ErrDeviceLost.Error():                    "VK_ERROR_DEVICE_LOST",
		Result(-77).Error():                      "VkResult(-77)",
		(&Error{"vkMapMemory", Timeout}).Error(): "vkMapMemory: VK_TIMEOUT",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if err := fmt.Errorf("wrapped: %w", &Error{"vkQueueSubmit", ErrDeviceLost}); !errors.Is(err, ErrDeviceLost) || errors.Is(err, ErrOutOfDeviceMemory) {
		t.Error("errors.Is does not find the result")
	}
}

func TestDeviceInfoJSON(t *testing.T) {
	want := DeviceInfo{
		Index: 1, Name: "n", Type: IntegratedGPU, API: MakeVersion(1, 2) | 3, UUID: "00ff", Driver: "d", DriverVersion: 4, Vendor: 5, Device: 6,
		Heaps: []Heap{{Size: 7, DeviceLocal: true}}, Types: []MemoryType{{Heap: 0, Flags: HostVisible}}, Queues: []QueueFamily{{Flags: Compute, Count: 8}},
		MaxAllocations: 9, NonCoherentAtom: 64,
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got DeviceInfo
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s became %+v, %v", text, got, err)
	}
	if err := json.Unmarshal([]byte(`{"api": "new"}`), &got); err == nil {
		t.Error("a version of no form was accepted")
	}
}
