// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"fmt"
	"runtime"
	"structs"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
)

const wholeSize = ^uint64(0)

// mapMemory maps all of a memory.
func (c *caller) mapMemory(m *deviceMemory) ([]byte, error) {
	result := c.call(m.device.host.mapMemory, uint64(m.device.real), m.real, 0, wholeSize, 0, address(&c.value))
	if err := resultError("vkMapMemory", result); err != nil {
		return nil, err
	}
	return structure(c.value).bytes(0, int(m.size)), nil
}

func (c *caller) unmapMemory(m *deviceMemory) {
	c.call(m.device.host.unmapMemory, uint64(m.device.real), m.real)
}

// A mappedMemoryRange is a VkMappedMemoryRange.
type mappedMemoryRange struct {
	_      structs.HostLayout
	sType  uint32
	_      uint64 // pNext
	memory uint64
	offset uint64
	size   uint64
}

// ranges calls vkFlushMappedMemoryRanges or vkInvalidateMappedMemoryRanges.
func (c *caller) ranges(proc uintptr, m *deviceMemory, spans []span) error {
	if len(spans) == 0 {
		return nil
	}
	list := make([]mappedMemoryRange, len(spans))
	for i, s := range spans {
		list[i] = mappedMemoryRange{sType: 6, memory: m.real, offset: s.off, size: s.end - s.off}
	}
	result := c.call(proc, uint64(m.device.real), uint64(len(list)), address(&list[0]))
	runtime.KeepAlive(list)
	return resultError("synchronize memory", result)
}

// imageSize asks how much memory an image takes.
func (c *caller) imageSize(o *object) uint64 {
	requirements := new([3]uint64)
	c.call(o.device.host.imageRequirements, uint64(o.device.real), o.real, address(requirements))
	return requirements[0]
}

// describeMemory asks a new device's physical device for its types of memory.
func (r *renderer) describeMemory(d *device, physical *object) {
	const hostVisible, hostCoherent = 2, 4
	properties := new([66]uint64) // VkPhysicalDeviceMemoryProperties
	r.caller.call(r.proc(int(registry.VkGetPhysicalDeviceMemoryProperties), physical), physical.real, address(properties))
	s := structure(address(properties))
	if r.cfg.HideHostCoherent {
		hideCoherent(s)
	}
	for i := range min(s.u32(0), 32) {
		flags, heap := s.add(i, 8).u32(4), s.add(i, 8).u32(8)
		d.types = append(d.types, memoryType{flags&hostVisible != 0, flags&hostCoherent != 0, s.add(min(heap, 15), 16).u64(264)})
	}
	runtime.KeepAlive(properties)
	limits := new([103]uint64) // VkPhysicalDeviceProperties
	r.caller.call(r.proc(int(registry.VkGetPhysicalDeviceProperties), physical), physical.real, address(limits))
	d.atom = max(1, structure(address(limits)).u64(792))
	r.deviceName = cText(structure(address(limits)).bytes(20, 256))
	runtime.KeepAlive(limits)
}

// hideCoherent clears the flag of a VkPhysicalDeviceMemoryProperties' types.
func hideCoherent(s structure) {
	const hostCoherent = 4
	for i := range min(s.u32(0), 32) {
		s.add(i, 8).set32(4, s.add(i, 8).u32(4)&^hostCoherent)
	}
}

// memoryProperties asks for them, and hides what is to be hidden.
func (r *renderer) memoryProperties(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	if r.cfg.HideHostCoherent {
		s := structure(c.args[1])
		if c.Name != registry.Commands[registry.VkGetPhysicalDeviceMemoryProperties].Name {
			s += 16 // VkPhysicalDeviceMemoryProperties2.memoryProperties
		}
		hideCoherent(s)
	}
	return r.answer(c, result)
}

// allocateMemory allocates within the budget.
func (r *renderer) allocateMemory(c *call) error {
	if c.args[1] == 0 {
		return fmt.Errorf("%w: no VkMemoryAllocateInfo", errMalformed)
	}
	// Memory is exported as no handle at all, which is to say nothing; but there
	// are drivers that refuse it.
	const exportInfo = 1000072002
	structure(c.args[1]).unchain(exportInfo)
	size := structure(c.args[1]).u64(16)
	if r.cfg.Memory > 0 && size > uint64(r.cfg.Memory-r.held) {
		return r.refuse(c, fmt.Errorf("render: %d bytes of device memory besides %d, at most %d: %w", size, r.held, r.cfg.Memory, vk.ErrOutOfDeviceMemory))
	}
	if r.importing != nil {
		return r.allocateImported(c)
	}
	return r.execute(c)
}

// newMemory keeps what matters of a VkMemoryAllocateInfo.
func (r *renderer) newMemory(c *call, o *object) {
	s := structure(c.args[1])
	m := &deviceMemory{id: o.id, real: o.real, device: o.device, size: s.u64(16), held: &r.held, shared: r.importing}
	if i := int(s.u32(24)); i < len(o.device.types) && m.shared == nil {
		m.visible, m.coherent = o.device.types[i].visible, o.device.types[i].coherent
	}
	r.held += int64(m.size)
	o.state = m
	m.device.remember(m)
}

// A binding is a resource and where it is bound.
type binding struct{ resource, memory, offset uint64 }

// bindings returns those of a vkBindBufferMemory, vkBindImageMemory or one of
// their successors.
func bindings(c *call) []binding {
	if len(c.Params) == 4 {
		return []binding{{c.args[1], c.args[2], c.args[3]}}
	}
	var list []binding
	for i := range uint32(c.args[1]) {
		s := structure(c.args[2]).add(i, 40)
		list = append(list, binding{s.u64(16), s.u64(24), s.u64(32)})
	}
	return list
}

// bindSparse notes which memories a call binds to sparse resources: where is
// not kept.
func (r *renderer) bindSparse() {
	for _, o := range r.named {
		if m, ok := o.state.(*deviceMemory); ok {
			m.sparse, m.fresh = true, false
		}
	}
}

// ranges returns which bytes of its destination a recorded command writes, as
// far as its arguments tell easily.
func ranges(index registry.Index, args *registry.Args) []span {
	all := []span{{0, wholeSize}}
	if alias := registry.Commands[index].Alias; alias != registry.None {
		index = alias
	}
	sized := func(off, n uint64) span { return span{off, off + min(n, wholeSize-off)} }
	var list []span
	switch index {
	case registry.VkCmdFillBuffer, registry.VkCmdUpdateBuffer:
		return []span{sized(args[2], args[3])}
	case registry.VkCmdCopyBuffer:
		if args[4] == 0 {
			return nil
		}
		for i := range uint32(args[3]) {
			region := structure(args[4]).add(i, 24)
			list = append(list, sized(region.u64(8), region.u64(16)))
		}
	case registry.VkCmdCopyBuffer2:
		info := structure(args[1])
		if info == 0 || info.next(40) == 0 {
			return nil
		}
		for i := range info.u32(32) {
			region := info.next(40).add(i, 40)
			list = append(list, sized(region.u64(24), region.u64(32)))
		}
	case registry.VkCmdCopyQueryPoolResults:
		const largest = 256 // bytes of a result
		return []span{sized(args[5], uint64(uint32(args[3]))*min(args[6], 1<<31)+largest)}
	default:
		return all
	}
	return list
}
