// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"slices"
	"testing"

	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// Memory that is not host-visible is not mapped, and nothing is sent: Mesa's
// software driver has no such memory. Nor are ranges beyond the memory.
func TestMapRefused(t *testing.T) {
	const deviceLocal = 1
	carrier, arena := codec.New(), codec.NewArena()
	env := &codec.Env{Real: func(registry.Index, uint64) (uint64, bool) { return 1, true }}
	s := newScene(t, false, func(p *peer, m stream.Message) bool {
		if m.Op != stream.Op(registry.VkGetPhysicalDeviceMemoryProperties) {
			return false
		}
		var args registry.Args
		c := &registry.Commands[m.Op]
		if _, err := carrier.ReadCall(m.Body, c, &args, arena, env); err != nil {
			p.t.Error(err)
		}
		// VkPhysicalDeviceMemoryProperties: {typeCount, 32 × {flags, heap}, …}
		store32(args[1], 2)
		store32(args[1]+4, deviceLocal)
		store32(args[1]+12, hostVisible|hostCoherent)
		reply, err := carrier.AppendReply(nil, c, &args, 0, env)
		if err != nil {
			p.t.Error(err)
		}
		p.reply(m, reply)
		return true
	})
	allocate := func(kind uint32) uint64 {
		return s.make(registry.VkAllocateMemory, s.device, s.words(sAllocate, 0, 1<<20, uint64(kind)), 0)
	}
	hidden, visible := allocate(0), allocate(1)
	data := s.words(0)
	before := s.p.ops()
	for _, c := range []struct{ memory, offset, size uint64 }{
		{hidden, 0, wholeSize}, {visible, 1 << 20, wholeSize}, {visible, 4096, 1 << 20}, {visible, wholeSize - 4095, 4096}, {visible, 4096, wholeSize - 4095}, {7, 0, wholeSize},
	} {
		if r := s.call(registry.VkMapMemory, s.device, c.memory, c.offset, c.size, 0, data); r != mapFailed {
			t.Errorf("mapping [%#x, +%#x) of %#x: VkResult %d", c.offset, c.size, c.memory, r)
		}
	}
	if after := s.p.ops(); !slices.Equal(before, after) {
		t.Errorf("messages for that: %v, before %v", after, before)
	}
	s.must(registry.VkMapMemory, s.device, visible, 0, wholeSize, 0, data)
	if load64(data) == 0 {
		t.Error("mapped nowhere")
	}
}
