// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"maps"

	"github.com/memspan/memspan/vulkan/registry"
)

// A setLayout says what a descriptor set takes of its pool.
type setLayout struct {
	descriptors map[uint32]uint32 // by VkDescriptorType; bytes of inline uniform blocks
	// A last binding whose number each set says: of how many at most it is
	// part of descriptors.
	variable     bool
	variableType uint32
	variableMax  uint32

	inline  uint32 // bindings that are inline uniform blocks
	mutable bool   // there are descriptors whose type may change
}

const (
	inlineBlock        = 1000138000 // VK_DESCRIPTOR_TYPE_INLINE_UNIFORM_BLOCK
	mutableType        = 1000351000 // VK_DESCRIPTOR_TYPE_MUTABLE_EXT
	poolInline         = 1000138003 // VkDescriptorPoolInlineUniformBlockCreateInfo
	layoutBindingFlags = 1000161000 // VkDescriptorSetLayoutBindingFlagsCreateInfo
	variableCount      = 8          // VK_DESCRIPTOR_BINDING_VARIABLE_DESCRIPTOR_COUNT_BIT
	variableCounts     = 1000161003 // VkDescriptorSetVariableDescriptorCountAllocateInfo
)

// newSetLayout reads a VkDescriptorSetLayoutCreateInfo: {sType, pNext, flags,
// bindingCount, pBindings}, a binding {binding, type, count, stages,
// pImmutableSamplers}.
func newSetLayout(info uint64) *setLayout {
	s := &setLayout{descriptors: make(map[uint32]uint32)}
	var flags uint64
	n := uint64(load32(info + 20))
	if p := chained(info, layoutBindingFlags); p != 0 && uint64(load32(p+16)) == n {
		flags = load64(p + 24)
	}
	for i := range n {
		b := load64(info+24) + 24*i
		kind, count := load32(b+4), load32(b+8)
		s.descriptors[kind] += count
		if kind == inlineBlock && count > 0 {
			s.inline++
		}
		s.mutable = s.mutable || kind == mutableType
		if flags != 0 && load32(flags+4*i)&variableCount != 0 {
			s.variable, s.variableType, s.variableMax = true, kind, count
		}
	}
	return s
}

// A descriptorPool is what the specification guarantees of a VkDescriptorPool:
// what it was made for it holds, unless it is fragmented. It cannot be as long
// as no set has been freed, nor if all sets take the same. Whatever is not
// guaranteed the real pool decides, which may hold more, or be fragmented.
// Vulkan's rules let one thread at a time use it.
type descriptorPool struct {
	maxSets   uint32
	maxInline uint32
	sizes     map[uint32]uint32

	// Since it was made or reset:
	sets   uint32            // in use
	inline uint32            // bindings of them
	used   map[uint32]uint32 // descriptors of them
	freed  bool              // a set was
	shape  map[uint32]uint32 // what the first set took
	mixed  bool              // another took something else
}

// newDescriptorPool reads a VkDescriptorPoolCreateInfo: {sType, pNext, flags,
// maxSets, poolSizeCount, pPoolSizes}, a size {type, count}.
func newDescriptorPool(info uint64) *descriptorPool {
	p := &descriptorPool{maxSets: load32(info + 20), sizes: make(map[uint32]uint32), used: make(map[uint32]uint32)}
	for i := range uint64(load32(info + 24)) {
		size := load64(info+32) + 8*i
		p.sizes[load32(size)] += load32(size + 4)
	}
	if c := chained(info, poolInline); c != 0 {
		p.maxInline = load32(c + 16)
	}
	return p
}

// reset makes it as it was at first.
func (p *descriptorPool) reset() {
	p.sets, p.inline, p.freed, p.shape, p.mixed = 0, 0, false, nil, false
	clear(p.used)
}

// guarantees reports whether the allocation of sets succeeds for certain.
func (p *descriptorPool) guarantees(sets []*descriptorSet) bool {
	used, shape, mixed := maps.Clone(p.used), p.shape, p.mixed
	inline := uint64(p.inline)
	for _, s := range sets {
		if s.layout.mutable {
			return false
		}
		all := s.descriptors()
		for kind, n := range all {
			if uint64(used[kind])+uint64(n) > uint64(p.sizes[kind]) {
				return false
			}
			used[kind] += n
		}
		if shape == nil {
			shape = all
		}
		mixed = mixed || !maps.Equal(shape, all)
		inline += uint64(s.layout.inline)
	}
	return uint64(p.sets)+uint64(len(sets)) <= uint64(p.maxSets) && inline <= uint64(p.maxInline) && !(p.freed && mixed)
}

// take notes what the sets take.
func (p *descriptorPool) take(sets []*descriptorSet) {
	for _, s := range sets {
		all := s.descriptors()
		for kind, n := range all {
			p.used[kind] += n
		}
		if p.shape == nil {
			p.shape = all
		}
		p.mixed = p.mixed || !maps.Equal(p.shape, all)
		p.sets++
		p.inline += s.layout.inline
	}
}

// give takes back what a set took.
func (p *descriptorPool) give(s *descriptorSet) {
	p.freed = true
	p.sets--
	p.inline -= s.layout.inline
	for kind, n := range s.descriptors() {
		p.used[kind] -= n
	}
}

// A descriptorSet is a VkDescriptorSet: what it takes.
type descriptorSet struct {
	layout   *setLayout
	variable uint32 // how many its last binding has, if it says so
}

// descriptors returns how many of each type the set has.
func (s *descriptorSet) descriptors() map[uint32]uint32 {
	l := s.layout
	if !l.variable || s.variable == l.variableMax {
		return l.descriptors
	}
	all := maps.Clone(l.descriptors)
	all[l.variableType] -= l.variableMax - min(s.variable, l.variableMax)
	return all
}

// allocateDescriptorSets carries out vkAllocateDescriptorSets(device, pInfo,
// pSets), an info being {sType, pNext, pool, count, pLayouts}.
func (d *Driver) allocateDescriptorSets(cmd registry.Index, a *registry.Args) uint64 {
	info := a[1]
	o := d.objects.of(registry.VkDescriptorPool, load64(info+16))
	count := load32(info + 24)
	if o == nil {
		return vkResult(deviceLost)
	}
	var counts uint64
	if p := chained(info, variableCounts); p != 0 && load32(p+16) == count {
		counts = load64(p + 24) // {sType, pNext, count, pCounts}
	}
	sets := make([]*descriptorSet, count)
	for i := range sets {
		layout := d.objects.of(registry.VkDescriptorSetLayout, load64(load64(info+32)+8*uint64(i)))
		if layout == nil {
			return vkResult(deviceLost)
		}
		sets[i] = &descriptorSet{layout: layout.state.(*setLayout)}
		if counts != 0 {
			sets[i].variable = load32(counts + 4*uint64(i))
		}
	}
	pool := o.state.(*descriptorPool)
	carry := d.allocate
	if !pool.guarantees(sets) {
		carry = d.allocateAndWait
	}
	result := carry(cmd, a, o, count, func(i int) any { return sets[i] })
	if result == success {
		pool.take(sets)
	}
	return result
}

// freeDescriptorSets carries out vkFreeDescriptorSets(device, pool, count,
// pSets).
func (d *Driver) freeDescriptorSets(cmd registry.Index, a *registry.Args) uint64 {
	result := d.sendResult(cmd, a)
	pool := d.objects.of(registry.VkDescriptorPool, a[1])
	for i := range uint64(uint32(a[2])) {
		if o := d.objects.of(registry.VkDescriptorSet, load64(a[3]+8*i)); o != nil && o.parent == pool {
			pool.state.(*descriptorPool).give(o.state.(*descriptorSet))
			d.objects.drop(o)
		}
	}
	return result
}

// resetDescriptorPool carries out vkResetDescriptorPool(device, pool, flags).
func (d *Driver) resetDescriptorPool(cmd registry.Index, a *registry.Args) uint64 {
	result := d.sendResult(cmd, a)
	if o := d.objects.of(registry.VkDescriptorPool, a[1]); o != nil {
		d.objects.dropChildren(o, nil)
		o.state.(*descriptorPool).reset()
	}
	return result
}
