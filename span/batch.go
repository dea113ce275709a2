// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"fmt"
	"slices"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

// A Batch is a write or a flush of several blocks that is durable as a whole:
// its pieces go to the data directory as they come, where nobody sees them,
// and count when Commit has been through, all of them or none. So it takes no
// more memory than a piece, and holds no lock while it waits for the next.
//
// It is not safe for concurrent use. It ends with Commit or Discard.
type Batch struct {
	span   *Span
	author uint64
	done   []piece
	next   pending
	runs   int // of all pieces
}

// maxBatchRuns bounds what a batch takes of memory: its runs are remembered
// until it is committed.
const maxBatchRuns = 1 << 20

// A piece is one block's share of a batch, staged.
type piece struct {
	block  int
	base   uint64
	runs   []Run
	staged *disk.Staged
}

// pending is the piece that may still grow: what follows may be of the same
// block.
type pending struct {
	block int
	base  uint64
	runs  []Run  // nil: nothing is pending
	image []byte // the runs' bytes, at their place in the block
}

// Begin begins a batch of the span, which must be Atomic.
func (s *Span) Begin() *Batch { return &Batch{span: s} }

// Begin begins a batch of the mapping's flushes.
func (sh *Shadow) Begin() *Batch { return &Batch{span: sh.span, author: sh.id} }

// Write adds src at bytes [off, off+src.Len), as Span.Write does. Pieces come
// in the order of the blocks.
func (t *Batch) Write(ctx context.Context, off int64, src tier.Memory) error {
	s := t.span
	if err := s.checkRange(off, src.Len); err != nil {
		return s.fail("write", off, src.Len, err)
	}
	err := pieces(off, src.Len, func(b int, blockOff, rangeOff, n int64) error {
		return t.add(ctx, b, AnyVersion, []Run{{uint32(blockOff), uint32(n)}}, src.Slice(rangeOff, n))
	})
	return s.fail("write", off, src.Len, err)
}

// Flush adds what Shadow.Flush would store. Pieces come in the order of the
// blocks.
func (t *Batch) Flush(ctx context.Context, b int, base uint64, runs []Run, data tier.Memory) error {
	s := t.span
	if b < 0 || b >= s.Blocks() || len(runs) == 0 || int64(runs[len(runs)-1].end()) > s.blockLen(b) {
		return s.fail("flush", int64(b)*tier.BlockSize, 0, ErrRange)
	}
	start := int64(b)*tier.BlockSize + int64(runs[0].Offset)
	return s.fail("flush", start, int64(runs[len(runs)-1].end()-runs[0].Offset), t.add(ctx, b, base, runs, data))
}

func (t *Batch) add(ctx context.Context, b int, base uint64, runs []Run, data tier.Memory) error {
	if t.next.runs != nil && t.next.block != b {
		if err := t.settle(ctx); err != nil {
			return err
		}
	}
	if t.runs += len(runs); t.runs > maxBatchRuns {
		return fmt.Errorf("%w: more than %d runs in one flush: flush fewer ranges at once", ErrLimit, maxBatchRuns)
	}
	if n := len(t.done); n > 0 && t.done[n-1].block >= b {
		return fmt.Errorf("%w: block %d comes after block %d in one flush", ErrInvalid, b, t.done[n-1].block)
	}
	if t.next.runs == nil && len(runs) == 1 && int64(runs[0].Length) == t.span.blockLen(b) {
		return t.stage(ctx, b, base, runs, data)
	}
	if t.next.image == nil {
		t.next.image = make([]byte, tier.BlockSize)
	}
	if t.next.runs == nil {
		t.next.block, t.next.base = b, base
	}
	t.next.runs = union(t.next.runs, runs)
	spread(t.next.image, runs, data.Bytes())
	return nil
}

// settle stages the piece that is pending: another block's has come.
func (t *Batch) settle(ctx context.Context) error {
	p := &t.next
	if p.runs == nil {
		return nil
	}
	runs := p.runs
	p.runs = nil
	scratch, err := t.span.store.Scratch(ctx)
	if err != nil {
		return err
	}
	defer t.span.store.PutScratch(scratch)
	data := scratch.Bytes()[:0]
	for _, r := range runs {
		data = append(data, p.image[r.Offset:r.end()]...)
	}
	return t.stage(ctx, p.block, p.base, runs, scratch.Slice(0, int64(len(data))))
}

func (t *Batch) stage(ctx context.Context, b int, base uint64, runs []Run, data tier.Memory) error {
	staged, err := t.span.disk.Stage(ctx, b, diskRuns(runs), data)
	if err != nil {
		return err
	}
	t.done = append(t.done, piece{b, base, slices.Clone(runs), staged})
	return nil
}

// Discard gives the batch up: nothing of it was ever there.
func (t *Batch) Discard() {
	for _, p := range t.done {
		p.staged.Discard()
	}
	t.done, t.next = nil, pending{}
}

// Commit makes the batch's pieces new versions of their blocks, and meets the
// write policy. If it fails, but for ErrDebt, nothing of it is there, now or
// after a crash. It fails with ErrConflict if others have changed bytes of it
// since what they were based on.
func (t *Batch) Commit(ctx context.Context) (done Committed, err error) {
	s := t.span
	err = t.settle(ctx)
	t.next = pending{}
	if err == nil && len(t.done) > 0 {
		done, err = t.commit(ctx)
	}
	if err != nil {
		t.Discard()
	}
	t.done = nil
	return done, s.fail("flush", 0, 0, err)
}

func (t *Batch) commit(ctx context.Context) (Committed, error) {
	s, disk := t.span, t.span.store.disk
	blocks := make([]int, len(t.done))
	for i, p := range t.done {
		blocks[i] = p.block
	}
	unlock, err := s.lockBlocks(ctx, blocks)
	if err != nil {
		return Committed{}, err
	}
	defer unlock()
	ctx = context.WithoutCancel(ctx) // from here on it ends by itself
	for i := range t.done {
		if err := t.ready(ctx, &t.done[i]); err != nil {
			t.abort(i)
			return Committed{}, t.done[i].fail(s, err)
		}
	}
	tx := s.store.files.Begin()
	s.mu.Lock()
	s.version++
	version := s.version
	for _, p := range t.done {
		tx.Put(p.staged, s.dir.Version(p.block)+1)
	}
	s.mu.Unlock()
	tx.Version(s.disk, version)
	err = tx.Commit(ctx)
	if err != nil {
		t.abort(len(t.done))
		return Committed{}, err
	}
	done := Committed{Span: version, Holders: s.store.Tiers()}
	pushes := make([]coherency.Commit, len(t.done))
	s.mu.Lock()
	for i, p := range t.done {
		if pushes[i], err = s.dir.Commit(p.block, disk); err != nil {
			s.mu.Unlock()
			return Committed{}, err
		}
		delete(s.marks, p.block)
		s.record(p.block, pushes[i].Version, t.author, p.runs)
	}
	s.mu.Unlock()
	var debt error
	for i, p := range t.done {
		c, perr := s.push(ctx, p.block, disk, pushes[i], p.runs)
		done.Version = c.Version
		done.Holders = done.Holders.Intersect(c.Holders)
		if perr != nil {
			debt = perr
		}
	}
	return done, debt
}

// ready makes Disk ready for a piece to be committed: it checks for conflicts,
// brings Disk's version up to date if the piece is merged with that, and tells
// the directory that the block is being written.
func (t *Batch) ready(ctx context.Context, p *piece) error {
	s := t.span
	whole := total(p.runs) == s.blockLen(p.block)
	s.mu.Lock()
	exposed := s.exposed(p.block)
	s.mu.Unlock()
	if exposed {
		return fmt.Errorf("%w: block %d was mapped for direct writing since the flush began; flush again", coherency.ErrBusy, p.block)
	}
	if err := s.beginWrite(ctx, p.block, s.store.disk, whole, origin{base: p.base, author: t.author}, p.runs); err != nil {
		return err
	}
	if !p.staged.Stale() {
		return nil
	}
	staged, err := p.staged.Restage(ctx)
	if err != nil {
		s.mu.Lock()
		_ = s.dir.Abort(p.block, s.store.disk, false)
		s.mu.Unlock()
		return err
	}
	p.staged = staged
	return nil
}

// fail gives an error the place of the piece.
func (p piece) fail(s *Span, err error) error {
	first, last := p.runs[0], p.runs[len(p.runs)-1]
	return s.fail("flush", int64(p.block)*tier.BlockSize+int64(first.Offset), int64(last.end()-first.Offset), err)
}

// abort takes back what ready did for the first n pieces.
func (t *Batch) abort(n int) {
	s := t.span
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range t.done[:n] {
		_ = s.dir.Abort(p.block, s.store.disk, false)
	}
}
