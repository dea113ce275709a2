// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/vulkan/registry"
)

// errObjects is the limit on objects.
var errObjects = errors.New("driver: too many objects, or no memory for their handles")

const (
	chunkBits = 12
	chunkSize = 1 << chunkBits // objects of a chunk
	chunks    = 1 << 12        // at most: 16 million objects
)

// An object is what a handle names.
type object struct {
	id     uint64
	handle uint64 // what the application holds: the id, or the address of C memory
	kind   registry.Index
	link   *link        // on which it lives
	device *deviceState // nil: the instance's
	state  any          // by kind; nil where nothing is kept

	// Protected by objects.mu.
	parent         *object
	child          *object // the newest
	older, younger *object // siblings
}

// A dropper is a state that holds something beyond memory.
type dropper interface {
	// dropped is called once, when the object is no longer found.
	dropped()
}

// objects is the table of all objects of a driver. An id is an index, which is
// used again, and above it a generation that is never 0, so that a stale handle
// finds nothing.
type objects struct {
	alloc func(size uintptr) uintptr
	free  func(uintptr)

	chunks [chunks]atomic.Pointer[chunk]
	limit  atomic.Int64 // of objects at a time: the worker's; 0: none but ours

	mu     sync.Mutex
	unused []uint32 // indices of dropped objects
	next   uint32   // the first index never used
	live   int
}

type chunk struct {
	slots       [chunkSize]atomic.Pointer[object]
	generations [chunkSize]uint32 // of the object that was made last; protected by objects.mu
}

// get returns the object of an id, nil if there is none.
func (t *objects) get(id uint64) *object {
	index := uint32(id)
	if index >= chunks*chunkSize {
		return nil
	}
	c := t.chunks[index>>chunkBits].Load()
	if c == nil {
		return nil
	}
	o := c.slots[index&(chunkSize-1)].Load()
	if o == nil || o.id != id {
		return nil
	}
	return o
}

// of returns the object of a handle of the given type, nil if it names none of
// that type.
func (t *objects) of(kind registry.Index, handle uint64) *object {
	if handle == 0 {
		return nil
	}
	id := handle
	if registry.Handles[kind].Dispatchable {
		id = idAt(handle)
	}
	// Memory that was inherited by a forked process may have an id of ours.
	if o := t.get(id); o != nil && o.kind == kind && o.handle == handle {
		return o
	}
	return nil
}

// dispatchable returns the object of a dispatchable handle, nil if it names
// none.
func (t *objects) dispatchable(handle uint64) *object {
	if handle == 0 {
		return nil
	}
	if o := t.get(idAt(handle)); o != nil && o.handle == handle {
		return o
	}
	return nil
}

// create makes an object. Its link and device are its parent's; who makes one
// without a parent, or a device, sets them before others can know the handle.
func (t *objects) create(kind registry.Index, parent *object, state any) (*object, error) {
	o := &object{kind: kind, parent: parent, state: state}
	if parent != nil {
		o.link, o.device = parent.link, parent.device
	}
	dispatchable := registry.Handles[kind].Dispatchable
	if dispatchable {
		if o.handle = uint64(t.alloc(dispatchableSize)); o.handle == 0 {
			return nil, errObjects
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	index := t.next
	if limit := t.limit.Load(); limit > 0 && int64(t.live) >= limit {
		if dispatchable {
			t.free(uintptr(o.handle))
		}
		return nil, errObjects
	}
	if n := len(t.unused); n > 0 {
		index = t.unused[n-1]
		t.unused = t.unused[:n-1]
	} else if index == chunks*chunkSize {
		if dispatchable {
			t.free(uintptr(o.handle))
		}
		return nil, errObjects
	} else {
		t.next++
	}
	c := t.chunks[index>>chunkBits].Load()
	if c == nil {
		c = new(chunk)
		t.chunks[index>>chunkBits].Store(c)
	}
	slot := index & (chunkSize - 1)
	c.generations[slot]++
	if c.generations[slot] == 0 {
		c.generations[slot] = 1
	}
	o.id = uint64(c.generations[slot])<<32 | uint64(index)
	if dispatchable {
		store64(o.handle, loaderMagic)
		store64(o.handle+8, o.id)
	} else {
		o.handle = o.id
	}
	if parent != nil {
		if o.older = parent.child; o.older != nil {
			o.older.younger = o
		}
		parent.child = o
	}
	t.live++
	c.slots[slot].Store(o)
	return o, nil
}

// drop ends an object and all that were made of it, the youngest first. Nobody
// may use their handles any more.
func (t *objects) drop(o *object) {
	if o == nil {
		return
	}
	for _, gone := range t.unlink(o) {
		if d, ok := gone.state.(dropper); ok {
			d.dropped()
		}
	}
}

// dropChildren ends all objects made of o for which only says so; nil is all.
func (t *objects) dropChildren(o *object, only func(*object) bool) {
	for _, c := range t.children(o) {
		if only == nil || only(c) {
			t.drop(c)
		}
	}
}

// children returns the objects made of o, the youngest first.
func (t *objects) children(o *object) []*object {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*object
	for c := o.child; c != nil; c = c.older {
		all = append(all, c)
	}
	return all
}

// unlink takes o and its children out of the table and returns them.
func (t *objects) unlink(o *object) []*object {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.get(o.id) != o {
		return nil
	}
	if o.older != nil {
		o.older.younger = o.younger
	}
	if o.younger != nil {
		o.younger.older = o.older
	} else if o.parent != nil {
		o.parent.child = o.older
	}
	return t.remove(o, nil)
}

// remove takes o and its children out of the table and appends them to gone,
// children first. The caller holds mu.
func (t *objects) remove(o *object, gone []*object) []*object {
	for c := o.child; c != nil; c = c.older {
		gone = t.remove(c, gone)
	}
	o.child = nil
	index := uint32(o.id)
	t.chunks[index>>chunkBits].Load().slots[index&(chunkSize-1)].Store(nil)
	t.unused = append(t.unused, index)
	t.live--
	if o.handle != o.id {
		t.free(uintptr(o.handle))
	}
	return append(gone, o)
}

// count returns how many objects there are.
func (t *objects) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live
}
