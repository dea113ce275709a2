// SPDX-License-Identifier: Apache-2.0

package span

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/tier"
)

// AnyVersion as the base of a flush means that the last writer wins.
const AnyVersion = coherency.AnyVersion

// Committed is what a change came to.
type Committed struct {
	Version uint64             // of the block
	Span    uint64             // of the span: how many commits it has seen
	Holders coherency.TierMask // that hold it
	Stored  int64              // a direct mapping's release: bytes of the blocks that changed
}

// pieces calls f for each block that bytes [off, off+n) touch, with the part's
// offset within the block and within the range.
func pieces(off, n int64, f func(b int, blockOff, rangeOff, n int64) error) error {
	for done := int64(0); done < n; {
		b, blockOff := (off+done)/tier.BlockSize, (off+done)%tier.BlockSize
		part := min(n-done, tier.BlockSize-blockOff)
		if err := f(int(b), blockOff, done, part); err != nil {
			return err
		}
		done += part
	}
	return nil
}

// Read copies bytes [off, off+dst.Len) to dst. Each block's part is of one
// version; several blocks need not be of one moment.
func (s *Span) Read(ctx context.Context, off int64, dst tier.Memory) error {
	if err := s.checkRange(off, dst.Len); err != nil {
		return s.fail("read", off, dst.Len, err)
	}
	err := pieces(off, dst.Len, func(b int, blockOff, rangeOff, n int64) error {
		return s.readBlock(ctx, b, blockOff, dst.Slice(rangeOff, n))
	})
	return s.fail("read", off, dst.Len, err)
}

func (s *Span) readBlock(ctx context.Context, b int, off int64, dst tier.Memory) error {
	if err := s.lockBlock(ctx, b, false); err != nil {
		return err
	}
	a, err := s.sourceOf(b)
	if err == nil && a != coherency.NoAgent && a == s.store.disk && s.promotes(b, dst.Len) {
		s.unlockBlock(b, false)
		if err := s.promote(ctx, b); err != nil {
			return err
		}
		if err := s.lockBlock(ctx, b, false); err != nil {
			return err
		}
		a, err = s.sourceOf(b)
	}
	defer s.unlockBlock(b, false)
	if err != nil {
		return err
	}
	s.countRead(a, dst.Len)
	if a != coherency.NoAgent {
		s.used(a, b)
	}
	return s.readFrom(ctx, a, b, off, dst)
}

// readFrom reads from agent a, which holds block b. If that has just lost its
// contents, and the directory does not know yet, it reads from another: what
// others hold, or is all zeros, is not lost.
func (s *Span) readFrom(ctx context.Context, a coherency.Agent, b int, off int64, dst tier.Memory) error {
	for a != coherency.NoAgent {
		err := s.spaces[a].Read(ctx, b, off, dst)
		if !errors.Is(err, tier.ErrLost) {
			return err
		}
		s.noteLoss(ctx, a, b, b+1)
		s.mu.Lock()
		if s.dir.Discard(b, a) == nil {
			a, err = s.source(b)
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	clear(dst.Bytes())
	return nil
}

// promotes reports whether a block that is on Disk alone is to be brought to RAM
// before n bytes of it are read: a part of a block, because the rest may be next;
// a whole one only if it was there not long ago, as what is read once from one
// end to the other would drive out what is read often.
func (s *Span) promotes(b int, n int64) bool {
	return n < s.blockLen(b) || s.wanted(hostAgent, b)
}

// promote brings block b to RAM, if there is room to be made for it.
func (s *Span) promote(ctx context.Context, b int) error {
	err := s.fetchBlock(ctx, b, hostAgent)
	if errors.Is(err, tier.ErrBudget) || errors.Is(err, tier.ErrLost) {
		return nil // it can be read where it is, or is found to be lost
	}
	return err
}

func (s *Span) sourceOf(b int) (coherency.Agent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source(b)
}

// source returns the agent to read block b from without moving it: RAM if it
// is current, else any that is, or NoAgent if the block was never written. The
// caller holds mu, and the block lock if the answer is to last.
func (s *Span) source(b int) (coherency.Agent, error) {
	for a := range s.spaces {
		if s.dir.Valid(b, coherency.Agent(a)) {
			return coherency.Agent(a), nil
		}
	}
	info := s.dir.Block(b)
	if info.Lost {
		return coherency.NoAgent, &coherency.DataLossError{Block: b, Lost: info.Version, Survivor: info.Survivor}
	}
	return coherency.NoAgent, nil
}

// Write stores src at bytes [off, off+src.Len), whatever was there, and meets
// the write policy before it returns. Each block's part is stored whole or not
// at all; changed tells whether any was. If more of the same write follows this
// is no commit of the span yet: the last part is, or CountCommit.
func (s *Span) Write(ctx context.Context, off int64, src tier.Memory, more bool) (changed bool, err error) {
	if err := s.checkRange(off, src.Len); err != nil {
		return false, s.fail("write", off, src.Len, err)
	}
	var debt error // does not keep the blocks that follow from being stored
	err = pieces(off, src.Len, func(b int, blockOff, rangeOff, n int64) error {
		part := src.Slice(rangeOff, n)
		from := origin{base: AnyVersion, last: !more && rangeOff+n == src.Len}
		_, err := s.change(ctx, b, from, []Run{{uint32(blockOff), uint32(n)}}, func(ctx context.Context, a coherency.Agent) error {
			return s.spaces[a].Write(ctx, b, blockOff, part)
		})
		if errors.Is(err, ErrDebt) {
			debt, err = err, nil
		}
		changed = changed || err == nil
		return err
	})
	return changed, s.fail("write", off, src.Len, cmp.Or(err, debt))
}

// An origin says where a change comes from: the version that it was based on,
// and the shadow mapping that made it, or 0; and whether it is the last of a
// write or flush, and so a commit of the span.
type origin struct {
	base, author uint64
	last         bool
}

// anyone is the origin of changes that prevail over whatever was there.
var anyone = origin{base: AnyVersion}

// change makes a new version of block b: it brings the block's bytes to the
// agent that writes go to, unless the runs cover them all, calls apply, and
// commits. Then it pushes the version to where the policy wants it.
func (s *Span) change(ctx context.Context, b int, from origin, runs []Run, apply func(context.Context, coherency.Agent) error) (Committed, error) {
	if err := s.lockBlock(ctx, b, true); err != nil {
		return Committed{}, err
	}
	defer s.unlockBlock(b, true)
	return s.changeLocked(ctx, b, from, runs, apply)
}

// changeLocked is change for callers that hold the block's lock for writing.
func (s *Span) changeLocked(ctx context.Context, b int, from origin, runs []Run, apply func(context.Context, coherency.Agent) error) (Committed, error) {
	return s.changeAt(ctx, b, s.writeAgent(b), from, runs, apply)
}

// changeAt is changeLocked for callers that have asked writeAgent already, and
// prepared for its answer, since they took the lock.
func (s *Span) changeAt(ctx context.Context, b int, a coherency.Agent, from origin, runs []Run, apply func(context.Context, coherency.Agent) error) (Committed, error) {
	if err := s.writable(); err != nil {
		return Committed{}, err
	}
	if err := s.reserve(ctx, a, b); err != nil {
		return Committed{}, err
	}
	whole := len(runs) == 1 && int64(runs[0].Length) == s.blockLen(b)
	if err := s.beginWrite(ctx, b, a, whole, from, runs); err != nil {
		return Committed{}, err
	}
	late := s.marksLate(b, a)
	if s.unsaved(a) && !late {
		if err := s.mark(ctx, b); err != nil {
			s.mu.Lock()
			_ = s.dir.Abort(b, a, false)
			s.mu.Unlock()
			return Committed{}, err
		}
	}
	if s.disk != nil && a == s.store.disk {
		return s.changeOnDisk(ctx, b, from, runs, apply)
	}
	// From here to the commit the block is damaged if apply stops half way:
	// no caller's impatience may do that. Tiers end by themselves.
	ctx = context.WithoutCancel(ctx)
	err := apply(ctx, a)
	gone := errors.Is(err, tier.ErrLost)
	if err == nil && late {
		err = s.mark(ctx, b)
		gone = err != nil // a has not the old bytes any more, but Disk has
	}
	s.mu.Lock()
	if err != nil {
		// If the agent died meanwhile the directory knows already, and
		// refuses.
		_ = s.dir.Abort(b, a, gone)
		delete(s.sums, b)
		s.mu.Unlock()
		s.unmark(ctx, b)
		return Committed{}, err
	}
	c, err := s.dir.Commit(b, a)
	if err != nil {
		s.mu.Unlock()
		s.unmark(ctx, b)
		return Committed{}, fmt.Errorf("%w: %v", tier.ErrLost, err) // it died, nothing else
	}
	s.record(b, c.Version, from.author, runs)
	if from.last {
		s.version++
	}
	s.writeBackLater(b, a, c.Version)
	s.mu.Unlock()
	s.dropSwapped(b, a)
	return s.push(ctx, b, a, c, runs)
}

// unsaved reports whether a commit at agent a is answered before Disk, the
// span's home, has it.
func (s *Span) unsaved(a coherency.Agent) bool {
	return s.disk != nil && s.Policy == coherency.WriteBack && a != s.store.disk
}

// marksLate reports whether a write of block b at agent a is marked when its
// bytes are there, not before: a device may die under it, and then there never
// was a version that Disk lacks. A block that is marked already has one.
func (s *Span) marksLate(b int, a coherency.Agent) bool {
	if a == hostAgent || !s.unsaved(a) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marks[b] == 0
}

// dropSwapped gives up what Disk has of an older version of block b, just
// written at agent a, if it is there only because RAM was full.
func (s *Span) dropSwapped(b int, a coherency.Agent) {
	d := s.store.disk
	if d == coherency.NoAgent || a == d || s.Home == coherency.Disk {
		return
	}
	s.mu.Lock()
	stale := s.dir.Block(b).Stale.Has(coherency.Disk)
	gone := stale && s.dir.Discard(b, d) == nil
	s.mu.Unlock()
	if gone {
		s.spaces[d].Drop(b)
	}
}

// record notes a commit of block b for those that may flush against an older
// version. The caller holds mu.
func (s *Span) record(b int, version, author uint64, runs []Run) {
	delete(s.sums, b)
	s.countWrite(b, runs)
	if s.writers == 0 || s.freed { // Free waits for what is under way
		return
	}
	h := s.history[b]
	if h == nil {
		h = &history{floor: version - 1}
		s.history[b] = h
	}
	h.add(version, author, runs)
}

// writeAgent returns where a write to block b goes: to the span's tier, but to
// RAM while a direct mapping may store there.
func (s *Span) writeAgent(b int) coherency.Agent {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exposed(b) {
		return hostAgent
	}
	return s.prefer
}

// exposed reports whether clients may store to block b in RAM at any time. The
// caller holds mu.
func (s *Span) exposed(b int) bool {
	for d := range s.direct {
		if d.writable && d.covers(b) {
			return true
		}
	}
	return false
}

// beginWrite checks for conflicts with base and makes agent a ready to be
// written.
func (s *Span) beginWrite(ctx context.Context, b int, a coherency.Agent, whole bool, from origin, runs []Run) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version := s.dir.Version(b); from.base != AnyVersion && from.base != version {
		h := s.history[b]
		if from.base > version || h == nil {
			return fmt.Errorf("%w: based on version %d, the block is at %d", coherency.ErrConflict, from.base, version)
		}
		if r, ok := h.conflict(from.base, from.author, runs); ok {
			return fmt.Errorf("%w: bytes [%d, +%d) of block %d changed since version %d; invalidate, then flush again",
				coherency.ErrConflict, r.Offset, r.Length, b, from.base)
		}
	}
	for {
		c, ready, err := s.dir.BeginWrite(b, a, whole, AnyVersion)
		if err != nil || ready {
			return err
		}
		if err := s.carryLocked(ctx, saving{c, nil}); err != nil {
			return err
		}
	}
}

// fetch makes agent a hold the current version of block b. The caller holds
// the block's lock for writing.
func (s *Span) fetch(ctx context.Context, b int, a coherency.Agent) error {
	return s.fetchRuns(ctx, b, a, nil)
}

// fetchRuns is fetch for callers that know what the current version changed;
// nil: they do not.
func (s *Span) fetchRuns(ctx context.Context, b int, a coherency.Agent, runs []Run) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		has := s.dir.Block(b).Replicas[a]
		c, hit, err := s.dir.Acquire(b, a)
		if err != nil || hit {
			return err
		}
		if err := s.carryLocked(ctx, s.savingOf(c, has, runs)); err != nil {
			return err
		}
	}
}

// carryLocked carries out one step of a plan and completes it. It is called
// with mu held and gives it up while bytes move.
func (s *Span) carryLocked(ctx context.Context, step saving) error {
	c := step.Copy
	if s.disk != nil && c.Dst == s.store.disk {
		s.mu.Unlock()
		err := s.save(ctx, []saving{step})
		s.mu.Lock()
		return err
	}
	exposed := c.Src == hostAgent && s.exposed(c.Block)
	if c.Dst == hostAgent && c.Src != coherency.NoAgent && s.dir.Block(c.Block).Stale.Has(coherency.Host) {
		return s.replaceLocked(ctx, c)
	}
	s.mu.Unlock()
	var err error
	var sum uint64
	if exposed {
		sum, err = s.carryExposed(ctx, c)
	} else {
		err = s.carry(ctx, c)
	}
	s.mu.Lock()
	if exposed && s.sums[c.Block] != sum {
		// Clients have stored since the last release. What was copied is no
		// version; the next release finds no sum and makes it stale.
		delete(s.sums, c.Block)
	}
	if _, cerr := s.dir.Complete(c, err == nil); err == nil {
		err = cerr
	}
	if err == nil {
		s.countCopy(c, s.blockLen(c.Block))
	}
	return err
}

// replaceLocked carries out a copy from a device over an older version in RAM,
// which may be all that survives if the device dies meanwhile: the bytes come
// to staging memory first. It is called with mu held, and gives it up while
// bytes move.
func (s *Span) replaceLocked(ctx context.Context, c coherency.Copy) error {
	s.mu.Unlock()
	var staging tier.Memory
	dst, err := s.host.Memory(c.Block, 0, s.blockLen(c.Block))
	if err == nil {
		if staging, err = s.store.moving.get(ctx); err == nil {
			defer s.store.moving.put(staging)
			staging = staging.Slice(0, dst.Len)
			err = s.spaces[c.Src].Read(ctx, c.Block, 0, staging)
		}
	}
	s.mu.Lock()
	if err == nil && !s.dir.Counts(c) {
		err = fmt.Errorf("%w while the block was copied", tier.ErrLost)
	}
	if _, cerr := s.dir.Complete(c, err == nil); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	s.countCopy(c, s.blockLen(c.Block))
	// Nobody reads the block: the caller holds its lock.
	s.mu.Unlock()
	defer s.mu.Lock()
	return s.host.Write(context.WithoutCancel(ctx), c.Block, 0, staging)
}

// carryExposed carries out a copy from RAM that clients may be storing to, and
// returns the sum of what was copied.
func (s *Span) carryExposed(ctx context.Context, c coherency.Copy) (sum uint64, err error) {
	if err := s.reserve(ctx, c.Dst, c.Block); err != nil {
		return 0, err
	}
	staging, err := s.store.moving.get(ctx)
	if err != nil {
		return 0, err
	}
	defer s.store.moving.put(staging)
	staging = staging.Slice(0, s.blockLen(c.Block))
	if err := s.host.Read(ctx, c.Block, 0, staging); err != nil {
		return 0, err
	}
	return maphash.Bytes(s.seed, staging.Bytes()), s.spaces[c.Dst].Write(ctx, c.Block, 0, staging)
}

func (s *Span) carry(ctx context.Context, c coherency.Copy) error {
	dst, n := s.spaces[c.Dst], s.blockLen(c.Block)
	if err := s.reserve(ctx, c.Dst, c.Block); err != nil {
		return err
	}
	switch {
	case c.Src == coherency.NoAgent:
		return dst.Fill(ctx, c.Block, 0, n, 0)
	case c.Src == hostAgent:
		m, err := s.host.Memory(c.Block, 0, n)
		if err != nil {
			return err
		}
		return dst.Write(ctx, c.Block, 0, m)
	case c.Dst == hostAgent:
		m, err := s.host.Memory(c.Block, 0, n)
		if err != nil {
			return err
		}
		return s.spaces[c.Src].Read(ctx, c.Block, 0, m)
	}
	staging, err := s.store.moving.get(ctx)
	if err != nil {
		return err
	}
	defer s.store.moving.put(staging)
	if err := s.spaces[c.Src].Read(ctx, c.Block, 0, staging.Slice(0, n)); err != nil {
		return err
	}
	return dst.Write(ctx, c.Block, 0, staging.Slice(0, n))
}

// push brings a version that was committed at agent from, and that changed
// runs, to the agents that the policy names. If it cannot, the version stands,
// the copy is tried again later, and the error is ErrDebt.
func (s *Span) push(ctx context.Context, b int, from coherency.Agent, c coherency.Commit, runs []Run) (Committed, error) {
	var errs []error
	for a := range c.Push.All() {
		if err := s.fetchRuns(ctx, b, a, runs); err != nil {
			errs = append(errs, fmt.Errorf("copy to %s: %w", s.store.agents[a].Tier, err))
			s.mu.Lock()
			s.owe(coherency.Sync{Block: b, From: from, Target: a, Version: c.Version})
			s.mu.Unlock()
			if s.disk != nil && a == s.store.disk { // a crash must not take it back in silence
				errs = append(errs, s.mark(ctx, b))
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	done := Committed{Version: c.Version, Span: s.version, Holders: s.dir.Block(b).Holders}
	if err := errors.Join(errs...); err != nil {
		s.lastErr = err
		return done, fmt.Errorf("%w: version %d is at %s, %s asks for more: %w", ErrDebt, c.Version, done.Holders, s.Policy, err)
	}
	if err := s.unreported; err != nil {
		s.unreported = nil
		return done, fmt.Errorf("%w: version %d is at %s; earlier ones could not be written back: %w", ErrDebt, c.Version, done.Holders, err)
	}
	return done, nil
}

// CountCommit counts what was changed since the last call as one commit of the
// span and returns the span's version.
func (s *Span) CountCommit() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	return s.version
}

// Version returns how many commits the span has seen.
func (s *Span) Version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// fetchBlock is fetch for callers that do not hold the block's lock.
func (s *Span) fetchBlock(ctx context.Context, b int, a coherency.Agent) error {
	if err := s.lockBlock(ctx, b, true); err != nil {
		return err
	}
	defer s.unlockBlock(b, true)
	return s.fetch(ctx, b, a)
}
