// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"runtime"
	"structs"
	"unsafe"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
)

// A structure is the address of one in an Arena, which holds it until the call
// is over; members are read by their offsets as 64-bit C has them.
type structure uint64

// at points to a member. The arguments of a call hold addresses as numbers:
// the conversion goes through memory because vet cannot know that.
func (s structure) at(offset uintptr) unsafe.Pointer {
	p := uintptr(s) + offset
	return *(*unsafe.Pointer)(unsafe.Pointer(&p))
}

func (s structure) u32(offset uintptr) uint32          { return *(*uint32)(s.at(offset)) }
func (s structure) u64(offset uintptr) uint64          { return *(*uint64)(s.at(offset)) }
func (s structure) set32(offset uintptr, v uint32)     { *(*uint32)(s.at(offset)) = v }
func (s structure) set64(offset uintptr, v uint64)     { *(*uint64)(s.at(offset)) = v }
func (s structure) next(offset uintptr) structure      { return structure(s.u64(offset)) }
func (s structure) add(n, size uint32) structure       { return s + structure(n)*structure(size) }
func (s structure) bytes(offset uintptr, n int) []byte { return unsafe.Slice((*byte)(s.at(offset)), n) }

// chained returns the structure of a type in the pNext chain of s, or 0.
func (s structure) chained(sType uint32) structure {
	for n := s.next(8); n != 0; n = n.next(8) {
		if n.u32(0) == sType {
			return n
		}
	}
	return 0
}

// unchain takes the structures of a type out of the pNext chain of s.
func (s structure) unchain(sType uint32) {
	for n := s.next(8); n != 0; n = n.next(8) {
		if n.u32(0) == sType {
			s.set64(8, n.u64(8))
		} else {
			s = n
		}
	}
}

// text returns the NUL-terminated string at s.
func (s structure) text() string {
	n := 0
	for *(*byte)(s.at(uintptr(n))) != 0 {
		n++
	}
	return string(s.bytes(0, n))
}

// strings returns an array of n strings.
func (s structure) strings(n uint32) []string {
	list := make([]string, 0, n)
	for i := range n {
		list = append(list, s.next(uintptr(i)*8).text())
	}
	return list
}

// adjustInstance changes a VkInstanceCreateInfo: no layers, and a version that
// has what the renderer uses. It returns the extensions that it names, and a
// function that keeps what was added alive until it is called.
func adjustInstance(info uint64) ([]string, func()) {
	s := structure(info)
	s.set32(32, 0)
	application := s.next(24)
	var own *[6]uint64
	if application == 0 {
		own = new([6]uint64) // VkApplicationInfo, whose sType is 0
		application = structure(address(own))
		s.set64(24, uint64(application))
	}
	application.set32(44, max(application.u32(44), uint32(newestAPI)))
	return s.next(56).strings(s.u32(48)), func() { runtime.KeepAlive(own) }
}

// adjustDevice removes the layers of a VkDeviceCreateInfo and returns the
// extensions that it names.
func adjustDevice(info uint64) []string {
	s := structure(info)
	s.set32(32, 0)
	return s.next(56).strings(s.u32(48))
}

// isTimeline reports whether a VkSemaphoreCreateInfo asks for a timeline.
func isTimeline(info uint64) bool {
	const timelineKind = 1
	s := structure(info).chained(1000207002)
	return s != 0 && s.u32(16) == timelineKind
}

// newBuffer returns what is kept of a VkBufferCreateInfo.
func newBuffer(info uint64) *buffer {
	const deviceAddress = 0x20000
	s := structure(info)
	usage := s.u32(32)
	return &buffer{
		place:       place{shaders: usage&^readOnlyBuffer != 0, sparse: s.u32(16)&sparseBinding != 0},
		size:        s.u64(24),
		addressable: usage&deviceAddress != 0,
	}
}

const (
	sparseBinding = 1
	// The usages by which nothing is written but by copies: transfers; uniform
	// texels, uniforms, indices, vertices, indirect arguments; conditions,
	// shader binding tables, input of acceleration structures.
	readOnlyBuffer = 0x1 | 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x80000
	// Transfers, sampled and input attachments.
	readOnlyImage = 0x1 | 0x2 | 0x4 | 0x80
)

// newImage returns what is kept of a VkImageCreateInfo.
func newImage(info uint64) *image {
	const optimal, disjoint = 0, 0x200
	s := structure(info)
	flags := s.u32(16)
	return &image{
		place:    place{shaders: s.u32(56)&^readOnlyImage != 0, opaque: s.u32(52) == optimal, sparse: flags&sparseBinding != 0},
		disjoint: flags&disjoint != 0,
	}
}

// clampVersion lowers the version in a structure to the newest that is known.
func clampVersion(at uint64, offset uintptr) {
	if s := structure(at); s != 0 {
		s.set32(offset, uint32(clamp(vk.Version(s.u32(offset)))))
	}
}

// hideFeatures clears, in a VkPhysicalDeviceFeatures2 and its chain, what
// cannot be carried.
func hideFeatures(features uint64) {
	for s := structure(features); s != 0; s = s.next(8) {
		for _, h := range hidden {
			if s.u32(0) == h.sType {
				s.set32(h.offset, 0)
			}
		}
	}
}

// enablesHidden returns the name of a feature that a VkDeviceCreateInfo enables
// although it is not offered, or "".
func enablesHidden(info uint64) string {
	for s := structure(info).next(8); s != 0; s = s.next(8) {
		for _, h := range hidden {
			if s.u32(0) == h.sType && s.u32(h.offset) != 0 {
				return h.name
			}
		}
	}
	return ""
}

// A signalOp is a semaphore and the value that a batch sets it to.
type signalOp struct{ semaphore, value uint64 }

// batches calls f for each batch of a vkQueueSubmit, vkQueueSubmit2 or
// vkQueueBindSparse, with its command buffers and what it signals.
func batches(c *call, command registry.Index, f func(waits uint32, commands []uint64, signals []signalOp)) {
	var commands []uint64
	var signals []signalOp
	count, at := uint32(c.args[1]), structure(c.args[2])
	for i := range count {
		commands, signals = commands[:0], signals[:0]
		waits := uint32(0)
		switch command {
		case registry.VkQueueSubmit:
			s := at.add(i, 72)
			waits = s.u32(16)
			for k := range s.u32(40) {
				commands = append(commands, s.next(48).u64(uintptr(k)*8))
			}
			signals = signalsOf(signals, s, s.u32(56), s.next(64))
		case registry.VkQueueSubmit2:
			s := at.add(i, 64)
			waits = s.u32(20)
			for k := range s.u32(32) {
				commands = append(commands, s.next(40).add(k, 32).u64(16))
			}
			for k := range s.u32(48) {
				op := s.next(56).add(k, 48)
				signals = append(signals, signalOp{op.u64(16), op.u64(24)})
			}
		default:
			s := at.add(i, 96)
			waits = s.u32(16)
			signals = signalsOf(signals, s, s.u32(80), s.next(88))
		}
		f(waits, commands, signals)
	}
}

// signalsOf reads the semaphores that a batch signals, and their values from
// the chained VkTimelineSemaphoreSubmitInfo.
func signalsOf(list []signalOp, batch structure, n uint32, semaphores structure) []signalOp {
	values := batch.chained(1000207003)
	for k := range n {
		op := signalOp{semaphore: semaphores.u64(uintptr(k) * 8)}
		if values != 0 && k < values.u32(32) && values.next(40) != 0 {
			op.value = values.next(40).u64(uintptr(k) * 8)
		}
		list = append(list, op)
	}
	return list
}

// A bufferAddressInfo is a VkBufferDeviceAddressInfo.
type bufferAddressInfo struct {
	_      structs.HostLayout
	sType  uint32
	_      uint64 // pNext
	buffer uint64
}

// bufferAddress asks for the address of a buffer.
func (c *caller) bufferAddress(proc uintptr, o *object) uint64 {
	if proc == 0 {
		return 0
	}
	info := &bufferAddressInfo{sType: 1000244001, buffer: o.real}
	c.call(proc, uint64(o.device.real), address(info))
	runtime.KeepAlive(info)
	return c.raw.Result
}

// waits calls f for each semaphore, and its value, that a vkQueueSubmit,
// vkQueueSubmit2 or vkQueueBindSparse waits for.
func waits(c *call, command registry.Index, f func(signalOp)) {
	count, at := uint32(c.args[1]), structure(c.args[2])
	for i := range count {
		if command == registry.VkQueueSubmit2 {
			s := at.add(i, 64)
			for k := range s.u32(20) {
				op := s.next(24).add(k, 48)
				f(signalOp{op.u64(16), op.u64(24)})
			}
			continue
		}
		size := uint32(72)
		if command == registry.VkQueueBindSparse {
			size = 96
		}
		s := at.add(i, size)
		values := s.chained(1000207003)
		for k := range s.u32(16) {
			op := signalOp{semaphore: s.next(24).u64(uintptr(k) * 8)}
			if values != 0 && k < values.u32(16) && values.next(24) != 0 {
				op.value = values.next(24).u64(uintptr(k) * 8)
			}
			f(op)
		}
	}
}
