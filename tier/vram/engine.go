// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/vk"
)

// An engine is the worker's device: slabs, the regions of the parent's memory,
// and the ways between them. Its methods may be called concurrently; the parent
// sees to it that no call uses a slab or a region before it is added. Those
// that remove one wait for the calls that use it.
type engine struct {
	instance *vk.Instance
	dev      *vk.Device
	info     DeviceInfo
	choice   choice
	ring     *ring
	queue    *queue
	flushes  atomic.Int64

	mu      sync.Mutex
	slabs   map[uint32]*memory
	regions map[uint32]*mappedRegion
	kernels map[uint32]*kernel

	compute  *vk.Kernels // made for the first kernel; nil: there has been none
	bindings chan vk.Binding
}

// memory is device memory with a buffer over the whole of it.
type memory struct {
	use    sync.RWMutex // held for reading while in use
	gone   bool
	kind   kind
	mem    vk.Memory
	buffer vk.Buffer
	size   int64
	bytes  []byte // nil unless the CPU may use it
}

type mappedRegion struct {
	use    sync.RWMutex // held for reading while in use
	gone   bool
	region *memfd.Region
}

// openEngine opens the device that the request asks for.
func openEngine(ask openRequest) (*engine, error) {
	instance, err := vk.Open()
	if err != nil {
		return nil, err
	}
	e := &engine{
		instance: instance, slabs: make(map[uint32]*memory), regions: make(map[uint32]*mappedRegion), kernels: make(map[uint32]*kernel),
	}
	if err := e.open(ask); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *engine) open(ask openRequest) error {
	var err error
	if e.info, err = selectDevice(e.instance.Devices(), ask.Device); err != nil {
		return fmt.Errorf("%w: %w", vk.ErrAbsent, err)
	}
	family, err := queueFamily(e.info)
	if err != nil {
		return fmt.Errorf("%w: %w", vk.ErrAbsent, err)
	}
	if e.dev, err = e.instance.OpenDevice(e.info.Index, family); err != nil {
		return err
	}
	probe, needs, err := e.dev.CreateBuffer(slabUnit)
	if err != nil {
		return err
	}
	e.dev.DestroyBuffer(probe)
	if e.choice, err = choose(e.info, needs.Allows, ask.HideHostVisible, ask.HideHostCoherent); err != nil {
		return fmt.Errorf("%w: %w", vk.ErrAbsent, err)
	}
	if e.ring, err = newRing(e); err != nil {
		return fmt.Errorf("staging memory: %w", err)
	}
	e.queue, err = newQueue(e.dev)
	return err
}

// close frees everything. No call may be under way.
func (e *engine) close() {
	if e.dev != nil {
		if e.queue != nil {
			e.queue.close()
		}
		if e.ring != nil {
			e.free(e.ring.memory)
		}
		for _, s := range e.slabs {
			e.free(s)
		}
		e.closeKernels()
		e.dev.Close()
	}
	for _, r := range e.regions {
		r.region.Close()
	}
	e.instance.Close()
}

// allocate makes memory of a kind, mapped if the kind says so.
func (e *engine) allocate(k kind, size int64) (*memory, error) {
	m := &memory{kind: k, size: size}
	var needs vk.Requirements
	var err error
	if m.buffer, needs, err = e.dev.CreateBuffer(size); err != nil {
		return nil, err
	}
	if m.mem, err = e.dev.Allocate(needs.Size, k.Type); err == nil {
		err = e.dev.Bind(m.buffer, m.mem)
	}
	if err == nil && k.Mapped {
		m.bytes, err = e.dev.Map(m.mem, size)
	}
	if err != nil {
		e.free(m)
		return nil, err
	}
	return m, nil
}

func (e *engine) free(m *memory) {
	e.dev.DestroyBuffer(m.buffer)
	e.dev.Free(m.mem)
}

func (e *engine) addSlab(id uint32, kind int, size int64) error {
	if kind < 0 || kind >= len(e.choice.kinds) || size <= 0 || size > slabSize {
		return fmt.Errorf("no slab of kind %d and %d bytes can be made", kind, size)
	}
	m, err := e.allocate(e.choice.kinds[kind], size)
	if err != nil {
		return fmt.Errorf("slab of %d bytes: %w", size, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slabs[id] = m
	return nil
}

func (e *engine) removeSlab(id uint32) {
	e.mu.Lock()
	m := e.slabs[id]
	delete(e.slabs, id)
	e.mu.Unlock()
	if m != nil {
		m.use.Lock()
		defer m.use.Unlock()
		m.gone = true
		e.free(m)
	}
}

// slab returns bytes [off, off+n) of a slab, in use until release is called.
func (e *engine) slab(id uint32, off, n int64) (m *memory, release func(), err error) {
	e.mu.Lock()
	m = e.slabs[id]
	e.mu.Unlock()
	if m != nil {
		m.use.RLock()
		if !m.gone && off >= 0 && n > 0 && off <= m.size && n <= m.size-off {
			return m, m.use.RUnlock, nil
		}
		m.use.RUnlock()
	}
	return nil, nil, fmt.Errorf("no slab %d with bytes [%d, +%d)", id, off, n)
}

// addRegion maps a region of the parent's. It owns file.
func (e *engine) addRegion(id uint32, file *os.File, size int64) error {
	r, err := memfd.Open(file, size)
	if err != nil {
		file.Close()
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.regions[id] = &mappedRegion{region: r}
	return nil
}

func (e *engine) removeRegion(id uint32) {
	e.mu.Lock()
	r := e.regions[id]
	delete(e.regions, id)
	e.mu.Unlock()
	if r != nil {
		r.use.Lock()
		defer r.use.Unlock()
		r.gone = true
		r.region.Close()
	}
}

// region returns bytes [off, off+n) of a region, valid until release is called.
func (e *engine) region(id uint32, off, n int64) (b []byte, release func(), err error) {
	e.mu.Lock()
	r := e.regions[id]
	e.mu.Unlock()
	if r != nil {
		r.use.RLock()
		if !r.gone && off >= 0 && n > 0 && off <= r.region.Size() && n <= r.region.Size()-off {
			return r.region.Bytes()[off : off+n], r.use.RUnlock, nil
		}
		r.use.RUnlock()
	}
	return nil, nil, fmt.Errorf("no region %d with bytes [%d, +%d)", id, off, n)
}

// write copies bytes of a region to a slab.
func (e *engine) write(q *request) error {
	m, release, err := e.slab(q.slab, q.off, q.n)
	if err != nil {
		return err
	}
	defer release()
	src, release2, err := e.region(q.other, q.otherOff, q.n)
	if err != nil {
		return err
	}
	defer release2()
	if m.kind.Mapped {
		return e.store(m, q.off, src)
	}
	return e.staged(q.n, func(c *chunk, at, n int64) error {
		if err := e.store(e.ring.memory, c.off, src[at:at+n]); err != nil {
			return err
		}
		return e.queue.do(func(cmds *vk.Commands) {
			cmds.Copy(m.buffer, e.ring.memory.buffer, vk.BufferCopy{Src: uint64(c.off), Dst: uint64(q.off + at), Size: uint64(n)})
		})
	})
}

// read copies bytes of a slab to a region.
func (e *engine) read(q *request) error {
	m, release, err := e.slab(q.slab, q.off, q.n)
	if err != nil {
		return err
	}
	defer release()
	dst, release2, err := e.region(q.other, q.otherOff, q.n)
	if err != nil {
		return err
	}
	defer release2()
	if m.kind.Cached {
		return e.load(dst, m, q.off)
	}
	return e.staged(q.n, func(c *chunk, at, n int64) error {
		err := e.queue.do(func(cmds *vk.Commands) {
			cmds.Copy(e.ring.memory.buffer, m.buffer, vk.BufferCopy{Src: uint64(q.off + at), Dst: uint64(c.off), Size: uint64(n)})
		})
		if err != nil {
			return err
		}
		return e.load(dst[at:at+n], e.ring.memory, c.off)
	})
}

// staged calls move for every piece [at, at+n) of total bytes, each with a
// chunk of its own, concurrently: the CPU copies one piece while the device
// copies another.
func (e *engine) staged(total int64, move func(c *chunk, at, n int64) error) error {
	if total <= chunkSize {
		c := e.ring.get()
		defer e.ring.put(c)
		return move(c, 0, total)
	}
	var wg sync.WaitGroup
	errs := make([]error, (total-1)/chunkSize+1)
	for i := range errs {
		at := int64(i) * chunkSize
		c := e.ring.get()
		wg.Go(func() {
			defer e.ring.put(c)
			errs[i] = move(c, at, min(chunkSize, total-at))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// copy copies between slabs, on the device.
func (e *engine) copy(q *request) error {
	dst, release, err := e.slab(q.slab, q.off, q.n)
	if err != nil {
		return err
	}
	defer release()
	src, release2, err := e.slab(q.other, q.otherOff, q.n)
	if err != nil {
		return err
	}
	defer release2()
	return e.queue.do(func(cmds *vk.Commands) {
		cmds.Copy(dst.buffer, src.buffer, vk.BufferCopy{Src: uint64(q.otherOff), Dst: uint64(q.off), Size: uint64(q.n)})
	})
}

// fill repeats the four bytes of the pattern from off on. The device fills
// whole words at multiples of four; the up to three bytes on either side come
// from a chunk.
func (e *engine) fill(q *request) error {
	m, release, err := e.slab(q.slab, q.off, q.n)
	if err != nil {
		return err
	}
	defer release()
	f := splitFill(q.off, q.n, q.arg)
	if len(f.edges) == 0 {
		return e.queue.do(func(cmds *vk.Commands) { cmds.Fill(m.buffer, f.off, f.n, f.word) })
	}
	c := e.ring.get()
	defer e.ring.put(c)
	if err := e.store(e.ring.memory, c.off, f.edges); err != nil {
		return err
	}
	return e.queue.do(func(cmds *vk.Commands) {
		if f.n > 0 {
			cmds.Fill(m.buffer, f.off, f.n, f.word)
		}
		if f.head > 0 {
			cmds.Copy(m.buffer, e.ring.memory.buffer, vk.BufferCopy{Src: uint64(c.off), Dst: uint64(q.off), Size: uint64(f.head)})
		}
		if tail := int64(len(f.edges)) - f.head; tail > 0 {
			cmds.Copy(m.buffer, e.ring.memory.buffer, vk.BufferCopy{Src: uint64(c.off + f.head), Dst: uint64(f.off + f.n), Size: uint64(tail)})
		}
	})
}

// store copies src to mapped memory at off.
func (e *engine) store(m *memory, off int64, src []byte) error {
	n := int64(len(src))
	from, to := atoms(off, n, e.info.NonCoherentAtom, m.size)
	if !m.kind.Coherent && (from != off || to != off+n) {
		// What the device wrote beside these bytes, in the same atoms, must
		// not be overwritten with what the CPU's cache has of it.
		e.flushes.Add(1)
		if err := e.dev.Invalidate(m.mem, from, to-from); err != nil {
			return err
		}
	}
	if err := memfd.Guard(func() { memfd.Copy(m.bytes[off:off+n], src) }); err != nil {
		return err
	}
	if m.kind.Coherent {
		return nil
	}
	e.flushes.Add(1)
	return e.dev.Flush(m.mem, from, to-from)
}

// load copies mapped memory at off to dst.
func (e *engine) load(dst []byte, m *memory, off int64) error {
	n := int64(len(dst))
	if !m.kind.Coherent {
		from, to := atoms(off, n, e.info.NonCoherentAtom, m.size)
		e.flushes.Add(1)
		if err := e.dev.Invalidate(m.mem, from, to-from); err != nil {
			return err
		}
	}
	return memfd.Guard(func() { memfd.Copy(dst, m.bytes[off:off+n]) })
}

// queueFamily picks the queue that copies and fills: one that can compute or
// draw, since fills on others need Vulkan 1.1.
func queueFamily(info DeviceInfo) (int, error) {
	for _, want := range []vk.QueueFlags{vk.Compute, vk.Graphics} {
		for i, f := range info.Queues {
			if f.Count > 0 && f.Flags&want != 0 {
				return i, nil
			}
		}
	}
	return 0, fmt.Errorf("device %q has no queue that copies and fills", info.Name)
}
