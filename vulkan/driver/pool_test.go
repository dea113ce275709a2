// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"io"
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

const (
	uniformBuffer  = 6
	storageBuffer  = 7
	fragmentedPool = -12
)

// counting has the driver count round trips, and returns how many there have
// been.
func (a *app) counting() func() int {
	a.d.trace, a.d.cfg.Trace = newTrace(), io.Discard
	return func() int {
		n := uint64(0)
		for i := range a.d.trace.trips {
			n += a.d.trace.trips[i].Load()
		}
		return int(n)
	}
}

// setLayout makes a layout of one binding of n descriptors.
func (a *app) setLayout(device uint64, kind, n uint32) uint64 {
	a.t.Helper()
	binding := a.words(two(0, kind), two(n, 0x20), 0)
	return a.make(registry.VkCreateDescriptorSetLayout, device, a.words(sSetLayout, 0, two(0, 1), binding), 0)
}

// setPool makes a pool of sets and, of each type, n descriptors.
func (a *app) setPool(device uint64, sets uint32, sizes ...uint64) uint64 {
	a.t.Helper()
	info := a.words(sPoolSets, 0, two(1, sets), uint64(len(sizes)), a.words(append(sizes, 0)...))
	return a.make(registry.VkCreateDescriptorPool, device, info, 0)
}

// sets allocates one set of each layout; it returns where they are.
func (a *app) sets(device, pool uint64, layouts ...uint64) (at uint64, result int32) {
	at = a.room(8 * len(layouts))
	for i := range layouts {
		store64(at+8*uint64(i), 0xdead)
	}
	result = a.call(registry.VkAllocateDescriptorSets, device, a.words(sAllocateSets, 0, pool, uint64(len(layouts)), a.words(layouts...)), at)
	return at, result
}

// What the specification guarantees of a pool costs no round trip; what it does
// not, the real pool decides.
func TestDescriptorPools(t *testing.T) {
	var verdict, asked atomic.Int32 // the real pool's, and of how many sets
	verdict.Store(outOfPoolMemory)
	asked.Store(1)
	s := newScene(t, false, func(p *peer, m stream.Message) bool {
		if registry.Index(m.Op) == registry.VkAllocateDescriptorSets && m.Has(stream.FlagReply) {
			made, real := byte(1), verdict.Load()
			if real < 0 {
				made = 0
			}
			reply := []byte{byte(real), byte(real >> 8), byte(real >> 16), byte(real >> 24)}
			p.reply(m, append(reply, bytes.Repeat([]byte{made}, int(asked.Load()))...))
			return true
		}
		return false
	})
	trips := s.counting()
	two2, three := s.setLayout(s.device, uniformBuffer, 2), s.setLayout(s.device, uniformBuffer, 3)
	other := s.setLayout(s.device, storageBuffer, 1)
	pool := s.setPool(s.device, 4, two(uniformBuffer, 4), two(storageBuffer, 1), two(uniformBuffer, 3))
	expect := func(name string, want int32, waits int, layouts ...uint64) uint64 {
		t.Helper()
		before := trips()
		at, r := s.sets(s.device, pool, layouts...)
		if r != want || trips()-before != waits {
			t.Errorf("%s: VkResult %d, %d round trips; want %d, %d", name, r, trips()-before, want, waits)
		}
		for i := range layouts {
			if h := load64(at + 8*uint64(i)); (h == 0) != (want < 0) || h == 0xdead {
				t.Errorf("%s: handle %#x", name, h)
			}
		}
		return at
	}
	first := expect("two", success, 0, two2, three)
	second := expect("a third", success, 0, two2)
	expect("one descriptor too many", outOfPoolMemory, 1, two2)
	verdict.Store(success) // this one holds more than it must
	more := expect("one more", success, 1, two2)
	s.must(registry.VkFreeDescriptorSets, s.device, pool, 1, more)
	verdict.Store(outOfPoolMemory)
	expect("a type that is there", outOfPoolMemory, 1, other) // after a free, and not alike
	verdict.Store(fragmentedPool)
	s.must(registry.VkFreeDescriptorSets, s.device, pool, 1, second)
	expect("after a free", fragmentedPool, 1, two2)
	s.must(registry.VkResetDescriptorPool, s.device, pool, 0)
	if s.d.objects.get(load64(first)) != nil {
		t.Error("a set has survived its pool's reset")
	}
	expect("after a reset", success, 0, other)
	expect("no such type any more", fragmentedPool, 1, other)
	s.must(registry.VkResetDescriptorPool, s.device, pool, 0)
	// Alike: never fragmented.
	sets := expect("alike", success, 0, two2)
	s.must(registry.VkFreeDescriptorSets, s.device, pool, 1, sets)
	expect("alike again", success, 0, two2)
	expect("alike still", success, 0, two2)
	expect("not alike", fragmentedPool, 1, three)
	// More sets than it holds.
	tiny := s.setPool(s.device, 1, two(uniformBuffer, 100))
	pool = tiny
	asked.Store(2)
	expect("more sets", fragmentedPool, 1, two2, two2)
	asked.Store(1)
	expect("one set", success, 0, two2)
	// Bytes of inline uniform blocks, and bindings of them.
	block := s.setLayout(s.device, inlineBlock, 64)
	inline := s.words(poolInline, 0, 1)
	pool = s.make(registry.VkCreateDescriptorPool, s.device, s.words(sPoolSets, inline, two(1, 8), 1, s.words(two(inlineBlock, 256))), 0)
	expect("inline", success, 0, block)
	expect("a second binding", fragmentedPool, 1, block)
	s.call(registry.VkDestroyDescriptorPool, s.device, pool, 0)
	s.must(registry.VkDeviceWaitIdle, s.device)
}
