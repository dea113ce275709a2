// SPDX-License-Identifier: Apache-2.0

package span

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/tier"
)

// Done is what a copy or a fill came to.
type Done struct {
	Version uint64             // of the span
	Holders coherency.TierMask // of every block concerned
	Device  bool               // every byte was moved by the device's queue
}

// result collects what the blocks of one operation came to.
type result struct {
	mu      sync.Mutex
	done    Done
	debt    error
	changed bool
}

func newResult() *result {
	return &result{done: Done{Holders: ^coherency.NoTiers, Device: true}}
}

// add notes one block. Like a debt's, its error does not keep other blocks
// from being done.
func (r *result) add(c Committed, device bool, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, ErrDebt) {
		r.debt, err = err, nil
	}
	if err == nil {
		r.changed = true
		r.done.Holders = r.done.Holders.Intersect(c.Holders)
		r.done.Device = r.done.Device && device
	}
	return err
}

func (r *result) finish(ctx context.Context, s *Span, err error) (Done, error) {
	if r.changed {
		var cerr error
		r.done.Version, cerr = s.countDurably(ctx)
		r.debt = cmp.Or(r.debt, cerr)
	} else {
		r.done = Done{Version: s.Version()}
	}
	if err == nil {
		err = r.debt
	}
	return r.done, err
}

// Fill stores the bytes of pattern, little-endian and repeated, to bytes
// [off, off+n), on the device if the span lives there.
func (s *Span) Fill(ctx context.Context, off, n int64, pattern uint32) (Done, error) {
	if err := s.checkRange(off, n); err != nil {
		return Done{}, s.fail("fill", off, n, err)
	}
	res := newResult()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	pieces(off, n, func(b int, blockOff, rangeOff, n int64) error {
		// The pattern goes on where the block before left it.
		turned := bits.RotateLeft32(pattern, -8*int(rangeOff%4))
		g.Go(func() error {
			device := false
			c, err := s.change(gctx, b, anyone, []Run{{uint32(blockOff), uint32(n)}}, func(ctx context.Context, a coherency.Agent) error {
				device = s.onDevice(a)
				return s.spaces[a].Fill(ctx, b, blockOff, n, turned)
			})
			return res.add(c, device, err)
		})
		return nil
	})
	done, err := res.finish(ctx, s, g.Wait())
	return done, s.fail("fill", off, n, err)
}

// Copy copies bytes [srcOff, srcOff+n) of src to bytes [off, off+n). The bytes
// are moved by the device's queue if s lives on the device. Ranges of one span
// must not overlap.
func (s *Span) Copy(ctx context.Context, off int64, src *Span, srcOff, n int64) (Done, error) {
	if err := s.checkRange(off, n); err != nil {
		return Done{}, s.fail("copy", off, n, err)
	}
	if err := src.checkRange(srcOff, n); err != nil {
		return Done{}, src.fail("copy", srcOff, n, err)
	}
	if s == src && off < srcOff+n && srcOff < off+n {
		return Done{}, s.fail("copy", off, n, fmt.Errorf("%w: source [%d, +%d) overlaps the destination", ErrInvalid, srcOff, n))
	}
	res := newResult()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	pieces(off, n, func(b int, blockOff, rangeOff, n int64) error {
		return pieces(srcOff+rangeOff, n, func(sb int, srcBlockOff, partOff, n int64) error {
			g.Go(func() error {
				p := copyPiece{dst: s, b: b, off: blockOff + partOff, src: src, sb: sb, soff: srcBlockOff, n: n}
				return res.add(p.run(gctx))
			})
			return nil
		})
	})
	done, err := res.finish(ctx, s, g.Wait())
	return done, s.fail("copy", off, n, err)
}

// A copyPiece is the part of a copy that stays within one block on each side.
type copyPiece struct {
	dst, src  *Span
	b, sb     int
	off, soff int64
	n         int64
}

func (p copyPiece) run(ctx context.Context) (c Committed, device bool, err error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return Committed{}, false, err
	}
	defer unlock()
	a := p.dst.writeAgent(p.b)
	from, err := p.prepare(ctx, a)
	if err != nil {
		return Committed{}, false, err
	}
	p.src.countRead(from, p.n)
	if from != a && from != hostAgent && from != coherency.NoAgent {
		return p.through(ctx, a, from)
	}
	c, err = p.dst.changeAt(ctx, p.b, a, anyone, []Run{{uint32(p.off), uint32(p.n)}}, func(ctx context.Context, a coherency.Agent) error {
		return p.move(ctx, a, from)
	})
	return c, p.dst.onDevice(a) && from == a, err
}

// onDevice reports whether an agent is device memory.
func (s *Span) onDevice(a coherency.Agent) bool { return s.store.agents[a].Tier == coherency.VRAM }

// through copies from a tier that is not RAM to another, a, through memory that
// both can reach. The source is read before the destination is touched: a
// device may die meanwhile.
func (p copyPiece) through(ctx context.Context, a, from coherency.Agent) (c Committed, device bool, err error) {
	staging, err := p.dst.store.Scratch(ctx)
	if err != nil {
		return Committed{}, false, err
	}
	defer p.dst.store.PutScratch(staging)
	part := staging.Slice(0, p.n)
	if err := p.src.spaces[from].Read(ctx, p.sb, p.soff, part); err != nil {
		return Committed{}, false, err
	}
	c, err = p.dst.changeAt(ctx, p.b, a, anyone, []Run{{uint32(p.off), uint32(p.n)}}, func(ctx context.Context, a coherency.Agent) error {
		return p.dst.spaces[a].Write(ctx, p.b, p.off, part)
	})
	return c, false, err
}

// lock locks the destination for writing and the source for reading, in the
// order of the package comment.
func (p copyPiece) lock(ctx context.Context) (unlock func(), err error) {
	if p.dst == p.src && p.b == p.sb {
		if err := p.dst.lockBlock(ctx, p.b, true); err != nil {
			return nil, err
		}
		return func() { p.dst.unlockBlock(p.b, true) }, nil
	}
	type place struct {
		s     *Span
		b     int
		write bool
	}
	// The source is locked for writing too: it may have to be fetched.
	first, second := place{p.dst, p.b, true}, place{p.src, p.sb, true}
	if c := bytes.Compare(first.s.ID[:], second.s.ID[:]); c > 0 || c == 0 && first.b > second.b {
		first, second = second, first
	}
	if err := first.s.lockBlock(ctx, first.b, first.write); err != nil {
		return nil, err
	}
	if err := second.s.lockBlock(ctx, second.b, second.write); err != nil {
		first.s.unlockBlock(first.b, first.write)
		return nil, err
	}
	return func() {
		second.s.unlockBlock(second.b, second.write)
		first.s.unlockBlock(first.b, first.write)
	}, nil
}

// prepare returns the agent to copy from: the destination's own tier if the
// source lives or has a copy there, else wherever the source is current.
// NoAgent: the source was never written.
func (p copyPiece) prepare(ctx context.Context, a coherency.Agent) (coherency.Agent, error) {
	s := p.src
	s.mu.Lock()
	from, err := s.source(p.sb)
	here, wanted := s.dir.Valid(p.sb, a), s.prefer == a
	s.mu.Unlock()
	switch {
	case err != nil, from == coherency.NoAgent:
		return from, err
	case here:
		return a, nil
	case s.onDevice(a) && (wanted || from != hostAgent):
		return a, s.fetch(ctx, p.sb, a)
	}
	return from, nil
}

// move copies the bytes to agent a of the destination, from RAM or within the
// tier.
func (p copyPiece) move(ctx context.Context, a, from coherency.Agent) error {
	dst := p.dst.spaces[a]
	switch {
	case from == coherency.NoAgent:
		return dst.Fill(ctx, p.b, p.off, p.n, 0)
	case from == a:
		return dst.Copy(ctx, p.b, p.off, p.src.spaces[a], p.sb, p.soff, p.n)
	}
	m, err := p.src.host.Memory(p.sb, p.soff, p.n)
	if err != nil {
		return err
	}
	return dst.Write(ctx, p.b, p.off, m)
}

// Upload makes the device's copy current. Where the device has edits that the
// host has not seen it fails with ErrConflict and does nothing, unless forced:
// then the host's stale bytes become the new version.
func (s *Span) Upload(ctx context.Context, force bool) (Committed, error) {
	return s.transfer(ctx, "upload", coherency.VRAM, coherency.DeviceDirty, force)
}

// Download makes the host's copy current. Where the host has edits that the
// device has not seen it fails with ErrConflict and does nothing, unless
// forced: then the device's stale bytes become the new version.
func (s *Span) Download(ctx context.Context, force bool) (Committed, error) {
	return s.transfer(ctx, "download", coherency.Host, coherency.HostDirty, force)
}

// transfer makes the copy on tier `to` current. A block in the state ahead has
// edits there that the other side lacks.
func (s *Span) transfer(ctx context.Context, op string, to coherency.Tier, ahead coherency.State, force bool) (Committed, error) {
	dst, err := s.store.agentOf(to)
	if err != nil {
		return Committed{}, s.fail(op, 0, 0, err)
	}
	device, err := s.store.agentOf(coherency.VRAM)
	if err != nil {
		return Committed{}, s.fail(op, 0, 0, err)
	}
	src := device
	if dst == device {
		src = hostAgent
	}
	if b, err := s.refusal(ahead, force); err != nil {
		return Committed{}, s.fail(op, int64(b)*tier.BlockSize, s.blockLen(b), err)
	}
	res := newResult()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for b := range s.Blocks() {
		g.Go(func() error {
			if err := s.lockBlock(gctx, b, true); err != nil {
				return err
			}
			defer s.unlockBlock(b, true)
			return s.transferBlock(gctx, b, src, dst, ahead, force, res)
		})
	}
	done, err := res.finish(ctx, s, g.Wait())
	return Committed{Version: done.Version, Holders: s.holders()}, s.fail(op, 0, 0, err)
}

// refusal returns why the span as a whole cannot be transferred, and the first
// block concerned, so that nothing is done if not everything can be.
func (s *Span) refusal(ahead coherency.State, force bool) (b int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return 0, ErrFreed
	}
	for b := range s.Blocks() {
		if err := s.blockRefusal(b, ahead, force); err != nil {
			return b, err
		}
	}
	return 0, nil
}

// blockRefusal is refusal for one block; the caller holds mu.
func (s *Span) blockRefusal(b int, ahead coherency.State, force bool) error {
	if _, err := s.source(b); err != nil {
		return err
	}
	switch edits := s.dir.State(b) == ahead && s.dir.Version(b) != 0; {
	case edits && !force:
		return fmt.Errorf("%w: the span is %s: the other side's copy is stale; force it to win over the newer edits, or use sync",
			coherency.ErrConflict, ahead)
	case edits && s.exposed(b):
		return fmt.Errorf("%w: a client has the block mapped for writing", coherency.ErrPinned)
	}
	return nil
}

func (s *Span) transferBlock(ctx context.Context, b int, src, dst coherency.Agent, ahead coherency.State, force bool, res *result) error {
	s.mu.Lock()
	if err := s.blockRefusal(b, ahead, force); err != nil { // it changed since the check
		s.mu.Unlock()
		return err
	}
	if s.dir.State(b) == ahead && s.dir.Version(b) != 0 {
		for s.unsaved(src) && s.announced && s.marks[b] <= s.dir.Version(b) {
			s.mu.Unlock()
			if err := s.mark(ctx, b); err != nil {
				return err
			}
			s.mu.Lock()
		}
		c, err := s.dir.Adopt(b, src)
		if err == nil {
			s.record(b, c.Version, 0, []Run{{0, uint32(s.blockLen(b))}})
			s.writeBackLater(b, src, c.Version)
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		done, err := s.push(ctx, b, src, c, nil)
		if err := res.add(done, true, err); err != nil {
			return err
		}
		s.mu.Lock()
	}
	s.mu.Unlock()
	return s.fetch(ctx, b, dst)
}

// holders returns the tiers that hold the current version of every block.
func (s *Span) holders() coherency.TierMask {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.store.Tiers()
	for b := range s.Blocks() {
		m = m.Intersect(s.dir.Block(b).Holders)
	}
	return m
}

// Sync is a barrier over the span: see Store.Sync.
func (s *Span) Sync(ctx context.Context) (epoch uint64, err error) {
	if err := s.refresh(ctx); err != nil {
		return s.store.epoch.Load(), s.fail("sync", 0, 0, err)
	}
	return s.store.endEpoch(ctx)
}

// refresh brings every stale copy up to date, and home with them.
func (s *Span) refresh(ctx context.Context) error {
	s.mu.Lock()
	asleep := s.dir == nil // as home left it
	s.mu.Unlock()
	if asleep {
		return nil
	}
	if err := errors.Join(s.persistAll(ctx), s.persistVersion(ctx)); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lastErr = err
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for b := range s.Blocks() {
		g.Go(func() error { return s.syncBlock(gctx, b) })
	}
	err := g.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.due.Len() == 0 {
		s.lastErr = err
	}
	return err
}

func (s *Span) syncBlock(ctx context.Context, b int) error {
	if err := s.lockBlock(ctx, b, true); err != nil {
		return err
	}
	defer s.unlockBlock(b, true)
	s.mu.Lock()
	info := s.dir.Block(b)
	home := s.dir.Home()
	s.mu.Unlock()
	if info.Debt && s.swapped(info) {
		info.Debt = false
	}
	if !info.Debt && !info.Stale.Any() {
		return nil
	}
	for a := range s.store.agents {
		a := coherency.Agent(a)
		if info.Stale.Has(s.store.agents[a].Tier) || info.Debt && a == home {
			if err := s.fetch(ctx, b, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// Release gives the device's memory back. What only the device has is written
// to home or to RAM first; if that fails the copy stays.
func (s *Span) Release(ctx context.Context) error {
	a, err := s.store.agentOf(coherency.VRAM)
	if err != nil {
		return s.fail("release", 0, 0, err)
	}
	for b := range s.Blocks() {
		if err := s.evictBlock(ctx, b, a); err != nil {
			return s.fail("release", int64(b)*tier.BlockSize, s.blockLen(b), err)
		}
	}
	return nil
}

func (s *Span) evictBlock(ctx context.Context, b int, a coherency.Agent) error {
	if err := s.lockBlock(ctx, b, true); err != nil {
		return err
	}
	defer s.unlockBlock(b, true)
	return s.evictLocked(ctx, b, a)
}

// evictLocked is evictBlock for callers that hold the block's lock for writing.
func (s *Span) evictLocked(ctx context.Context, b int, a coherency.Agent) error {
	if err := s.evict(ctx, b, a); err != nil {
		return err
	}
	s.drop(a, b)
	return nil
}

// evict takes a's copy out of the directory, written back first if need be.
func (s *Span) evict(ctx context.Context, b int, a coherency.Agent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		c, done, err := s.dir.Evict(b, a)
		if err != nil || done {
			return err
		}
		if err := s.carryLocked(ctx, saving{c, nil}); err != nil {
			return err
		}
	}
}

// Accept ends every loss of the span: what survives of each lost block, or
// zeros, becomes its new version.
func (s *Span) Accept(ctx context.Context) (Committed, error) {
	accepted := false
	for b := range s.Blocks() {
		did, err := s.acceptBlock(ctx, b)
		accepted = accepted || did
		if err != nil {
			return Committed{}, s.fail("accept", int64(b)*tier.BlockSize, s.blockLen(b), err)
		}
	}
	version := s.Version()
	if accepted {
		var err error
		if version, err = s.countDurably(ctx); err != nil {
			return Committed{}, s.fail("accept", 0, 0, err)
		}
	}
	return Committed{Version: version, Holders: s.holders()}, nil
}

func (s *Span) acceptBlock(ctx context.Context, b int) (accepted bool, err error) {
	if err := s.lockBlock(ctx, b, true); err != nil {
		return false, err
	}
	defer s.unlockBlock(b, true)
	s.mu.Lock()
	info := s.dir.Block(b)
	s.mu.Unlock()
	if !info.Lost {
		return false, nil
	}
	if s.disk != nil {
		err = s.acceptOnDisk(ctx, b)
	} else {
		s.mu.Lock()
		_, _, err = s.dir.Accept(b)
		s.mu.Unlock()
	}
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record(b, s.dir.Version(b), 0, []Run{{0, uint32(s.blockLen(b))}})
	return true, nil
}
