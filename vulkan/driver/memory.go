// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/mapping"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

const (
	// shadowBlock is how much of a memory travels in one message at most.
	shadowBlock = 256 << 10
	// idleShadows is how much memory of freed shadows is kept for the next.
	idleShadows = 128 << 20
)

// The VkMemoryPropertyFlagBits that matter here.
const (
	hostVisible  = 2
	hostCoherent = 4
)

// wholeSize is VK_WHOLE_SIZE.
const wholeSize = math.MaxUint64

// A memoryState is what is kept of a VkDeviceMemory. What the application maps
// is either the very pages that the device uses, if both are on one machine and
// the driver over there can import them; or a shadow, kept in step by what
// either side changed. A shadow is made when the memory is first mapped and
// stays until it is freed, so that mapping again costs nothing.
//
// The thread that reads the link applies changes to shadows while others
// collect from them. It takes no lock but the shadow's own, which nobody holds
// while he sends: else two full sockets could wait for each other.
type memoryState struct {
	id     uint64
	link   *link
	device *deviceState
	size   uint64
	flags  uint32 // of its type
	born   uint64 // releases of the device before it

	shared []byte // the device's own pages, or nil
	shadow atomic.Pointer[mapping.Shadow]

	// Room for a message, used by whoever collects.
	runs []stream.Run
	head []byte
}

// A deviceMemory is what a device knows of all its memory.
type deviceMemory struct {
	types    []uint32      // their flags; nil: not asked for yet
	releases atomic.Uint64 // how often the device may have begun to write

	mu      sync.Mutex
	shadows atomic.Pointer[[]*memoryState] // those that must be looked at; replaced under mu
}

// flagsOf returns the flags of a memory type.
func (d *Driver) flagsOf(device *deviceState, kind uint32) (uint32, error) {
	m := &device.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.types == nil {
		// VkPhysicalDeviceMemoryProperties: {typeCount, 32 × {flags, heap}, heapCount,
		// 16 × {size, flags}}
		words := make([]uint64, 65)
		args := registry.Args{device.object.parent.handle, addressOf(words)}
		result := d.askOnce(registry.VkGetPhysicalDeviceMemoryProperties, &args)
		n := min(uint32(words[0]), 32)
		if int32(uint32(result)) < 0 || n == 0 {
			return 0, errors.New("the memory types are not known")
		}
		types := make([]uint32, n)
		for i := range types {
			types[i] = load32(addressOf(words) + 4 + 8*uint64(i))
		}
		runtime.KeepAlive(words)
		m.types = types
	}
	if kind >= uint32(len(m.types)) {
		return 0, fmt.Errorf("there is no memory type %d", kind)
	}
	return m.types[kind], nil
}

// allocateMemory carries out vkAllocateMemory(device, pInfo, pAllocator,
// pMemory), an info being {sType, pNext, allocationSize, memoryTypeIndex}.
func (d *Driver) allocateMemory(a *registry.Args) uint64 {
	const cmd = registry.VkAllocateMemory
	device, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	kind := load32(a[1] + 24)
	m := &memoryState{link: l, device: device.device, size: load64(a[1] + 16), born: device.device.memory.releases.Load()}
	if m.flags, err = d.flagsOf(device.device, kind); err != nil {
		return d.failure(cmd, err)
	}
	objects, err := d.createAll(cmd, a, device, 1, func(int) any { return m })
	var result uint64
	if err == nil {
		m.id = objects[0].id
		if l.files && m.flags&hostVisible != 0 && !dedicated(a[1]) {
			result, err = d.shareMemory(m, a)
		} else {
			result, err = l.call(cmd, a)
		}
	}
	if err == nil && int32(uint32(result)) >= 0 {
		return result
	}
	d.undo(cmd, a, objects)
	if err != nil {
		return d.failure(cmd, err)
	}
	return result
}

// dedicated reports whether memory is for one resource alone, by the
// VkMemoryDedicatedAllocateInfo that is chained to its info: {sType, pNext,
// image, buffer}. What is imported cannot be.
func dedicated(info uint64) bool {
	const sDedicated = 1000127001
	p := chained(info, sDedicated)
	return p != 0 && (load64(p+16) != 0 || load64(p+24) != 0)
}

// shareMemory allocates memory whose pages are both the application's and the
// device's, if the worker can make it so.
func (d *Driver) shareMemory(m *memoryState, a *registry.Args) (uint64, error) {
	const cmd = registry.VkAllocateMemory
	if m.size == 0 || m.size > math.MaxInt64/2 {
		return m.link.call(cmd, a)
	}
	region, err := memfd.Create("vulkan", int64(m.size))
	if err != nil {
		return m.link.call(cmd, a)
	}
	defer region.Close() // what is mapped stays
	reply, err := m.link.requestFile(cmd, stream.OpMemoryImport, func(b []byte) ([]byte, error) {
		b = binary.LittleEndian.AppendUint64(b, uint64(region.Size()))
		b = binary.LittleEndian.AppendUint32(b, 0)
		return d.codec.AppendCall(b, &registry.Commands[cmd], a, &d.env)
	}, region.File())
	if err != nil {
		return 0, err
	}
	if len(reply) != 5 || reply[4] > 1 {
		return 0, m.link.failed(fmt.Errorf("%w: import answered with %d bytes", stream.ErrMalformed, len(reply)))
	}
	result := binary.LittleEndian.Uint32(reply)
	if int32(result) >= 0 && reply[4] == 1 {
		if m.shared, err = memfd.MapRange(region.File(), 0, region.Size(), true); err != nil {
			m.link.sendCall(registry.VkFreeMemory, &registry.Args{a[0], load64(a[3]), 0})
			return vkResult(outOfHostMemory), nil
		}
	}
	return uint64(result), nil
}

// freeMemory carries out vkFreeMemory(device, memory, pAllocator).
func (d *Driver) freeMemory(a *registry.Args) uint64 { return d.destroy(registry.VkFreeMemory, a) }

// dropped gives the memory on this side back.
func (m *memoryState) dropped() {
	if m.shared != nil {
		_ = memfd.Unmap(m.shared) // it is a mapping of ours
	}
	if s := m.shadow.Load(); s != nil {
		m.device.memory.remove(m)
		_ = s.Close() // what it could not give back is lost, but to nobody else
	}
}

func (dm *deviceMemory) add(m *memoryState) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	list := append(slices.Clone(dm.all()), m)
	dm.shadows.Store(&list)
}

func (dm *deviceMemory) remove(m *memoryState) {
	dm.mu.Lock()
	defer dm.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(dm.all()), func(x *memoryState) bool { return x == m })
	dm.shadows.Store(&list)
}

// all returns the memory that has a shadow.
func (dm *deviceMemory) all() []*memoryState {
	if list := dm.shadows.Load(); list != nil {
		return *list
	}
	return nil
}

// mapMemory carries out vkMapMemory(device, memory, offset, size, flags,
// ppData).
func (d *Driver) mapMemory(a *registry.Args) uint64 {
	m, result := d.mapped(a)
	if m == nil {
		return result
	}
	mem := m.shared
	if mem == nil {
		mem = m.shadow.Load().Bytes()
	}
	store64(a[5], addressOfBytes(mem)+a[2])
	return success
}

// mapped returns the memory that vkMapMemory names, which then has a place on
// this side; or nil, and why not.
func (d *Driver) mapped(a *registry.Args) (*memoryState, uint64) {
	const cmd = registry.VkMapMemory
	o := d.objects.of(registry.VkDeviceMemory, a[1])
	if o == nil {
		return nil, vkResult(mapFailed)
	}
	m := o.state.(*memoryState)
	if m.flags&hostVisible == 0 || a[2] >= m.size || a[3] != wholeSize && a[3] > m.size-a[2] {
		d.cfg.Logger.Warn("memory not mapped", "offset", a[2], "size", a[3], "of", m.size, "host visible", m.flags&hostVisible != 0)
		return nil, vkResult(mapFailed)
	}
	if m.link.lost() != nil {
		return nil, vkResult(deviceLost)
	}
	if m.shared != nil || m.shadow.Load() != nil {
		return m, success
	}
	s, err := mapping.NewShadow(d.pool, 0, int64(m.size), shadowBlock, true, mapping.Adaptive)
	if err == nil {
		err = s.Arm()
	}
	if err != nil {
		d.cfg.Logger.Warn("memory not mapped", "error", err)
		return nil, vkResult(mapFailed)
	}
	m.shadow.Store(s)
	m.device.memory.add(m)
	if err := m.announce(); err != nil {
		return nil, d.failure(cmd, err)
	}
	return m, success
}

// announce tells the worker that the memory has a shadow from now on, of
// zeros. What the device may have written before is brought in first.
func (m *memoryState) announce() error {
	body := func(b []byte) []byte { return binary.LittleEndian.AppendUint64(b, m.id) }
	if m.device.memory.releases.Load() == m.born {
		// Its contents are undefined still.
		return m.link.send(stream.OpMemoryMap, body)
	}
	reply, err := m.link.request(registry.VkMapMemory, stream.OpMemoryMap, body)
	if err != nil {
		return err
	}
	if len(reply) != 4 {
		return m.link.failed(fmt.Errorf("%w: mapping answered with %d bytes", stream.ErrMalformed, len(reply)))
	}
	if result := int32(binary.LittleEndian.Uint32(reply)); result < 0 {
		return &refusedError{result, "the memory cannot be mapped there"}
	}
	return nil
}

// unmapMemory carries out vkUnmapMemory(device, memory): what was written is
// sent at once, and nobody waits. (The document's original waits for the
// acknowledgement; here the next wait for the device does, and if the bytes did
// not arrive it says that the device is lost.)
func (d *Driver) unmapMemory(a *registry.Args) uint64 {
	if o := d.objects.of(registry.VkDeviceMemory, a[1]); o != nil {
		m := o.state.(*memoryState)
		if err := m.send(0, m.size); err != nil {
			return d.failure(registry.VkUnmapMemory, err)
		}
		if err := m.link.flush(); err != nil {
			return d.failure(registry.VkUnmapMemory, err)
		}
	}
	return success
}

// flushRanges carries out vkFlushMappedMemoryRanges(device, count, pRanges), a
// range being {sType, pNext, memory, offset, size}.
func (d *Driver) flushRanges(a *registry.Args) uint64 {
	const cmd = registry.VkFlushMappedMemoryRanges
	var l *link
	for i := range uint64(uint32(a[1])) {
		r := a[2] + 40*i
		o := d.objects.of(registry.VkDeviceMemory, load64(r+16))
		if o == nil {
			return vkResult(deviceLost)
		}
		m := o.state.(*memoryState)
		l = m.link
		from := min(load64(r+24), m.size)
		if err := m.send(from, from+min(load64(r+32), m.size-from)); err != nil {
			return d.failure(cmd, err)
		}
	}
	if l != nil {
		if err := l.flush(); err != nil {
			return d.failure(cmd, err)
		}
	}
	return success
}

// invalidateRanges carries out vkInvalidateMappedMemoryRanges(device, count,
// pRanges). What the device wrote came before the signal by which the
// application knows of it.
func (d *Driver) invalidateRanges(a *registry.Args) uint64 {
	if o := d.objects.of(registry.VkDevice, a[0]); o != nil {
		o.link.look()
		if o.link.lost() != nil {
			return vkResult(deviceLost)
		}
	}
	return success
}

// releaseAll sends what was written to coherent memory of a device. What
// follows in the stream may have the device read it.
func (d *Driver) releaseAll(device *deviceState) error {
	device.memory.releases.Add(1)
	for _, m := range device.memory.all() {
		if m.flags&hostCoherent == 0 {
			continue // it is flushed by name
		}
		if err := m.send(0, m.size); err != nil {
			return err
		}
	}
	return nil
}

// send sends what was written to bytes [from, to) of a shadow.
func (m *memoryState) send(from, to uint64) error {
	s := m.shadow.Load()
	if s == nil {
		return nil
	}
	err := s.Collect(context.Background(), int64(from), int64(to-from), func(c *mapping.Change) error {
		m.runs = m.runs[:0]
		for _, r := range c.Runs {
			m.runs = append(m.runs, stream.Run{Offset: uint64(c.Block)*shadowBlock + uint64(r.Offset), Length: r.Length})
		}
		m.head = stream.AppendRuns(m.head[:0], m.id, m.runs)
		if err := m.link.write(stream.OpMemoryRuns, m.head, c.Data); err != nil {
			return err
		}
		// It will be there before anything that is sent from now on; if not, the
		// link is lost.
		s.Ack(c)
		return nil
	})
	if errors.Is(err, mapping.ErrClosed) { // another thread has freed it
		return nil
	}
	return err
}

// applyChanged brings in what the device wrote. It is called by whoever reads
// the link.
func (d *Driver) applyChanged(body []byte) error {
	changed, err := stream.ParseRuns(body)
	if err != nil {
		return err
	}
	o := d.objects.get(changed.Memory)
	if o == nil || o.kind != registry.VkDeviceMemory {
		return nil // it was freed meanwhile
	}
	s := o.state.(*memoryState).shadow.Load()
	if s == nil {
		return fmt.Errorf("%w: changes of a memory that is not mapped", stream.ErrMalformed)
	}
	data := changed.Data
	for i := range changed.Len() {
		r := changed.At(i)
		if err := s.MergeDelta(int64(r.Offset), data[:r.Length]); errors.Is(err, mapping.ErrClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("changes of a memory: %w", err)
		}
		data = data[r.Length:]
	}
	return nil
}
