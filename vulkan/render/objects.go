// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"errors"
	"fmt"

	"github.com/memspan/memspan/vulkan/registry"
)

var (
	// errHandle is a call that names a handle which does not exist or is of
	// another type.
	errHandle = errors.New("render: unknown handle")
	// errMalformed is a stream that no driver of ours sends.
	errMalformed = errors.New("render: malformed stream")
	// errObjects is a call over the budget of handles.
	errObjects = errors.New("render: too many handles")
)

// An object is one handle: what the client calls it and what the driver does.
// Its fields but for state belong to the stream's goroutine.
type object struct {
	id   uint64
	kind registry.Index // in registry.Handles
	real uint64         // 0 while it is being created
	// creating is closed when the call aside that creates the object has stored
	// real; nil for all others.
	creating chan struct{}

	device *device // nil for instances and physical devices
	// parent owns it: when it goes, so do all that it owns. The children are a
	// list, the youngest first.
	parent             *object
	child, next, older *object // next is younger, older is older

	// state is what the renderer keeps for some types: *instance, *device,
	// *queue, *fence, *timeline, *binarySemaphore, *commandBuffer, *buffer, *image,
	// *deviceMemory, *event.
	state any
}

// A dropper is a state that wants to know when the client's handle ends.
type dropper interface{ dropped() }

// A table finds objects by the ids that the client gave them: the low half of
// an id is an index, dense and reused, the high half tells its users apart and
// is never 0.
type table struct {
	slots []*object
	count int
	limit int // of handles at a time, and so of indices
}

// find returns the object of an id, whatever its type, or nil.
func (t *table) find(id uint64) *object {
	index := uint32(id)
	if int64(index) >= int64(len(t.slots)) {
		return nil
	}
	if o := t.slots[index]; o != nil && o.id == id {
		return o
	}
	return nil
}

// get returns the object of an id and a type, or nil. It waits for one that is
// being created; an object whose creation failed is not there.
func (t *table) get(kind registry.Index, id uint64) *object {
	o := t.find(id)
	if o == nil || o.kind != kind {
		return nil
	}
	if o.creating != nil {
		<-o.creating
		o.creating = nil
		if o.real == 0 {
			t.drop(o)
		}
	}
	if o.real == 0 {
		return nil
	}
	return o
}

// check reports whether n more ids, which must be free, fit.
func (t *table) check(ids []uint64) error {
	if len(ids) > t.limit-t.count {
		return fmt.Errorf("%w: %d and %d more, at most %d", errObjects, t.count, len(ids), t.limit)
	}
	for _, id := range ids {
		index := uint32(id)
		switch {
		case id>>32 == 0:
			return fmt.Errorf("%w: handle %#x has no generation", errMalformed, id)
		case int64(index) >= int64(t.limit):
			return fmt.Errorf("%w: handle %#x: indices are dense, and at most %d", errMalformed, id, t.limit)
		case int64(index) < int64(len(t.slots)) && t.slots[index] != nil:
			// One whose creation failed is not there either; get would have
			// found out.
			if old := t.slots[index]; t.get(old.kind, old.id) != nil {
				return fmt.Errorf("%w: handle %#x takes the place of %#x", errMalformed, id, old.id)
			}
		}
	}
	return nil
}

// add enters an object, whose id check allowed. Its parent may be nil.
func (t *table) add(o *object) {
	index := int(uint32(o.id))
	for index >= len(t.slots) {
		t.slots = append(t.slots, nil)
	}
	if t.slots[index] != nil {
		return // the same id twice in one call: the first stands
	}
	t.slots[index] = o
	t.count++
	if p := o.parent; p != nil {
		o.older = p.child
		if p.child != nil {
			p.child.next = o
		}
		p.child = o
	}
}

// drop forgets an object and all that it owns. It calls no driver.
func (t *table) drop(o *object) {
	t.dropChildren(o)
	t.slots[uint32(o.id)] = nil
	t.count--
	if d, ok := o.state.(dropper); ok {
		d.dropped()
	}
	if o.next != nil {
		o.next.older = o.older
	} else if o.parent != nil && o.parent.child == o {
		o.parent.child = o.older
	}
	if o.older != nil {
		o.older.next = o.next
	}
	o.next, o.older, o.parent = nil, nil, nil
}

// dropChildren forgets all that an object owns.
func (t *table) dropChildren(o *object) {
	for o.child != nil {
		t.drop(o.child)
	}
}
