// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// A generation is one worker's life: the link to it, the slabs it made and the
// regions it maps. All of it ends with the worker.
type generation struct {
	*link
	t      *Tier
	number uint32
	kinds  []kind
	place  [3]int // index into kinds, by tier.Placement
	most   int    // slabs, that the device's limit of allocations is never met

	grow chan struct{} // holds one token; whoever makes or frees slabs has taken it

	mu     sync.Mutex // taken after nothing, and before nothing
	slabs  [][]*slab  // by kind, oldest first
	byID   map[uint32]*slab
	used   int64 // bytes of slabs, those being made included
	slots  int64
	lastID uint32

	regionMu   sync.Mutex
	regions    map[*memfd.Region]*region
	lastRegion uint32

	lastKernel atomic.Uint32
}

// A region is a memfd that the worker maps, or is about to.
type region struct {
	id    uint32
	ready chan struct{} // closed when err is set
	err   error
}

func newGeneration(t *Tier, l *link, number uint32, opened openReply) *generation {
	g := &generation{
		link: l, t: t, number: number, kinds: opened.Kinds, place: opened.Place,
		most:    int(min(opened.Device.MaxAllocations/2, math.MaxInt32)), // the other half is for whoever else uses the device
		grow:    make(chan struct{}, 1),
		slabs:   make([][]*slab, len(opened.Kinds)),
		byID:    make(map[uint32]*slab),
		regions: make(map[*memfd.Region]*region),
	}
	g.grow <- struct{}{}
	return g
}

func (g *generation) usage() (used, slabs, slots int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used, int64(len(g.byID)), g.slots
}

// taken returns the bytes and the number of slabs.
func (g *generation) taken() (used int64, slabs int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used, len(g.byID)
}

// reserve takes a slot of 1<<order slotMin bytes in a slab of a kind.
func (g *generation) reserve(ctx context.Context, kind int, order uint8) (slot, error) {
	if s, ok := g.take(kind, order); ok {
		return s, nil
	}
	select {
	case <-g.grow:
	case <-ctx.Done():
		return slot{}, ctx.Err()
	case <-g.dead:
		return slot{}, g.lost(opAddSlab)
	}
	defer func() { g.grow <- struct{}{} }()
	for { // the slots of a new slab may all go to other calls
		if s, ok := g.take(kind, order); ok {
			return s, nil
		}
		if err := g.addSlab(kind); err != nil {
			return slot{}, err
		}
	}
}

// take takes a slot if there is room: in the oldest slab, so that the others
// become empty.
func (g *generation) take(kind int, order uint8) (slot, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.slabs[kind] {
		if s.fits(order) {
			g.slots++
			return slot{gen: g.number, slab: s.id, unit: s.alloc(order), order: order}, true
		}
	}
	return slot{}, false
}

// addSlab makes a slab. The caller holds the grow token.
func (g *generation) addSlab(kind int) error {
	used, count := g.taken()
	if g.t.budget-used < slabUnit {
		// An empty slab of another kind may be in the way.
		g.trim(func(s *slab) bool { return s.kind != kind })
		used, count = g.taken()
	}
	size := min(slabSizeFor(g.t.budget), (g.t.budget-used)/slabUnit*slabUnit)
	if size < slabUnit {
		return fmt.Errorf("%w: device memory in use is %d of %d bytes, and a block needs %d more", tier.ErrBudget, used, g.t.budget, slabUnit)
	}
	if count >= g.most {
		return fmt.Errorf("%w: %d device allocations, of %d that are allowed", tier.ErrBudget, count, g.most)
	}
	for {
		err := g.makeSlab(kind, size)
		// A full device may still have room for less.
		if !errors.Is(err, tier.ErrBudget) || size == slabUnit {
			return err
		}
		size = max(size/4/slabUnit, 1) * slabUnit
	}
}

func (g *generation) makeSlab(kind int, size int64) error {
	g.mu.Lock()
	g.lastID++
	s := newSlab(g.lastID, kind, size)
	g.used += size
	g.mu.Unlock()
	_, err := g.do(request{op: opAddSlab, slab: s.id, arg: uint32(kind), n: size}, nil, nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.used -= size
		return err
	}
	g.slabs[kind] = append(g.slabs[kind], s)
	g.byID[s.id] = s
	return nil
}

// release gives a slot back. When that leaves two slabs of a kind empty, the
// newer goes back to the device.
func (g *generation) release(sl slot) {
	g.mu.Lock()
	s := g.byID[sl.slab]
	s.free(sl.unit, sl.order)
	g.slots--
	idle := 0
	for _, other := range g.slabs[s.kind] {
		if other.used == 0 {
			idle++
		}
	}
	again := s.used == 0 && idle > 1
	g.mu.Unlock()
	if !again {
		return
	}
	select {
	case <-g.grow:
	case <-g.dead:
		return
	}
	defer func() { g.grow <- struct{}{} }()
	kept := false
	g.trim(func(other *slab) bool {
		if other.kind != s.kind {
			return false
		}
		first := !kept
		kept = true
		return !first
	})
}

// trim gives those empty slabs back to the device that drop says, asked for
// each in order of age. The caller holds the grow token.
func (g *generation) trim(drop func(*slab) bool) {
	var dropped []*slab
	g.mu.Lock()
	for k := range g.slabs {
		g.slabs[k] = slices.DeleteFunc(g.slabs[k], func(s *slab) bool {
			if s.used > 0 || !drop(s) {
				return false
			}
			dropped = append(dropped, s)
			delete(g.byID, s.id)
			return true
		})
	}
	g.mu.Unlock()
	for _, s := range dropped {
		// An error means that the worker is dead, and the slab with it.
		g.do(request{op: opRemoveSlab, slab: s.id}, nil, nil)
		g.mu.Lock()
		g.used -= s.size
		g.mu.Unlock()
	}
}

// region returns the worker's number for r, having it map r at first sight.
func (g *generation) region(r *memfd.Region) (uint32, error) {
	g.regionMu.Lock()
	known, ok := g.regions[r]
	if !ok {
		g.lastRegion++
		known = &region{id: g.lastRegion, ready: make(chan struct{})}
		g.regions[r] = known
	}
	g.regionMu.Unlock()
	if ok {
		<-known.ready
		return known.id, known.err
	}
	_, known.err = g.do(request{op: opAddRegion, other: known.id, n: r.Size()}, nil, r.File())
	if known.err != nil { // the next call tries again
		g.regionMu.Lock()
		delete(g.regions, r)
		g.regionMu.Unlock()
	}
	close(known.ready)
	return known.id, known.err
}

func (g *generation) forget(r *memfd.Region) {
	g.regionMu.Lock()
	known, ok := g.regions[r]
	delete(g.regions, r)
	g.regionMu.Unlock()
	if !ok {
		return
	}
	<-known.ready
	// An error means that the worker is dead, and maps nothing.
	g.do(request{op: opRemoveRegion, other: known.id}, nil, nil)
}
