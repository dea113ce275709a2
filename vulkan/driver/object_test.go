// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// A handle of what was destroyed names nothing, though its index is another
// object's now.
func TestStaleHandles(t *testing.T) {
	s := newScene(t, false, nil)
	old := s.fence(s.device)
	s.call(registry.VkDestroyFence, s.device, old, 0)
	event := s.make(registry.VkCreateEvent, s.device, s.words(sEvent, 0, 0), 0)
	if uint32(event) != uint32(old) || event == old {
		t.Fatalf("%#x after %#x", event, old)
	}
	for _, handle := range []uint64{old, event, 0x1234, ^uint64(0), 1 << 32} {
		if r := s.call(registry.VkGetFenceStatus, s.device, handle); r != deviceLost {
			t.Errorf("fence %#x: %d", handle, r)
		}
		s.call(registry.VkDestroyFence, s.device, handle, 0)
	}
	if r := s.call(registry.VkGetEventStatus, s.device, event); r != eventReset {
		t.Errorf("the event was destroyed as a fence: %d", r)
	}
	for round := range 1000 { // generations count up, indices stay
		f := s.fence(s.device)
		if uint32(f) > uint32(event)+1 || f == old {
			t.Fatalf("round %d: %#x", round, f)
		}
		s.call(registry.VkDestroyFence, s.device, f, 0)
	}
}

// The worker's limit is an error of the call that exceeds it, not the device's
// end.
func TestObjectLimit(t *testing.T) {
	s := newScene(t, false, nil)
	s.d.objects.limit.Store(int64(s.d.objects.count()) + 2)
	a, b := s.fence(s.device), s.fence(s.device)
	out := s.words(0)
	if r := s.call(registry.VkCreateFence, s.device, s.words(sFence, 0, 0), 0, out); r != outOfHostMemory || load64(out) != 0 {
		t.Errorf("one too many: %d, handle %#x", r, load64(out))
	}
	s.call(registry.VkDestroyFence, s.device, a, 0)
	s.fence(s.device)
	if r := s.call(registry.VkGetFenceStatus, s.device, b); r != notReady {
		t.Errorf("%d", r)
	}
}

// Pipelines may be made in part: those that were not have no handle.
func TestPipelinesInPart(t *testing.T) {
	const compileRequired = 1000297000
	var verdict atomic.Int32
	s := newScene(t, false, func(p *peer, m stream.Message) bool {
		if registry.Index(m.Op) != registry.VkCreateComputePipelines {
			return false
		}
		result := verdict.Load()
		p.reply(m, []byte{byte(result), byte(result >> 8), byte(result >> 16), byte(result >> 24), 1, 0, 1})
		return true
	})
	// {sType, pNext, flags, stage {…, pName, pSpecializationInfo}, layout, base, index}
	infos := s.room(3 * 96)
	for i := range uint64(3) {
		store32(infos+96*i, 29)
		store32(infos+96*i+24, 18)
		store64(infos+96*i+24+32, s.text("main"))
	}
	before := s.d.objects.count()
	for _, want := range []int32{compileRequired, -1} {
		verdict.Store(want)
		out := s.words(1, 2, 3)
		if r := s.call(registry.VkCreateComputePipelines, s.device, 0, 3, infos, 0, out); r != want {
			t.Errorf("%d", r)
		}
		for i, made := range []bool{true, false, true} {
			h := load64(out + 8*uint64(i))
			if o := s.d.objects.of(registry.VkPipeline, h); (o != nil) != made || (h != 0) != made {
				t.Errorf("%d: pipeline %d is %#x", want, i, h)
			}
			s.call(registry.VkDestroyPipeline, s.device, h, 0)
		}
		if n := s.d.objects.count(); n != before {
			t.Errorf("%d objects are left", n-before)
		}
	}
}

// Private data is by slot and object, and of this side.
func TestPrivateData(t *testing.T) {
	s := newScene(t, false, nil)
	trips := s.counting()
	slots := [2]uint64{}
	for i := range slots {
		slots[i] = s.make(registry.VkCreatePrivateDataSlot, s.device, s.words(1000295002, 0, 0), 0)
	}
	const fence, queue = 7, 4
	f := s.fence(s.device)
	get := func(kind, object, slot uint64) uint64 {
		out := s.words(0xdead)
		s.call(registry.VkGetPrivateData, s.device, kind, object, slot, out)
		return load64(out)
	}
	s.must(registry.VkSetPrivateData, s.device, fence, f, slots[0], 11)
	s.must(registry.VkSetPrivateData, s.device, queue, s.queue, slots[0], 12)
	s.must(registry.VkSetPrivateData, s.device, fence, f, slots[1], 13)
	if a, b, c, d := get(fence, f, slots[0]), get(queue, s.queue, slots[0]), get(fence, f, slots[1]), get(queue, s.queue, slots[1]); a != 11 || b != 12 || c != 13 || d != 0 {
		t.Errorf("%d %d %d %d", a, b, c, d)
	}
	s.call(registry.VkDestroyFence, s.device, f, 0)
	if again := s.fence(s.device); get(fence, again, slots[0]) != 0 {
		t.Error("a new object has the data of an old one")
	}
	// What destroyed objects had is forgotten some time.
	for range 10 * fewData {
		one := s.fence(s.device)
		s.must(registry.VkSetPrivateData, s.device, fence, one, slots[0], 14)
		s.call(registry.VkDestroyFence, s.device, one, 0)
	}
	if n := len(s.d.objects.get(slots[0]).state.(*privateSlot).data); n > 2*fewData || get(queue, s.queue, slots[0]) != 12 {
		t.Errorf("%d data of one object", n)
	}
	s.call(registry.VkDestroyPrivateDataSlot, s.device, slots[0], 0)
	if trips() != 0 {
		t.Errorf("%d round trips", trips())
	}
	for _, op := range s.p.ops() {
		if op >= 0 && registry.Commands[op].Name == "vkSetPrivateData" {
			t.Error("it was sent")
		}
	}
}

// The same queue has the same handle, however it is asked for.
func TestQueues(t *testing.T) {
	s := newScene(t, false, nil)
	if again := s.make(registry.VkGetDeviceQueue, s.device, 0, 0); again != s.queue {
		t.Errorf("%#x, then %#x", s.queue, again)
	}
	second := s.make(registry.VkGetDeviceQueue2, s.device, s.words(1000145003, 0, two(0, 0), 0))
	if second != s.queue {
		t.Errorf("%#x, then %#x", s.queue, second)
	}
	if other := s.make(registry.VkGetDeviceQueue, s.device, 0, 1); other == s.queue {
		t.Error("two queues are one")
	}
	s.must(registry.VkDeviceWaitIdle, s.device)
	if n := len(s.p.waitFor(registry.VkGetDeviceQueue, 1)); n != 2 {
		t.Errorf("asked for %d times", n)
	}
}

// Buffers and images that are made alike have their requirements asked for once.
func TestRequirementsAreKept(t *testing.T) {
	s := newScene(t, false, func(p *peer, m stream.Message) bool {
		switch registry.Index(m.Op) {
		case registry.VkGetBufferMemoryRequirements, registry.VkGetImageMemoryRequirements:
			p.reply(m, append([]byte{0, 1, 0, 0, 0, 0, 0, 0, 16}, make([]byte, 15)...))
			return true
		}
		return false
	})
	trips := s.counting()
	ask := func(size uint64, want int) {
		t.Helper()
		before := trips()
		buffer := s.make(registry.VkCreateBuffer, s.device, s.words(sBuffer, 0, 0, size, two(3, 0), 0, 0xbad), 0)
		need := s.room(24)
		s.call(registry.VkGetBufferMemoryRequirements, s.device, buffer, need)
		if load64(need) != 256 || load64(need+8) != 16 || trips()-before != want {
			t.Errorf("size %d, alignment %d, %d round trips; want %d", load64(need), load64(need+8), trips()-before, want)
		}
		s.call(registry.VkDestroyBuffer, s.device, buffer, 0)
	}
	ask(100, 1)
	ask(100, 0)
	ask(200, 1)
	ask(100, 0)
	image := func(width uint32, want int) {
		t.Helper()
		before := trips()
		// {sType, pNext, flags, type, format, extent, levels, layers, samples, tiling, usage, sharing, count, families, layout}
		info := s.words(14, 0, two(0, 1), two(37, width), two(8, 1), two(1, 1), two(1, 0), two(3, 0), 0, 0xbad, 0)
		one := s.make(registry.VkCreateImage, s.device, info, 0)
		s.call(registry.VkGetImageMemoryRequirements, s.device, one, s.room(24))
		if trips()-before != want {
			t.Errorf("width %d: %d round trips, want %d", width, trips()-before, want)
		}
	}
	image(8, 1)
	image(8, 0)
	image(9, 1)
}

// vkGetDeviceProcAddr knows which version and which extensions a device has.
func TestDeviceProcAddr(t *testing.T) {
	s := newScene(t, false, nil)
	o := s.d.objects.of(registry.VkDevice, s.device)
	o.parent.state.(*physicalState).version.Store(version(12))
	o.device.extensions["VK_EXT_multi_draw"] = true
	for name, want := range map[string]bool{
		"vkCreateBuffer":                 true,
		"vkBindBufferMemory2":            true,  // 1.1
		"vkWaitSemaphores":               true,  // 1.2
		"vkQueueSubmit2":                 false, // 1.3
		"vkCmdDrawMultiEXT":              true,
		"vkCmdPushDescriptorSetKHR":      false, // not enabled
		"vkBindBufferMemory2KHR":         false,
		"vkCreateSwapchainKHR":           false, // in no table
		"vkCmdSetViewportSwizzleNV":      false,
		"vkGetPhysicalDeviceFeatures2KH": false,
		"":                               false,
	} {
		if got := s.call(registry.VkGetDeviceProcAddr, s.device, s.text(name)) != 0; got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
	if s.call(registry.VkGetDeviceProcAddr, s.words(0, 77), s.text("vkBindBufferMemory2")) != 0 {
		t.Error("a device that is not there has it")
	}
}
