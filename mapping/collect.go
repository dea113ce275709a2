// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/wire"
)

// A Run is bytes [Offset, Offset+Length) of a block, as they travel.
type Run = wire.Run

// A Change is what the user wrote in one block, as it was at one moment. It
// belongs to the receiver until Ack or Nack, which take Runs and Data back for
// reuse and set them to nil.
type Change struct {
	Block int64  // the block's index in the span
	Runs  []Run  // in order, neither overlapping nor touching
	Data  []byte // the runs' bytes, one after another

	scratch *scratch // that Runs and Data are in, if they are copies
}

// A scratch is room for the changes of one large block, or of many small ones.
type scratch struct {
	runs  []Run
	data  []byte // room for two blocks
	users int    // changes that are in it; guarded by the shadow's mu
}

// room returns the scratch that the next block's changes go to. The caller
// holds mu.
func (s *Shadow) room() *scratch {
	if r := s.scratch; r != nil {
		if r.users == 0 {
			r.runs, r.data = r.runs[:0], r.data[:0]
		}
		if int64(cap(r.data)-len(r.data)) >= s.blockSize {
			return r
		}
		s.scratch = nil // whoever is in it gives it back
	}
	r, ok := s.pool.scratch.Get().(*scratch)
	if !ok || int64(cap(r.data)) < 2*s.blockSize {
		r = &scratch{data: make([]byte, 0, 2*s.blockSize)}
	}
	r.runs, r.data = r.runs[:0], r.data[:0]
	s.scratch = r
	return r
}

// Collect finds what the user wrote in the span's bytes [off, off+n) and calls
// yield for each block that changed, in order. Runs are exact: a byte is in
// one if and only if it differs from what the server last held.
//
// The receiver settles every change by Ack or Nack, from any goroutine and in
// any order, and may still hold several when yield returns. A change that is
// not settled when the next Collect begins counts as not applied: its bytes
// are found again, and an Ack that comes later is ignored. If yield returns an
// error, Collect settles that change as by Nack and returns the error; it also
// ends when ctx does. Nothing is lost by ending early.
//
// A store that happens during Collect is found either now or the next time.
// Collects, of other ranges too, run one after another; yield must not call
// one. Memory used is a few blocks and what the receiver holds.
func (s *Shadow) Collect(ctx context.Context, off, n int64, yield func(*Change) error) error {
	at, err := s.locate(off, n)
	if err != nil {
		return err
	}
	if !s.image {
		return errors.New("mapping: collect from a mapping without an image: it is read-only, or its ranges must be named")
	}
	s.collecting.Lock()
	defer s.collecting.Unlock()
	if err := s.gather(ctx, at); err != nil {
		return err
	}
	return s.eachBlock(ctx, at, s.changes, yield)
}

// CollectNamed calls yield for each block of the span's bytes [off, off+n)
// with one run: all its bytes of that range, changed or not. It is for callers
// who know what they wrote, and works with every tracking. Changes are settled
// as with Collect.
func (s *Shadow) CollectNamed(ctx context.Context, off, n int64, yield func(*Change) error) error {
	at, err := s.locate(off, n)
	if err != nil {
		return err
	}
	s.collecting.Lock()
	defer s.collecting.Unlock()
	return s.eachBlock(ctx, at, s.whole, yield)
}

// CollectLast is CollectNamed for the last time, when the user stores no more:
// the changes' data are the shadow's own bytes, not copies, and valid until
// Close.
func (s *Shadow) CollectLast(ctx context.Context, off, n int64, yield func(*Change) error) error {
	at, err := s.locate(off, n)
	if err != nil {
		return err
	}
	s.collecting.Lock()
	defer s.collecting.Unlock()
	return s.eachBlock(ctx, at, nil, yield)
}

// eachBlock calls find, with s.mu held, and then yield for each block of at.
func (s *Shadow) eachBlock(ctx context.Context, at extent, find func(block int64, at extent, room *scratch), yield func(*Change) error) error {
	for start := at.start; start < at.end; {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("mapping: collect from offset %d on: %w", s.base+start, err)
		}
		block := (s.base + start) / s.blockSize
		end := min(at.end, (block+1)*s.blockSize-s.base)
		c, err := s.change(block, extent{start, end}, find)
		if err != nil {
			return err
		}
		if c != nil {
			if err := yield(c); err != nil {
				s.Nack(c)
				return err
			}
		}
		start = end
	}
	return nil
}

// change returns what find finds in one block, or nil; all of it in place if
// find is nil.
func (s *Shadow) change(block int64, at extent, find func(int64, extent, *scratch)) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	if find == nil {
		c := &Change{
			Block: block,
			Runs:  []Run{{Offset: uint32(at.start - (block*s.blockSize - s.base)), Length: uint32(at.end - at.start)}},
			Data:  s.region.alias[at.start:at.end:at.end],
		}
		s.outstanding[c] = struct{}{}
		return c, nil
	}
	room := s.room()
	runs, data := len(room.runs), len(room.data)
	own := &s.found
	own.runs, own.data = room.runs[runs:], room.data[data:]
	find(block, at, own)
	if len(own.runs) == 0 {
		return nil, nil
	}
	room.data = room.data[:data+len(own.data)]
	if runs+len(own.runs) <= cap(room.runs) {
		room.runs = room.runs[:runs+len(own.runs)]
	} else { // they have moved to where there is room
		room.runs = own.runs
	}
	c := &Change{Block: block, Runs: slices.Clip(own.runs), Data: slices.Clip(own.data), scratch: room}
	room.users++
	s.outstanding[c] = struct{}{}
	return c, nil
}

// gather begins a collection: it makes candidates of what is not settled and
// of what the kernel saw written in at, whose pages it protects again, or of
// what the sums say.
func (s *Shadow) gather(ctx context.Context, at extent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	for c := range s.outstanding {
		s.reopen(c)
	}
	clear(s.outstanding)
	if at.start == at.end {
		return nil
	}
	if s.tracking != Pages {
		return s.sums.compare(ctx, at)
	}
	s.ask(at.start/pageSize, (at.end+pageSize-1)/pageSize)
	return nil
}

const (
	// granule is how many pages are protected, or not, together.
	granule = 16
	// A granule with fewer changed pages than cold, patience times, is protected
	// again. (Who writes, submits and reads back collects twice without a change.)
	cold     = 4
	patience = 4
)

// ask asks the kernel which of the pages [first, last) were written, and has it
// protect them again. The first store to a protected page costs several times
// what comparing the page does. So, if the tracking is Adaptive, granules that were written whole are hot:
// they are not protected any more and are compared each time, until several times
// in a row little of one has changed.
func (s *Shadow) ask(first, last int64) {
	s.written = s.written[:0]
	for p := first; p < last; {
		from, to := last, last
		if s.hot != nil {
			if lo, hi := s.hot.next((p+granule-1)/granule, last/granule); lo < hi {
				from, to = lo*granule, hi*granule
			}
		}
		s.pending.set(from, to)
		if p < from {
			var err error
			s.written, err = s.region.tracker.Collect(s.region.user, int(p*pageSize), int((from-p)*pageSize), s.written)
			if err != nil {
				// Then any page may have been written. It costs a comparison.
				s.pending.set(first, last)
				return
			}
		}
		p = to
	}
	for _, r := range s.written {
		lo, hi := int64(r.Start)/pageSize, int64(r.End)/pageSize
		s.pending.set(lo, hi)
		if s.hot == nil {
			continue
		}
		lo, hi = (lo+granule-1)/granule, hi/granule
		s.hot.set(lo, hi)
		for g := lo; g < hi; g++ {
			s.heat[g] = patience
		}
	}
}

// cool takes note of how many pages of a granule have changed.
func (s *Shadow) cool(g int64, changed int) {
	if changed >= cold {
		s.heat[g] = patience
	} else if s.heat[g]--; s.heat[g] == 0 {
		s.hot.clear(g, g+1)
	}
}

// reopen makes the pages of a change candidates again.
func (s *Shadow) reopen(c *Change) {
	if s.tracking != Pages {
		return
	}
	block := c.Block*s.blockSize - s.base
	for _, r := range c.Runs {
		at := block + int64(r.Offset)
		s.pending.set(at/pageSize, (at+int64(r.Length)+pageSize-1)/pageSize)
	}
}

// candidates returns the first piece of at that may differ from the image.
func (s *Shadow) candidates(at extent) (extent, bool) {
	first, last := s.pending.next(at.start/pageSize, (at.end+pageSize-1)/pageSize)
	return extent{max(at.start, first*pageSize), min(at.end, last*pageSize)}, first < last
}

// changes appends to room what differs from the image in at, a piece of block.
func (s *Shadow) changes(block int64, at extent, room *scratch) {
	origin := block*s.blockSize - s.base
	for rest := at; rest.start < rest.end; {
		piece, ok := s.candidates(rest)
		if !ok {
			break
		}
		changed := 0 // pages of a granule
		for p := piece.start; p < piece.end; {
			q := min(piece.end, p&^(pageSize-1)+pageSize)
			now, was := s.region.alias[p:q], s.region.image[p:q]
			if !bytes.Equal(now, was) {
				changed++
				// The user may be writing: what is compared must be what is sent.
				now = room.data[len(room.data) : int64(len(room.data))+q-p]
				copy(now, s.region.alias[p:q])
				room.runs, room.data = appendRuns(room.runs, room.data, uint32(p-origin), now, was)
			}
			p = q
			if p%(granule*pageSize) == 0 {
				if g := p/pageSize/granule - 1; s.hot != nil && s.hot.has(g) {
					s.cool(g, changed)
				}
				changed = 0
			}
		}
		rest.start = piece.end
	}
	if s.tracking != Pages {
		return
	}
	// A page that reaches beyond at has been compared in part only.
	first, last := (at.start+pageSize-1)/pageSize, at.end/pageSize
	if at.start <= s.start {
		first = at.start / pageSize
	}
	if at.end >= s.start+s.n {
		last = s.pages()
	}
	s.pending.clear(first, last)
}

// whole appends to room all of at, a piece of block.
func (s *Shadow) whole(block int64, at extent, room *scratch) {
	from := len(room.data)
	room.data = room.data[:int64(from)+at.end-at.start]
	memfd.Copy(room.data[from:], s.region.alias[at.start:at.end])
	room.runs = append(room.runs, Run{Offset: uint32(at.start - (block*s.blockSize - s.base)), Length: uint32(at.end - at.start)})
}

// Ack says that the server holds the change: its bytes are what later writes
// are compared with.
func (s *Shadow) Ack(c *Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settle(c) {
		return
	}
	if s.image {
		block, data := c.Block*s.blockSize-s.base, c.Data
		for _, r := range c.Runs {
			at := block + int64(r.Offset)
			memfd.Copy(s.region.image[at:at+int64(r.Length)], data)
			data = data[r.Length:]
		}
		if s.sums != nil {
			s.sums.changed(block, c.Runs)
		}
	}
	s.recycle(c)
}

// Nack says that the server did not apply the change: the next Collect of its
// blocks finds the bytes again.
func (s *Shadow) Nack(c *Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settle(c) {
		return
	}
	s.reopen(c)
	s.recycle(c)
}

// settle reports whether c was waiting to be settled.
func (s *Shadow) settle(c *Change) bool {
	_, ok := s.outstanding[c]
	delete(s.outstanding, c)
	return ok
}

func (s *Shadow) recycle(c *Change) {
	if c.scratch != nil {
		if c.scratch.users--; c.scratch.users == 0 && c.scratch != s.scratch {
			s.pool.scratch.Put(c.scratch)
		}
	}
	c.Runs, c.Data, c.scratch = nil, nil, nil
}
