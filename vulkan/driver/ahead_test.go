// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// From nothing to a device takes three round trips, besides the greeting: one
// for what is asked before there is an instance, the instance, and the device.
func TestStartUp(t *testing.T) {
	a := newApp(t, withWorker(t))
	trips := a.counting()
	o := a.everything()
	for cmd, size := range map[registry.Index]int{
		registry.VkGetPhysicalDeviceFeatures: 220, registry.VkGetPhysicalDeviceMemoryProperties: 520,
	} {
		a.call(cmd, o.physical, a.room(size))
	}
	count := a.words(0)
	a.call(registry.VkGetPhysicalDeviceQueueFamilyProperties, o.physical, count, 0)
	n := load32(count)
	families := a.room(queueFamily * int(n+1))
	store32(count, n+1)
	a.call(registry.VkGetPhysicalDeviceQueueFamilyProperties, o.physical, count, families)
	if n == 0 || load32(count) != n || load32(families) == 0 {
		t.Errorf("%d families, then %d", n, load32(count))
	}
	device := a.device(o.physical)
	if trips() > 3 {
		t.Errorf("%d round trips", trips())
	}
	a.call(registry.VkDestroyDevice, device, 0)
	a.call(registry.VkDestroyInstance, o.instance, 0)
}

// What was refused because it was asked too early is asked again.
func TestAskedAheadInVain(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		var asked int // the peer's goroutine's
		cfg, peers := withPeer(t, pipes, func(p *peer, m stream.Message) bool {
			switch registry.Index(m.Op) {
			case registry.VkEnumerateInstanceVersion:
				if asked++; asked == 1 {
					p.send(m.Op, stream.FlagReply|stream.FlagFailed, m.Serial, stream.AppendFailed(nil, outOfHostMemory, "not yet"))
				} else {
					p.reply(m, []byte{0, 0, 0, 0, 0, 0x30, 0x40, 0})
				}
				return true
			case registry.VkEnumeratePhysicalDevices:
				p.send(m.Op, stream.FlagReply|stream.FlagFailed, m.Serial, stream.AppendFailed(nil, initFailed, "never"))
				return true
			}
			return false
		})
		a := newApp(t, cfg)
		version := a.words(0)
		a.must(registry.VkEnumerateInstanceVersion, version)
		if load32(version) != 0x403000 {
			t.Errorf("version %#x", load32(version))
		}
		instance := a.instance()
		<-peers
		for range 2 { // the listing that was asked ahead, and one more
			if r := a.call(registry.VkEnumeratePhysicalDevices, instance, a.words(0), 0); r != initFailed {
				t.Errorf("%d", r)
			}
		}
		if n := a.d.objects.count(); n != 1 {
			t.Errorf("%d objects", n)
		}
		a.call(registry.VkDestroyInstance, instance, 0)
	})
}
