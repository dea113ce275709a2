// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/memspan/memspan/tier"
)

// A space is one span's storage; it implements tier.Space.
type space struct {
	t         *Tier
	name      string
	size      int64
	placement tier.Placement

	mu     sync.RWMutex
	closed bool
	pages  []*slotPage // made as blocks are reserved
}

// slotPage bounds what a large span costs before it is used.
type slotPage [1024]slot

var errNotReserved = errors.New("block has no memory here: it was not reserved")

// Open makes storage for a span of size bytes; it neither asks the worker nor
// takes memory. Spaces outlive workers, their blocks do not.
func (t *Tier) Open(ctx context.Context, name string, size int64, placement tier.Placement) (tier.Space, error) {
	const most = 1 << 50 // whose slots would take 16 GiB
	if size <= 0 || size > most {
		return nil, fmt.Errorf("vram: open %q: size %d is not within 1 and %d", name, size, int64(most))
	}
	if placement > tier.DeviceLocal {
		return nil, fmt.Errorf("vram: open %q: unknown placement %d", name, placement)
	}
	if err := t.ctx.Err(); err != nil {
		return nil, fmt.Errorf("vram: open %q: tier is closed: %w", name, os.ErrClosed)
	}
	blocks := (size-1)/tier.BlockSize + 1
	return &space{
		t: t, name: name, size: size, placement: placement,
		pages: make([]*slotPage, (blocks-1)/int64(len(slotPage{}))+1),
	}, nil
}

// length returns the bytes of block b, 0 if there is no such block.
func (s *space) length(b int) int64 {
	if b < 0 || int64(b) > (s.size-1)/tier.BlockSize {
		return 0
	}
	return min(tier.BlockSize, s.size-int64(b)*tier.BlockSize)
}

// at returns block b's slot. The caller holds mu.
func (s *space) at(b int) slot {
	if page := s.pages[b/len(slotPage{})]; page != nil {
		return page[b%len(slotPage{})]
	}
	return slot{}
}

// put sets block b's slot. The caller holds mu.
func (s *space) put(b int, sl slot) {
	page := &s.pages[b/len(slotPage{})]
	if *page == nil {
		*page = new(slotPage)
	}
	(*page)[b%len(slotPage{})] = sl
}

// locate checks that bytes [off, off+n) of block b exist and returns the slot
// and the worker that has it.
func (s *space) locate(ctx context.Context, b int, off, n int64) (*generation, slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, slot{}, err
	}
	if length := s.length(b); off < 0 || n < 0 || off > length || n > length-off {
		return nil, slot{}, fmt.Errorf("range is outside the block's %d bytes", length)
	}
	s.mu.RLock()
	closed, sl := s.closed, slot{}
	if !closed && s.length(b) > 0 {
		sl = s.at(b)
	}
	s.mu.RUnlock()
	switch {
	case closed:
		return nil, slot{}, os.ErrClosed
	case sl.gen == 0:
		return nil, slot{}, errNotReserved
	}
	g, err := s.t.generation()
	if errors.Is(err, tier.ErrAbsent) || err == nil && g.number != sl.gen {
		return nil, slot{}, fmt.Errorf("%w: its worker ended", tier.ErrLost)
	}
	return g, sl, err
}

// wrap adds what was asked to an error.
func (s *space) wrap(err error, what string, b int, off, n int64) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("vram: %s block %d of %q, bytes [%d, +%d): %w", what, b, s.name, off, n, err)
}

// Reserve implements tier.Space. While there is no worker it fails with
// [tier.ErrAbsent].
func (s *space) Reserve(ctx context.Context, b int) error {
	return s.wrap(s.reserve(ctx, b), "reserve", b, 0, s.length(b))
}

func (s *space) reserve(ctx context.Context, b int) error {
	if s.length(b) == 0 {
		return errors.New("there is no such block")
	}
	_, _, err := s.locate(ctx, b, 0, 0)
	if err == nil || !errors.Is(err, errNotReserved) && !errors.Is(err, tier.ErrLost) {
		return err
	}
	g, err := s.t.generation()
	if err != nil {
		return err
	}
	sl, err := g.reserve(ctx, g.place[s.placement], orderOf(s.length(b)))
	if err != nil {
		return err
	}
	s.mu.Lock()
	had := s.at(b)
	if s.closed || had.gen == g.number { // closed or reserved by another call meanwhile
		err := error(nil)
		if s.closed {
			err = os.ErrClosed
		}
		s.mu.Unlock()
		g.release(sl)
		return err
	}
	s.put(b, sl)
	s.mu.Unlock()
	return nil
}

// Read implements tier.Space.
func (s *space) Read(ctx context.Context, b int, off int64, dst tier.Memory) error {
	return s.wrap(s.transfer(ctx, opRead, b, off, dst), "read", b, off, dst.Len)
}

// Write implements tier.Space.
func (s *space) Write(ctx context.Context, b int, off int64, src tier.Memory) error {
	return s.wrap(s.transfer(ctx, opWrite, b, off, src), "write", b, off, src.Len)
}

func (s *space) transfer(ctx context.Context, op op, b int, off int64, m tier.Memory) error {
	g, sl, err := s.locate(ctx, b, off, m.Len)
	if err != nil || m.Len == 0 {
		return err
	}
	if m.Off < 0 || m.Len > m.Region.Size()-m.Off {
		return fmt.Errorf("memory [%d, +%d) is outside its region's %d bytes", m.Off, m.Len, m.Region.Size())
	}
	id, err := g.region(m.Region)
	if err != nil {
		return fmt.Errorf("share memory with the worker: %w", err)
	}
	if _, err := g.do(request{op: op, slab: sl.slab, off: sl.off() + off, other: id, otherOff: m.Off, n: m.Len}, nil, nil); err != nil {
		return err
	}
	k := g.kinds[g.place[s.placement]]
	if op == opWrite && k.Mapped || op == opRead && k.Cached {
		g.count.mapped.Add(m.Len)
	} else {
		g.count.staged.Add(m.Len)
	}
	return nil
}

// Fill implements tier.Space: on the device.
func (s *space) Fill(ctx context.Context, b int, off, n int64, pattern uint32) error {
	g, sl, err := s.locate(ctx, b, off, n)
	if err == nil && n > 0 {
		_, err = g.do(request{op: opFill, slab: sl.slab, off: sl.off() + off, n: n, arg: pattern}, nil, nil)
	}
	if err == nil && n > 0 {
		g.count.device.Add(n)
	}
	return s.wrap(err, "fill", b, off, n)
}

// Copy implements tier.Space: on the device.
func (s *space) Copy(ctx context.Context, b int, off int64, src tier.Space, sb int, soff, n int64) error {
	return s.wrap(s.copy(ctx, b, off, src, sb, soff, n), "copy to", b, off, n)
}

func (s *space) copy(ctx context.Context, b int, off int64, src tier.Space, sb int, soff, n int64) error {
	from, ok := src.(*space)
	if !ok || from.t != s.t {
		return errors.New("the source is not a space of this tier")
	}
	g, sl, err := s.locate(ctx, b, off, n)
	if err != nil {
		return err
	}
	fromG, fromSlot, err := from.locate(ctx, sb, soff, n)
	if err != nil {
		return from.wrap(err, "copy from", sb, soff, n)
	}
	if fromG != g {
		return fmt.Errorf("%w: its worker ended", tier.ErrLost) // between the two looks
	}
	if n == 0 {
		return nil
	}
	_, err = g.do(request{op: opCopy, slab: sl.slab, off: sl.off() + off, other: fromSlot.slab, otherOff: fromSlot.off() + soff, n: n}, nil, nil)
	if err == nil {
		g.count.device.Add(n)
	}
	return err
}

// Drop implements tier.Space.
func (s *space) Drop(b int) {
	if s.length(b) == 0 {
		return
	}
	s.mu.Lock()
	sl := s.at(b)
	if sl.gen != 0 {
		s.put(b, slot{})
	}
	s.mu.Unlock()
	s.release(sl)
}

// release gives a slot back if its worker still lives.
func (s *space) release(sl slot) {
	if sl.gen == 0 {
		return
	}
	if g, err := s.t.generation(); err == nil && g.number == sl.gen {
		g.release(sl)
	}
}

// Close implements tier.Space.
func (s *space) Close() error {
	s.mu.Lock()
	pages := s.pages
	s.pages, s.closed = make([]*slotPage, len(pages)), true
	s.mu.Unlock()
	for _, page := range pages {
		if page != nil {
			for _, sl := range page {
				s.release(sl)
			}
		}
	}
	return nil
}
