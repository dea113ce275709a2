// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"structs"
	"unsafe"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// importExtension has drivers make memory of the host's pages. It is not
// offered to applications: their pages are elsewhere.
const importExtension = "VK_EXT_external_memory_host"

const (
	hostAllocation = 0x80 // VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
	dedicatedOnly  = 1    // VkExternalMemoryFeatureFlags
	importable     = 4
	copies         = 1 | 2 // VkBufferUsageFlags
)

// Imports say how a device makes memory of the host's pages.
type imports struct {
	alignment      uint64  // of an allocation's place and size, in bytes
	pointerTypes   uintptr // the address of vkGetMemoryHostPointerPropertiesEXT
	physical       uint64
	bufferFeatures uintptr
	imageFeatures  uintptr
	// allowed: whether resources of a kind can be bound to such memory.
	allowed map[resourceKind]bool
	// over: nothing is imported any more, for what may not be bound to it.
	over bool
}

// A resourceKind is what a driver's answer depends on.
type resourceKind struct {
	image                              bool
	flags, usage, format, kind, tiling uint32
}

// An externalInfo is a VkExternalMemoryBufferCreateInfo or
// VkExternalMemoryImageCreateInfo.
type externalInfo struct {
	_           structs.HostLayout
	sType       uint32
	next        uint64
	handleTypes uint32
}

// An importInfo is a VkImportMemoryHostPointerInfoEXT.
type importInfo struct {
	_          structs.HostLayout
	sType      uint32
	next       uint64
	handleType uint32
	pointer    uint64
}

// enableImport adds the extension to those of a VkDeviceCreateInfo, if the
// physical device has it. What it adds lives as long as the call's arena.
func (r *renderer) enableImport(c *call) bool {
	array, result := r.caller.extensions(r.proc(int(registry.VkEnumerateDeviceExtensionProperties), c.first), []uint64{c.first.real, 0})
	if result < 0 {
		return false
	}
	has := false
	for ; len(array) >= extensionProperties; array = array[extensionProperties:] {
		has = has || cText(array[:extensionNameSize]) == importExtension
	}
	if !has {
		return false
	}
	s := structure(c.args[1])
	n := s.u32(48)
	name, names := make([]byte, len(importExtension)+1), make([]uint64, int(n)+1)
	copy(name, importExtension)
	for i := range n {
		names[i] = s.next(56).u64(uintptr(i) * 8)
	}
	names[n] = address(unsafe.SliceData(name))
	r.keep = []any{name, names}
	s.set32(48, n+1)
	s.set64(56, address(unsafe.SliceData(names)))
	return true
}

// describeImport finds what importing needs, nil if something is missing.
func (r *renderer) describeImport(d *device, physical *object) *imports {
	x := &imports{
		pointerTypes: d.proc("vkGetMemoryHostPointerPropertiesEXT"), physical: physical.real,
		bufferFeatures: r.proc(int(registry.VkGetPhysicalDeviceExternalBufferProperties), physical),
		imageFeatures:  r.proc(int(registry.VkGetPhysicalDeviceImageFormatProperties2), physical),
		allowed:        make(map[resourceKind]bool),
	}
	properties := r.proc(int(registry.VkGetPhysicalDeviceProperties2), physical)
	if x.pointerTypes == 0 || x.bufferFeatures == 0 || x.imageFeatures == 0 || properties == 0 {
		return nil
	}
	host := new([3]uint64{1000178002})
	all := new([105]uint64{1000059001, address(host)}) // VkPhysicalDeviceProperties2
	r.caller.call(properties, physical.real, address(all))
	runtime.KeepAlive(host)
	runtime.KeepAlive(all)
	if x.alignment = host[2]; x.alignment == 0 || !x.bufferAllowed(&r.caller, resourceKind{usage: copies}) {
		return nil // some have the extension, and nothing that may use it
	}
	return x
}

// bufferAllowed asks whether buffers of a kind can be bound to imported memory.
func (x *imports) bufferAllowed(c *caller, k resourceKind) bool {
	if yes, ok := x.allowed[k]; ok {
		return yes
	}
	info := new([4]uint64{1000071002, 0, uint64(k.flags) | uint64(k.usage)<<32, hostAllocation})
	properties := new([4]uint64{1000071003})
	c.call(x.bufferFeatures, x.physical, address(info), address(properties))
	runtime.KeepAlive(info)
	return x.remember(k, uint32(properties[2]))
}

// imageAllowed does so for images, and a VkImageCreateInfo.
func (x *imports) imageAllowed(c *caller, s structure) bool {
	k := resourceKind{image: true, flags: s.u32(16), usage: s.u32(56), format: s.u32(24), kind: s.u32(20), tiling: s.u32(52)}
	if yes, ok := x.allowed[k]; ok {
		return yes
	}
	external := new([3]uint64{1000071000, 0, hostAllocation})
	info := new([5]uint64{1000059004, address(external), uint64(k.format) | uint64(k.kind)<<32, uint64(k.tiling) | uint64(k.usage)<<32, uint64(k.flags)})
	answer := new([4]uint64{1000071001})
	properties := new([6]uint64{1000059003, address(answer)})
	features := uint32(0)
	if c.call(x.imageFeatures, x.physical, address(info), address(properties)) == vk.Success {
		features = uint32(answer[2])
	}
	runtime.KeepAlive(external)
	runtime.KeepAlive(info)
	runtime.KeepAlive(answer)
	runtime.KeepAlive(properties)
	return x.remember(k, features)
}

func (x *imports) remember(k resourceKind, features uint32) bool {
	yes := features&importable != 0 && features&dedicatedOnly == 0
	if len(x.allowed) < 4096 {
		x.allowed[k] = yes
	}
	return yes
}

// allowImport chains into a VkBufferCreateInfo or VkImageCreateInfo that the
// resource may be bound to imported memory, if the driver allows that.
func (r *renderer) allowImport(d *device, s structure) {
	const bufferInfo, externalBuffer, externalImage = 12, 1000072000, 1000072001
	x := d.imports
	if x == nil || s == 0 {
		return
	}
	sType := uint32(externalBuffer)
	if s.u32(0) == bufferInfo {
		if !x.bufferAllowed(&r.caller, resourceKind{flags: s.u32(16), usage: s.u32(32)}) {
			return
		}
	} else {
		const preinitialized = 8
		if s.u32(80) == preinitialized {
			// Vulkan allows no such image on imported memory, and what it will be
			// bound to is about to be allocated.
			x.over = true
			return
		}
		if !x.imageAllowed(&r.caller, s) {
			return
		}
		sType = externalImage
	}
	if own := s.chained(sType); own != 0 { // for no handle that is offered, but there it is
		own.set32(16, own.u32(16)|hostAllocation)
		return
	}
	r.external = externalInfo{sType: sType, next: s.u64(8), handleTypes: hostAllocation}
	s.set64(8, address(&r.external))
}

// createResource creates a buffer or an image.
func (r *renderer) createResource(c *call) error {
	if c.first != nil && c.first.device != nil {
		r.allowImport(c.first.device, structure(c.args[1]))
	}
	return r.execute(c)
}

// requirements answers what a resource would need that is not created.
func (r *renderer) requirements(c *call) error {
	if c.first != nil && c.first.device != nil && c.args[1] != 0 {
		r.allowImport(c.first.device, structure(c.args[1]).next(16))
	}
	return r.execute(c)
}

// importMemory allocates memory of pages that the client shares, if that can
// be, else as always: {u64 size, u32 zero, vkAllocateMemory}.
func (r *renderer) importMemory(m stream.Message) error {
	if !m.Has(stream.FlagFile|stream.FlagReply) || len(m.Body) < 12 {
		return fmt.Errorf("%w: %d bytes with flags %#x", errMalformed, len(m.Body), m.Flags)
	}
	file, err := r.conn.TakeFile()
	if err != nil {
		return err
	}
	size := binary.LittleEndian.Uint64(m.Body)
	mem, err := memfd.MapRange(file, 0, int64(min(size, 1<<62)), true)
	file.Close() // an application may have more memories than a process descriptors
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	r.importing = mem
	m.Op, m.Body = stream.Op(registry.VkAllocateMemory), m.Body[12:]
	err = r.command(m)
	if r.importing != nil { // nobody has it
		r.importing = nil
		err = errors.Join(err, memfd.Unmap(mem))
	}
	return err
}

// allocateImported executes a vkAllocateMemory of an OpMemoryImport and
// answers it: {i32 VkResult, u8 imported}.
func (r *renderer) allocateImported(c *call) error {
	s := structure(c.args[1])
	next, size := s.u64(8), s.u64(16)
	mem := r.importing
	info := &importInfo{sType: 1000178000, next: next, handleType: hostAllocation}
	imported := r.canImport(c.first.device, s, info)
	result := uint64(0)
	var err error
	if imported {
		a := c.first.device.imports.alignment
		s.set64(8, address(info))
		s.set64(16, (size+a-1)/a*a)
		result, err = r.invoke(c)
		runtime.KeepAlive(info)
		s.set64(8, next)
		s.set64(16, size)
		imported = err == nil && int32(result) >= 0
	}
	if !imported && err == nil {
		r.importing = nil
		if err = memfd.Unmap(mem); err == nil {
			result, err = r.invoke(c)
		}
	}
	if err != nil {
		return r.refuse(c, err)
	}
	ids, reals := c.arena.Created()
	if int32(result) >= 0 && len(ids) == 1 && len(reals) == 1 {
		r.bind(c, ids[0], reals[0])
		r.importing = nil // it has the mapping now, if it is imported
	}
	buf := r.conn.Begin(stream.OpMemoryImport, stream.FlagReply, c.serial)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(result))
	if imported {
		return r.conn.End(append(buf, 1))
	}
	return r.conn.End(append(buf, 0))
}

// canImport reports whether it is worth trying to make an allocation, a
// VkMemoryAllocateInfo, of the pages at hand.
func (r *renderer) canImport(d *device, s structure, info *importInfo) bool {
	const dedicated = 1000127001
	x, mem := d.imports, r.importing
	size, kind := s.u64(16), s.u32(24)
	if x == nil || x.over || size == 0 || size > uint64(len(mem)) || (size+x.alignment-1)/x.alignment*x.alignment > uint64(len(mem)) {
		return false
	}
	if n := s.chained(dedicated); n != 0 && (n.u64(16) != 0 || n.u64(24) != 0) {
		return false // which excludes imports of the host's pages
	}
	// What is not coherent would have to be flushed where it is mapped, which is
	// not here.
	if int(kind) >= len(d.types) || !d.types[kind].visible || !d.types[kind].coherent {
		return false
	}
	// The host's pages cost nothing before they are touched: it is the driver who
	// says that there is not so much.
	if size > d.types[kind].heap {
		return false
	}
	info.pointer = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	if info.pointer%x.alignment != 0 {
		return false
	}
	types := new([3]uint64{1000178001})
	result := r.caller.call(x.pointerTypes, uint64(d.real), hostAllocation, info.pointer, address(types))
	return result == vk.Success && uint32(types[2])&(1<<kind) != 0
}
