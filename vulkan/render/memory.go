// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/pagemap"
	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// errMemory is a message about a memory that cannot be mapped, or is not.
var errMemory = errors.New("render: memory is not mapped")

// chunkSize is the granule, in bytes, in which it is known of a memory what the
// client has of it.
const chunkSize = 64 << 10

// A chunkState says what is known of a chunk's bytes, and where the client's
// image of them is.
type chunkState uint8

const (
	zeroed   chunkState = iota // the client has zeros, and so has the memory: no submission writes here
	same                       // the client has what the memory holds: no submission writes here
	expected                   // the client has zeros; submissions write here
	imaged                     // the client has the image; submissions write here
)

// A deviceMemory is the state of a VkDeviceMemory. What the client has of one
// that it maps is known here byte by byte, so that what the device writes can
// be found by comparison and told as a difference. Where only the client writes
// no image is kept: that is what the memory itself holds.
type deviceMemory struct {
	id       uint64
	real     uint64
	device   *device
	size     uint64
	visible  bool // it can be mapped
	coherent bool
	held     *int64 // the renderer's

	// The stream's goroutine's:
	places   []*place // what is bound to it
	writable []span   // of those, what shaders may write, if fresh
	fresh    bool
	sparse   bool   // sparse resources are bound to it, somewhere
	planned  []span // of the submission being planned
	unseen   []span // what submissions wrote before it was watched

	// sending is held by who compares from the first difference found until it
	// is sent: differences go out in the order they were found, and whoever
	// finds none may rely on it that earlier ones are on their way.
	sending sync.Mutex

	mu     sync.Mutex // sending may be held, not the other way round
	bytes  []byte     // all of it, mapped; nil: not watched. Protected by mu
	chunks []chunkState
	image  *memfd.Piece // what the client has of chunks that are imaged
	shared []byte       // what was imported: the client maps it too
}

// addMemoryHandlers adds the handlers of commands on memory, what is bound to
// it, events, and the choice of GPUs.
func addMemoryHandlers(list []handler) {
	for index, h := range map[registry.Index]handler{
		registry.VkEnumeratePhysicalDevices:           (*renderer).enumerate,
		registry.VkEnumeratePhysicalDeviceGroups:      (*renderer).enumerateGroups,
		registry.VkAllocateMemory:                     (*renderer).allocateMemory,
		registry.VkFreeMemory:                         (*renderer).freeMemory,
		registry.VkMapMemory:                          (*renderer).refuseMapping,
		registry.VkUnmapMemory:                        (*renderer).refuseMapping,
		registry.VkFlushMappedMemoryRanges:            (*renderer).refuseMapping,
		registry.VkInvalidateMappedMemoryRanges:       (*renderer).refuseMapping,
		registry.VkCreateBuffer:                       (*renderer).createResource,
		registry.VkCreateImage:                        (*renderer).createResource,
		registry.VkGetDeviceBufferMemoryRequirements:  (*renderer).requirements,
		registry.VkGetDeviceImageMemoryRequirements:   (*renderer).requirements,
		registry.VkBindImageMemory:                    (*renderer).bindImage,
		registry.VkBindImageMemory2:                   (*renderer).bindImage,
		registry.VkGetPhysicalDeviceMemoryProperties:  (*renderer).memoryProperties,
		registry.VkGetPhysicalDeviceMemoryProperties2: (*renderer).memoryProperties,
		registry.VkSetEvent:                           (*renderer).changeEvent,
		registry.VkResetEvent:                         (*renderer).changeEvent,
		registry.VkDestroyEvent:                       (*renderer).destroyEvent,
	} {
		for i := range registry.Commands {
			if registry.Index(i) == index || registry.Commands[i].Alias == index {
				list[i] = h
			}
		}
	}
}

// memory carries out a message about a device memory's contents.
func (r *renderer) memory(m stream.Message) error {
	switch m.Op {
	case stream.OpMemoryMap:
		if len(m.Body) != 8 {
			return fmt.Errorf("%w: %d bytes", errMalformed, len(m.Body))
		}
		return r.mapMemory(m)
	case stream.OpMemoryWrite:
		if len(m.Body) < 16 {
			return fmt.Errorf("%w: %d bytes", errMalformed, len(m.Body))
		}
		offset, data := binary.LittleEndian.Uint64(m.Body[8:]), m.Body[16:]
		return r.store(binary.LittleEndian.Uint64(m.Body), data, func(i int) (uint64, int, bool) {
			return offset, len(data), i == 0
		})
	case stream.OpMemoryRuns:
		runs, err := stream.ParseRuns(m.Body)
		if err != nil {
			return err
		}
		return r.store(runs.Memory, runs.Data, func(i int) (uint64, int, bool) {
			if i >= runs.Len() {
				return 0, 0, false
			}
			one := runs.At(i)
			return one.Offset, int(one.Length), true
		})
	}
	return r.importMemory(m)
}

// mapMemory begins to watch a memory: {u64 memory}.
func (r *renderer) mapMemory(m stream.Message) error {
	o := r.table.get(registry.VkDeviceMemory, binary.LittleEndian.Uint64(m.Body))
	if o == nil {
		r.lose(vk.ErrDeviceLost, noCommand, fmt.Errorf("map memory: %w", errHandle))
		return nil
	}
	memory := o.state.(*deviceMemory)
	if !m.Has(stream.FlagReply) {
		// The client assumes zeros, for it had submitted nothing. What other
		// threads have submitted since may write anything, as far as is known
		// here, but not what is being mapped for the first time.
		memory.mu.Lock()
		memory.unseen = nil
		memory.mu.Unlock()
	}
	err := r.watch(memory)
	if err != nil && !m.Has(stream.FlagReply) {
		r.lose(resultOf(err), noCommand, err)
		return nil
	}
	if err != nil {
		r.cfg.Log.Warn("vulkan: map memory", "err", err)
	}
	if !m.Has(stream.FlagReply) {
		return nil
	}
	result := int32(vk.Success)
	if err != nil {
		result = int32(resultOf(err))
	}
	buf := r.conn.Begin(stream.OpMemoryMap, stream.FlagReply, m.Serial)
	return r.conn.End(binary.LittleEndian.AppendUint32(buf, uint32(result)))
}

// watch maps a memory for good and brings it and the client's image, zeros,
// together: what submissions wrote is sent, the rest, whose contents nobody can
// know, is cleared.
func (r *renderer) watch(m *deviceMemory) error {
	if m.bytes != nil || m.shared != nil {
		return nil
	}
	const mapFailed vk.Result = -5
	if !m.visible {
		return fmt.Errorf("%w: of a type that the host cannot see: %w", errMemory, mapFailed)
	}
	bytes, err := r.caller.mapMemory(m)
	if err != nil {
		return err
	}
	image, err := r.images.Take(int64(min(m.size, math.MaxInt64)))
	if err != nil {
		r.caller.unmapMemory(m)
		return fmt.Errorf("%w: %w", err, vk.ErrOutOfHostMemory)
	}
	m.mu.Lock()
	// What images with a layout of the driver's own hold may be more than
	// contents: it is left alone, and never looked at either.
	keep := append([]span(nil), m.unseen...)
	for _, p := range m.places {
		if p.opaque {
			keep = append(keep, p.span)
		}
	}
	eachOther(m.size, normalize(keep), func(s span) {
		pagemap.Touched(bytes[s.off:s.end], func(part []byte) { clear(part) })
	})
	m.bytes, m.image = bytes, image
	m.chunks = make([]chunkState, (m.size+chunkSize-1)/chunkSize)
	unseen := m.unseen
	m.unseen = nil
	m.mark(unseen)
	if !m.coherent {
		err = m.synchronize(&r.caller, m.device.host.flush, []span{{0, m.size}})
	}
	m.mu.Unlock()
	r.compareMemory(m, unseen)
	return err
}

// store puts the client's bytes into a memory: runs, as next tells them, whose
// bytes follow each other in data.
func (r *renderer) store(id uint64, data []byte, next func(i int) (offset uint64, n int, ok bool)) error {
	o := r.table.get(registry.VkDeviceMemory, id)
	if o == nil {
		r.lose(vk.ErrDeviceLost, noCommand, fmt.Errorf("write memory: %w", errHandle))
		return nil
	}
	m := o.state.(*deviceMemory)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bytes == nil {
		r.lose(vk.ErrDeviceLost, noCommand, fmt.Errorf("write memory: %w", errMemory))
		return nil
	}
	var written []span
	for i := 0; ; i++ {
		offset, n, ok := next(i)
		if !ok {
			break
		}
		if offset > m.size || uint64(n) > m.size-offset {
			return fmt.Errorf("%w: bytes [%d, +%d) of a memory of %d", errMalformed, offset, n, m.size)
		}
		m.put(offset, data[:n])
		data = data[n:]
		if !m.coherent && n > 0 {
			written = append(written, span{offset, offset + uint64(n)})
		}
	}
	if len(written) > 0 {
		// Before mu is given up: an invalidation would undo the stores.
		if err := m.synchronize(&r.caller, m.device.host.flush, written); err != nil {
			r.lose(resultOf(err), noCommand, err)
		}
	}
	return nil
}

// put stores bytes of the client's, whose range has been checked. mu is held.
func (m *deviceMemory) put(offset uint64, data []byte) {
	for len(data) > 0 {
		c := offset / chunkSize
		n := min(uint64(len(data)), (c+1)*chunkSize-offset)
		copy(m.bytes[offset:], data[:n])
		switch m.chunks[c] {
		case zeroed:
			m.chunks[c] = same
		case expected:
			m.chunks[c] = imaged // of zeros so far
			fallthrough
		case imaged:
			copy(m.image.Bytes()[offset:], data[:n])
		}
		offset += n
		data = data[n:]
	}
}

// expect prepares for a submission that may write parts of the memory, before
// it is submitted.
func (m *deviceMemory) expect(spans []span) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bytes == nil {
		if m.shared == nil && !covers(m.unseen, spans) {
			m.unseen = normalize(append(m.unseen, spans...))
			if len(m.unseen) > 64 {
				m.unseen = []span{{m.unseen[0].off, m.unseen[len(m.unseen)-1].end}}
			}
		}
		return
	}
	m.mark(spans)
}

// mark has parts of the memory compared from now on. mu is held.
func (m *deviceMemory) mark(spans []span) {
	for _, s := range spans {
		for c := s.off / chunkSize; c*chunkSize < s.end; c++ {
			switch m.chunks[c] {
			case zeroed:
				m.chunks[c] = expected
			case same:
				end := min((c+1)*chunkSize, m.size)
				copy(m.image.Bytes()[c*chunkSize:end], m.bytes[c*chunkSize:end])
				m.chunks[c] = imaged
			}
		}
	}
}

// synchronize has the host's caches agree with the memory at some ranges, by
// vkFlushMappedMemoryRanges or vkInvalidateMappedMemoryRanges. mu is held.
func (m *deviceMemory) synchronize(c *caller, proc uintptr, spans []span) error {
	atom := m.device.atom
	rounded := make([]span, 0, len(spans))
	for _, s := range spans {
		rounded = append(rounded, span{s.off / atom * atom, min((s.end+atom-1)/atom*atom, m.size)})
	}
	return c.ranges(proc, m, normalize(rounded))
}

// close ends the use of the memory's bytes, which the driver is about to free.
func (m *deviceMemory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes = nil
	if m.image != nil {
		m.image.Close()
		m.image = nil
	}
}

// release lets go of what was imported, once the driver has freed the memory.
func (m *deviceMemory) release() {
	if m.shared != nil {
		_ = memfd.Unmap(m.shared) // it is a mapping of ours
		m.shared = nil
	}
}

// dropped is called when the client's name for it ends.
func (m *deviceMemory) dropped() {
	m.close()
	for _, p := range m.places {
		p.memory = nil
	}
	m.places = nil
	m.device.forget(m)
	m.release()
	*m.held -= int64(m.size)
}

// freeMemory frees a memory that nothing looks at any more.
func (r *renderer) freeMemory(c *call) error {
	for _, o := range r.named {
		if m, ok := o.state.(*deviceMemory); ok {
			m.close()
		}
	}
	return r.execute(c)
}

// refuseMapping refuses what the client does by itself.
func (r *renderer) refuseMapping(c *call) error {
	return r.refuse(c, fmt.Errorf("%w: %w", errMemory, vk.ErrDeviceLost))
}
