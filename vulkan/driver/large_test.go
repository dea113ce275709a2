// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"strings"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// What the driver may refuse for want of something is waited for, and a refusal
// costs no more than the object. Nothing else is waited for.
func TestRefusedCreate(t *testing.T) {
	const outOfDeviceMemory = -2
	s := newScene(t, false, func(p *peer, m stream.Message) bool {
		switch registry.Index(m.Op) {
		case registry.VkCreateBuffer, registry.VkCreateImage, registry.VkCreateQueryPool, registry.VkCreateDescriptorPool:
			if m.Has(stream.FlagReply) {
				p.reply(m, []byte{0xfe, 0xff, 0xff, 0xff, 0})
				return true
			}
		}
		return false
	})
	trips := s.counting()
	// {sType, pNext, flags, type, format, extent, levels, layers, samples, tiling, usage, sharing, count, families, layout}
	image := func(width, height, depth, layers, samples uint32) uint64 {
		return s.words(14, 0, two(0, 1), two(37, width), two(height, depth), two(1, layers), two(samples, 0), two(3, 0), 0, 0xbad, 0)
	}
	buffer := func(size uint64) uint64 { return s.words(sBuffer, 0, 0, size, two(3, 0), 0, 0) }
	queries := func(n uint32) uint64 { return s.words(11, 0, two(0, 2), two(n, 0)) }
	sets := func(sets uint32, counts ...uint32) uint64 {
		var sizes []uint64
		for i, n := range counts {
			sizes = append(sizes, two(uint32(i), n))
		}
		return s.words(sPoolSets, 0, two(0, sets), uint64(len(sizes)), s.words(sizes...))
	}
	const none = ^uint32(0)
	for _, c := range []struct {
		what    string
		cmd     registry.Index
		info    uint64
		refused bool
	}{
		{"a buffer", registry.VkCreateBuffer, buffer(256 << 20), false},
		{"a large buffer", registry.VkCreateBuffer, buffer(256<<20 + 1), true},
		{"a buffer without end", registry.VkCreateBuffer, buffer(forEver), true},
		{"an image", registry.VkCreateImage, image(4096, 4096, 1, 4, 1), false},
		{"a deep image", registry.VkCreateImage, image(256, 256, 256, 1, 4), false},
		{"an image of many layers", registry.VkCreateImage, image(256, 256, 1, 256, 4), false},
		{"a wide image", registry.VkCreateImage, image(4097, 1, 1, 1, 1), true},
		{"a high image", registry.VkCreateImage, image(1, 4097, 1, 1, 1), true},
		{"too deep an image", registry.VkCreateImage, image(1, 1, 257, 1, 1), true},
		{"too many layers", registry.VkCreateImage, image(1, 1, 1, 257, 1), true},
		{"too many samples", registry.VkCreateImage, image(1, 1, 1, 1, 8), true},
		{"too many texels", registry.VkCreateImage, image(4096, 4096, 1, 5, 1), true},
		{"an image without end", registry.VkCreateImage, image(none, none, none, none, none), true},
		{"queries", registry.VkCreateQueryPool, queries(1 << 16), false},
		{"many queries", registry.VkCreateQueryPool, queries(1<<16 + 1), true},
		{"descriptors", registry.VkCreateDescriptorPool, sets(1<<10, 1<<19, 1<<18), false},
		{"many descriptors", registry.VkCreateDescriptorPool, sets(1, 1<<19, 1<<19), true},
		{"many sets", registry.VkCreateDescriptorPool, sets(none, 1), true},
	} {
		before, objects, handle := trips(), s.d.objects.count(), s.words(0xdead)
		r := s.call(c.cmd, s.device, c.info, 0, handle)
		switch after := s.d.objects.count(); {
		case c.refused && (r != outOfDeviceMemory || load64(handle) != 0 || after != objects):
			t.Errorf("%s: VkResult %d, handle %#x, %d objects more", c.what, r, load64(handle), after-objects)
		case !c.refused && (r != success || load64(handle) == 0 || trips() != before):
			t.Errorf("%s: VkResult %d, handle %#x, %d round trips", c.what, r, load64(handle), trips()-before)
		}
	}
	s.must(registry.VkDeviceWaitIdle, s.device)
	if log := s.logged(); strings.Contains(log, "lost") {
		t.Errorf("log:\n%s", log)
	}
}
