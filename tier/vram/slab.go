// SPDX-License-Identifier: Apache-2.0

package vram

import "math/bits"

const (
	slotMin  = 4 << 10  // the smallest slot, and the unit of slots' places, in bytes
	slabUnit = 1 << 20  // slabs are multiples of this: a whole block's slot
	slabSize = 64 << 20 // the largest slab
)

// slabSizeFor returns the size of slabs, in bytes: small enough that a budget is
// not eaten up by the first slab of the first kind, large enough that 100 GiB
// are far from the number of allocations that every device allows, 4096.
func slabSizeFor(budget int64) int64 {
	size := int64(slabSize)
	for size > slabUnit && size > budget/16 {
		size /= 2
	}
	return size
}

// A slot is where a block lives. Its length is slotMin<<order, a multiple of
// any device's non-coherent atom, so that no two blocks share one.
type slot struct {
	gen   uint32 // the worker that had it; 0: none, the block is not reserved
	slab  uint32
	unit  uint32 // offset in the slab, in slotMin
	order uint8
}

func (s slot) off() int64 { return int64(s.unit) * slotMin }

// orderOf returns the order of the smallest slot that holds n bytes.
func orderOf(n int64) uint8 { return uint8(bits.Len64(uint64((n - 1) / slotMin))) }

// A slab is one piece of device memory, cut into slots by halving: a buddy
// allocator.
type slab struct {
	id   uint32
	kind int
	size int64
	used int64 // bytes of slots
	// tree[i] is 1 + the order of the largest free slot beneath node i, 0 if
	// there is none. Node 1 is the whole, 2i and 2i+1 are the halves of i.
	tree []uint8
	top  uint8 // the order of node 1; at least the slab's size
}

func newSlab(id uint32, kind int, size int64) *slab {
	top := orderOf(size)
	s := &slab{id: id, kind: kind, size: size, tree: make([]uint8, 2<<top), top: top}
	units := int(size / slotMin)
	for i := range 1 << top {
		if i < units { // the leaves beyond a size that is no power of two do not exist
			s.tree[1<<top+i] = 1
		}
	}
	for i := 1<<top - 1; i > 0; i-- {
		s.join(i)
	}
	return s
}

// join sets an inner node from its halves: when both are free as a whole, so
// is the node.
func (s *slab) join(i int) {
	order := s.top - uint8(bits.Len(uint(i))-1) // of node i
	l, r := s.tree[2*i], s.tree[2*i+1]
	if l == order && r == order {
		s.tree[i] = order + 1
	} else {
		s.tree[i] = max(l, r)
	}
}

// fits reports whether alloc of that order would succeed.
func (s *slab) fits(order uint8) bool { return s.tree[1] > order }

// alloc takes a slot and returns its unit. The slab must fit it.
func (s *slab) alloc(order uint8) uint32 {
	i := 1
	for at := s.top; at > order; at-- {
		// The fuller half, if it has room: what is whole stays whole.
		l, r := s.tree[2*i], s.tree[2*i+1]
		i *= 2
		if l <= order || r > order && r < l {
			i++
		}
	}
	s.tree[i] = 0
	s.used += slotMin << order
	unit := uint32(i-1<<(s.top-order)) << order
	for i /= 2; i > 0; i /= 2 {
		s.join(i)
	}
	return unit
}

// free gives a slot back.
func (s *slab) free(unit uint32, order uint8) {
	i := 1<<(s.top-order) + int(unit>>order)
	s.tree[i] = order + 1
	s.used -= slotMin << order
	for i /= 2; i > 0; i /= 2 {
		s.join(i)
	}
}
