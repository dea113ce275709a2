// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// A Space is the blocks of a durable span, or of an ephemeral one. It implements
// tier.Space, with that interface's rules for concurrent calls.
//
// Memory that is written from must not change during the call: its checksum and
// its bytes would not fit, and reading the block would fail.
type Space struct {
	t    *Tier
	name string
	sp   *spanState

	mu      sync.Mutex // guards what follows
	pending map[int]*Staged
	closed  bool
}

var _ tier.Space = (*Space)(nil)

// BlockState is what is known of a durable block.
type BlockState struct {
	Version uint64 // of the bytes held, or that were held last; 0: never written
	Marked  uint64 // a version later than Version that is not on Disk; 0: none
	Held    bool   // there are bytes to read
}

// Blocks yields the blocks that have a state, in order: the others were never
// written. It describes one moment; ephemeral spaces have none.
func (s *Space) Blocks() iter.Seq2[int, BlockState] {
	type entry struct {
		b  int
		st BlockState
	}
	var all []entry
	s.t.mu.RLock()
	if !s.sp.ephemeral {
		for b, st := range s.sp.each() {
			all = append(all, entry{b, BlockState{st.version, st.marked, st.slot != 0 || len(s.sp.patches[b]) > 0}})
		}
	}
	s.t.mu.RUnlock()
	return func(yield func(int, BlockState) bool) {
		for _, e := range all {
			if !yield(e.b, e.st) {
				return
			}
		}
	}
}

// wrap adds what was asked to an error.
func (s *Space) wrap(err error, what string, b int, off, n int64) error {
	var corrupt *CorruptError
	if err == nil || errors.As(err, &corrupt) {
		return err
	}
	return fmt.Errorf("tier/disk: %s block %d of %q, bytes [%d, +%d): %w", what, b, s.name, off, n, err)
}

// check checks that bytes [off, off+n) of block b exist, and that the block was
// reserved, if the space is ephemeral.
func (s *Space) check(ctx context.Context, b int, off, n int64) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	length := s.sp.blockLen(b)
	if length == 0 {
		return errors.New("there is no such block")
	}
	if off < 0 || n < 0 || off > length || n > length-off {
		return fmt.Errorf("range is outside the block's %d bytes", length)
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	s.t.mu.RLock()
	defer s.t.mu.RUnlock()
	if s.sp.gone || closed {
		return errGone
	}
	if s.sp.ephemeral && s.sp.at(b).marked == 0 {
		return errors.New("the block was not reserved")
	}
	return nil
}

// Reserve of an ephemeral space counts block b against the budget, or fails with
// ErrBudget. A durable block counts from when it is first staged; Reserve only
// tells whether it would fit now.
func (s *Space) Reserve(ctx context.Context, b int) error {
	return s.wrap(s.reserve(ctx, b), "reserve", b, 0, s.sp.blockLen(b))
}

func (s *Space) reserve(ctx context.Context, b int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.sp.blockLen(b) == 0 {
		return errors.New("there is no such block")
	}
	t := s.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.sp.gone {
		return errGone
	}
	n := s.sp.charge(b)
	if !s.sp.ephemeral {
		if s.sp.content(b).empty() {
			return t.roomLocked(n)
		}
		return nil
	}
	if s.sp.at(b).marked != 0 {
		return nil
	}
	if err := t.roomLocked(n); err != nil {
		return err
	}
	s.sp.ref(b).marked = 1
	t.state.used += n
	return nil
}

// Read copies published bytes [off, off+dst.Len) of block b to dst; what was
// never written reads as zeros. Bytes that are not those that were written fail
// with a [*CorruptError] and leave zeros in dst.
func (s *Space) Read(ctx context.Context, b int, off int64, dst tier.Memory) error {
	err := s.check(ctx, b, off, dst.Len)
	if err == nil {
		err = memoryGuard(func() error { return s.t.readBlock(ctx, s.sp, b, off, dst.Bytes()) })
	}
	return s.wrap(err, "read", b, off, dst.Len)
}

// memoryGuard calls f, which touches memory that a client may have mapped.
func memoryGuard(f func() error) (err error) {
	if fault := memfd.Guard(func() { err = f() }); fault != nil {
		return fmt.Errorf("%w: %w", tier.ErrLost, fault)
	}
	return err
}

// Write publishes src as bytes [off, off+src.Len) of an ephemeral block at once.
// Of a durable block it stages them: see [Space.Take].
func (s *Space) Write(ctx context.Context, b int, off int64, src tier.Memory) error {
	err := s.check(ctx, b, off, src.Len)
	if err == nil {
		err = memoryGuard(func() error { return s.put(ctx, b, off, src.Bytes()) })
	}
	return s.wrap(err, "write", b, off, src.Len)
}

// Fill is Write of a repeated pattern.
func (s *Space) Fill(ctx context.Context, b int, off, n int64, pattern uint32) error {
	err := s.check(ctx, b, off, n)
	if err == nil {
		p := s.t.buffer()
		defer s.t.putBuffer(p)
		fill(p[:n], pattern)
		err = s.put(ctx, b, off, p[:n])
	}
	return s.wrap(err, "fill", b, off, n)
}

func fill(p []byte, pattern uint32) {
	var word [4]byte
	binary.LittleEndian.PutUint32(word[:], pattern)
	// Doubling what is there copies from cache until the copies are large.
	done := copy(p, word[:])
	for done < len(p) {
		done += copy(p[done:], p[:min(done, 64<<10)])
	}
}

// Copy is Write of published bytes of src, a space of this tier.
func (s *Space) Copy(ctx context.Context, b int, off int64, src tier.Space, sb int, soff, n int64) error {
	return s.wrap(s.copy(ctx, b, off, src, sb, soff, n), "copy to", b, off, n)
}

func (s *Space) copy(ctx context.Context, b int, off int64, src tier.Space, sb int, soff, n int64) error {
	from, ok := src.(*Space)
	if !ok || from.t != s.t {
		return errors.New("source is not a space of this tier")
	}
	if err := s.check(ctx, b, off, n); err != nil {
		return err
	}
	if err := from.check(ctx, sb, soff, n); err != nil {
		return fmt.Errorf("from block %d of %q: %w", sb, from.name, err)
	}
	p := s.t.buffer()
	defer s.t.putBuffer(p)
	if err := s.t.readBlock(ctx, from.sp, sb, soff, p[:n]); err != nil {
		return err
	}
	return s.put(ctx, b, off, p[:n])
}

// WriteRuns is Write of several runs at once, as Stage takes them: an ephemeral
// block has all of them from one moment on.
func (s *Space) WriteRuns(ctx context.Context, b int, runs []Run, data tier.Memory) error {
	err := s.check(ctx, b, 0, 0)
	if err == nil {
		err = checkRuns(runs, s.sp.blockLen(b), data.Len)
	}
	if err == nil {
		err = memoryGuard(func() error { return s.putRuns(ctx, b, append([]Run(nil), runs...), data.Bytes()) })
	}
	return s.wrap(err, "write", b, 0, data.Len)
}

// put writes data to a block whose range was checked.
func (s *Space) put(ctx context.Context, b int, off int64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	return s.putRuns(ctx, b, []Run{{uint32(off), uint32(len(data))}}, data)
}

func (s *Space) putRuns(ctx context.Context, b int, runs []Run, data []byte) error {
	if s.sp.ephemeral {
		return s.t.publishEphemeral(ctx, s.sp, b, runs, data)
	}
	s.mu.Lock()
	prior := s.pending[b]
	s.mu.Unlock()
	st, err := s.stage(ctx, b, prior, runs, data)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		st.Discard()
		return errGone
	}
	s.pending[b] = st
	s.mu.Unlock()
	if prior != nil {
		prior.Discard()
	}
	return nil
}

// Take returns what Write, WriteRuns, Fill and Copy have staged for block b of a durable
// space since the last Take, or nil. It is the caller's to put or discard.
func (s *Space) Take(b int) *Staged {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.pending[b]
	delete(s.pending, b)
	return st
}

// Drop frees block b of an ephemeral space. Of a durable one it forgets what is
// staged and was not taken.
func (s *Space) Drop(b int) {
	if s.sp.blockLen(b) == 0 {
		return
	}
	if !s.sp.ephemeral {
		if st := s.Take(b); st != nil {
			st.Discard()
		}
		return
	}
	t := s.t
	t.mu.Lock()
	if s.sp.gone || s.sp.at(b).marked == 0 {
		t.mu.Unlock()
		return
	}
	st := s.sp.ref(b)
	slot := st.slot
	*st = blockState{}
	t.state.used -= s.sp.charge(b)
	t.mu.Unlock()
	if slot != 0 {
		t.slots.give(slot)
	}
}

// Close frees all of an ephemeral space. Of a durable one it forgets what is
// staged and was not taken; the published contents stay. It is idempotent.
func (s *Space) Close() error {
	s.mu.Lock()
	pending := s.pending
	wasClosed := s.closed
	s.pending, s.closed = nil, true
	s.mu.Unlock()
	for _, st := range pending {
		st.Discard()
	}
	if wasClosed {
		return nil
	}
	t := s.t
	t.mu.Lock()
	var freed []uint32
	if s.sp.ephemeral || !s.sp.known && !s.sp.gone {
		freed = t.state.drop(s.sp, nil)
	}
	s.sp.open = false
	t.mu.Unlock()
	t.slots.give(freed...)
	return nil
}
