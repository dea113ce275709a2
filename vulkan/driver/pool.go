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
}

const (
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
		if flags != 0 && load32(flags+4*i)&variableCount != 0 {
			s.variable, s.variableType, s.variableMax = true, kind, count
		}
	}
	return s
}

// A descriptorPool is a VkDescriptorPool by the specification's guarantees:
// what it was made for it holds, and no more. Vulkan's rules let one thread at
// a time use it.
type descriptorPool struct {
	maxSets uint32
	sizes   map[uint32]uint32
	sets    uint32 // in use
	used    map[uint32]uint32
}

// newDescriptorPool reads a VkDescriptorPoolCreateInfo: {sType, pNext, flags,
// maxSets, poolSizeCount, pPoolSizes}, a size {type, count}.
func newDescriptorPool(info uint64) *descriptorPool {
	p := &descriptorPool{maxSets: load32(info + 20), sizes: make(map[uint32]uint32), used: make(map[uint32]uint32)}
	for i := range uint64(load32(info + 24)) {
		size := load64(info+32) + 8*i
		p.sizes[load32(size)] += load32(size + 4)
	}
	return p
}

// take takes what the sets need, if there is enough for all of them.
func (p *descriptorPool) take(sets []*descriptorSet) bool {
	used := maps.Clone(p.used)
	for _, s := range sets {
		for kind, n := range s.descriptors() {
			if n > p.sizes[kind]-used[kind] {
				return false
			}
			used[kind] += n
		}
	}
	if uint64(len(sets)) > uint64(p.maxSets-p.sets) {
		return false
	}
	p.sets, p.used = p.sets+uint32(len(sets)), used
	return true
}

// give takes back what a set needed.
func (p *descriptorPool) give(s *descriptorSet) {
	p.sets--
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
	if !pool.take(sets) {
		for i := range sets {
			store64(a[2]+8*uint64(i), 0)
		}
		return vkResult(outOfPoolMemory)
	}
	result := d.allocate(cmd, a, o, count, func(i int) any { return sets[i] })
	if result != success {
		for _, s := range sets {
			pool.give(s)
		}
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
		p := o.state.(*descriptorPool)
		p.sets = 0
		clear(p.used)
	}
	return result
}
