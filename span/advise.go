// SPDX-License-Identifier: Apache-2.0

package span

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/tier"
)

// advisedAtOnce is how many blocks of one advice are under way at a time: enough
// to keep a disk or a device's queue busy, and few enough to leave staging
// memory to others.
const advisedAtOnce = 8

// Advised is what an advice came to. Blocks are counted whole, though the range
// may touch only a part of the first and the last.
type Advised struct {
	Blocks  int    // that the range touches
	There   int    // of them: the advice asked nothing for
	Changed int    // of them: brought, given up, pinned or unpinned
	Bytes   int64  // of the blocks that changed
	Planned []Move // the copies that it took, as the blocks lay when it began
	Moved   []Move // the copies that were made
	Skipped []Skip // blocks that were left as they were
}

// A Move is copies of blocks from one tier to another.
type Move struct {
	From   coherency.TierMask // one tier; none: blocks that were never written, filled with zeros
	To     coherency.Tier
	Blocks int
	Bytes  int64
}

// A Skip is blocks that an advice left as they were, for one reason.
type Skip struct {
	// Err is why, of the first of them: ErrPinned, ErrBusy, ErrLastCopy or
	// ErrDataLoss of package coherency; or tier.ErrBudget, if a block that was
	// brought had to leave again for others.
	Err    error
	First  int // block
	Blocks int
}

// An advising is an advice being followed for the blocks first to last.
type advising struct {
	span        *Span
	op          string
	agent       coherency.Agent
	off, n      int64
	first, last int

	mu  sync.Mutex
	out Advised
}

// Prefetch makes the tier's copy of every block that bytes [off, off+n) touch
// current, several blocks at a time. Blocks that are not wanted there make room.
// Blocks whose version is lost are skipped. It stops at the first block that
// cannot be brought for another reason; what was brought by then stays, and is
// in the answer. It fails with tier.ErrBudget, and moves nothing, if the blocks
// are more than the tier's budget.
func (s *Span) Prefetch(ctx context.Context, kind coherency.Tier, off, n int64) (Advised, error) {
	v, err := s.newArrival("prefetch", kind, off, n)
	if err != nil {
		return Advised{}, err
	}
	out, err := v.run(ctx, (*advising).bring)
	if err == nil {
		v.findGone()
		out = v.out
	}
	return out, err
}

// Pin is Prefetch, and keeps the copies in their place from then on: none is
// evicted until Unpin, or until the span is freed. A pinned copy may become
// stale, by a write on another tier; Prefetch or Sync bring it up to date. A
// block is pinned once on a tier, however often it is asked for.
func (s *Span) Pin(ctx context.Context, kind coherency.Tier, off, n int64) (Advised, error) {
	v, err := s.newArrival("pin", kind, off, n)
	if err != nil {
		return Advised{}, err
	}
	return v.run(ctx, (*advising).pin)
}

// Unpin takes back what Pin did to blocks that bytes [off, off+n) touch. Their
// copies stay until they are evicted.
func (s *Span) Unpin(ctx context.Context, kind coherency.Tier, off, n int64) (Advised, error) {
	v, err := s.newAdvising("unpin", kind, off, n)
	if err != nil {
		return Advised{}, err
	}
	return v.run(ctx, (*advising).unpin)
}

// Evict takes the tier's copies of the blocks that bytes [off, off+n) touch away
// and gives their memory back. A copy that is the last of its version is written
// back first: home, or from home to the tier nearest to it. Blocks that are
// pinned, by Pin or by a mapping, and survivors of a loss are skipped. It fails
// with ErrInvalid if the tier is Disk and the span's home: what is there is what
// outlives the daemon.
func (s *Span) Evict(ctx context.Context, kind coherency.Tier, off, n int64) (Advised, error) {
	if kind == coherency.Disk && s.Home == coherency.Disk {
		return Advised{}, s.fail("evict", off, n, fmt.Errorf(
			"%w: disk is the span's home, and its copy there outlives the daemon; free the span if nobody needs it", ErrInvalid))
	}
	v, err := s.newAdvising("evict", kind, off, n)
	if err == nil {
		err = v.foretell((*advising).departure)
	}
	if err != nil {
		return Advised{}, err
	}
	return v.run(ctx, (*advising).evict)
}

// Prefer changes where writes go, and where copies between spans bring blocks,
// from now on. It moves nothing: see Prefetch. It returns the tier that was
// preferred before. The home tier and the write policy stay.
func (s *Span) Prefer(ctx context.Context, kind coherency.Tier) (was coherency.Tier, err error) {
	a, err := s.store.agentOf(kind)
	if err == nil {
		was, err = s.preferAgent(ctx, a)
	}
	return was, s.fail("prefer", 0, 0, err)
}

func (s *Span) preferAgent(ctx context.Context, a coherency.Agent) (was coherency.Tier, err error) {
	if s.durable() { // what the data directory has of it is changed by one at a time
		s.store.naming.Lock()
		defer s.store.naming.Unlock()
	}
	// A span is not freed, there neither, while somebody has a block.
	if err := s.lockBlock(ctx, 0, false); err != nil {
		return 0, err
	}
	defer s.unlockBlock(0, false)
	s.mu.Lock()
	before := s.prefer
	s.prefer = a
	s.mu.Unlock()
	was = s.store.agents[before].Tier
	if before == a {
		return was, nil
	}
	if err := s.keep(context.WithoutCancel(ctx)); err != nil {
		s.mu.Lock()
		s.prefer = before
		s.mu.Unlock()
		return was, err
	}
	return was, nil
}

// Preferred returns the tier that writes go to now: Tier, or what Prefer was
// told last.
func (s *Span) Preferred() coherency.Tier {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store.agents[s.prefer].Tier
}

// newAdvising begins an advice for the blocks that bytes [off, off+n) touch.
func (s *Span) newAdvising(op string, kind coherency.Tier, off, n int64) (*advising, error) {
	if err := s.checkRange(off, n); err != nil {
		return nil, s.fail(op, off, n, err)
	}
	a, err := s.store.agentOf(kind)
	if err != nil {
		return nil, s.fail(op, off, n, err)
	}
	v := &advising{span: s, op: op, agent: a, off: off, n: n, first: int(off / tier.BlockSize), last: int((off + n - 1) / tier.BlockSize)}
	v.out.Blocks = v.last - v.first + 1
	return v, nil
}

// newArrival begins an advice that brings the blocks.
func (s *Span) newArrival(op string, kind coherency.Tier, off, n int64) (*advising, error) {
	v, err := s.newAdvising(op, kind, off, n)
	if err == nil {
		err = v.fits()
	}
	if err == nil {
		err = v.foretell((*advising).arrival)
	}
	return v, err
}

// run calls follow for each block, whose lock is held for writing.
func (v *advising) run(ctx context.Context, follow func(v *advising, ctx context.Context, b int) error) (Advised, error) {
	s := v.span
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(advisedAtOnce)
	for b := v.first; b <= v.last && gctx.Err() == nil; b++ {
		g.Go(func() error {
			if err := s.lockBlock(gctx, b, true); err != nil {
				return err
			}
			defer s.unlockBlock(b, true)
			return v.unless(b, follow(v, gctx, b))
		})
	}
	err := g.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // before the first block
	}
	if err != nil && v.out.Changed > 0 {
		err = fmt.Errorf("%d of %d blocks were done: %w", v.out.Changed+v.out.There, v.out.Blocks, err)
	}
	v.out.sort()
	return v.out, s.fail(v.op, v.off, v.n, err)
}

// fits reports why the tier cannot take all blocks at once, whatever leaves it.
func (v *advising) fits() error {
	bytes := min(int64(v.last+1)*tier.BlockSize, v.span.Size) - int64(v.first)*tier.BlockSize
	if u := v.span.store.tiers[v.agent].Usage(); u.Budget > 0 && bytes > u.Budget {
		return v.span.fail(v.op, v.off, v.n, fmt.Errorf("%w: the blocks have %d bytes, the tier's budget is %d: ask for a part", tier.ErrBudget, bytes, u.Budget))
	}
	return nil
}

// errLeft says that a block that was brought is not there any more.
var errLeft = fmt.Errorf("%w: it had to leave again, as others needed the room or evicted it", tier.ErrBudget)

// findGone counts blocks as skipped that were brought and have left again.
func (v *advising) findGone() {
	s := v.span
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return
	}
	gone := Skip{Err: errLeft}
	for b := v.last; b >= v.first; b-- {
		if info := s.dir.Block(b); !info.Lost && !info.Replicas[v.agent].Held {
			gone.First = b
			gone.Blocks++
		}
	}
	if gone.Blocks > 0 {
		v.out.Skipped = append(v.out.Skipped, gone)
		v.out.sort()
	}
}

// sort puts what goroutines noted in an order that does not depend on them.
func (o *Advised) sort() {
	for _, moves := range [][]Move{o.Planned, o.Moved} {
		slices.SortFunc(moves, func(x, y Move) int {
			return cmp.Or(cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To))
		})
	}
	slices.SortFunc(o.Skipped, func(x, y Skip) int { return cmp.Compare(x.First, y.First) })
}

// foretell plans the copies of all blocks. Plan foretells those that block b
// takes and says false if it takes none; the span's mu is held.
func (v *advising) foretell(plan func(v *advising, b int) (src, dst coherency.Agent, copies bool)) error {
	s := v.span
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return s.fail(v.op, v.off, v.n, ErrFreed)
	}
	for b := v.first; b <= v.last; b++ {
		if src, dst, copies := plan(v, b); copies {
			v.note(&v.out.Planned, b, src, dst)
		}
	}
	return nil
}

// arrival foretells what bring copies.
func (v *advising) arrival(b int) (src, dst coherency.Agent, copies bool) {
	dir := v.span.dir
	src = dir.Source(b, v.agent)
	if src == coherency.NoAgent && !dir.Block(b).Zeros {
		return src, v.agent, false // lost
	}
	return src, v.agent, src != v.agent
}

// departure foretells what evict copies.
func (v *advising) departure(b int) (src, dst coherency.Agent, copies bool) {
	dir := v.span.dir
	dst = dir.WriteBackTo(b, v.agent)
	return v.agent, dst, dst != coherency.NoAgent && !dir.Block(b).Replicas[v.agent].Pinned
}

// bring makes the copy of block b current.
func (v *advising) bring(ctx context.Context, b int) error {
	moved, err := v.fetch(ctx, b)
	if err == nil {
		v.count(b, moved)
	}
	return err
}

// fetch is Span.fetch. It reports whether there was anything to do.
func (v *advising) fetch(ctx context.Context, b int) (moved bool, err error) {
	s := v.span
	s.mu.Lock()
	src := s.dir.Source(b, v.agent)
	s.mu.Unlock()
	if err := s.fetch(ctx, b, v.agent); err != nil || src == v.agent {
		return false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.note(&v.out.Moved, b, src, v.agent)
	return true, nil
}

func (v *advising) pin(ctx context.Context, b int) error {
	moved, err := v.fetch(ctx, b)
	if err != nil {
		return err
	}
	s := v.span
	s.mu.Lock()
	pinned := s.pinned(v.agent).has(b)
	if !pinned {
		if err = s.dir.Pin(b, v.agent); err == nil {
			s.pinned(v.agent).add(b)
		}
	}
	s.mu.Unlock()
	if err == nil {
		v.count(b, moved || !pinned)
	}
	return err
}

func (v *advising) unpin(_ context.Context, b int) error {
	s := v.span
	s.mu.Lock()
	pinned := s.pinned(v.agent).has(b)
	if pinned {
		s.dir.Unpin(b, v.agent)
		s.pinned(v.agent).remove(b)
	}
	s.mu.Unlock()
	v.count(b, pinned)
	return nil
}

func (v *advising) evict(ctx context.Context, b int) error {
	s := v.span
	s.mu.Lock()
	held := s.dir.Block(b).Replicas[v.agent].Held
	dst := s.dir.WriteBackTo(b, v.agent)
	s.mu.Unlock()
	// Memory that was reserved and never written is given back too.
	if err := s.evictLocked(ctx, b, v.agent); err != nil {
		return err
	}
	if dst != coherency.NoAgent {
		v.mu.Lock()
		v.note(&v.out.Moved, b, v.agent, dst)
		v.mu.Unlock()
	}
	v.count(b, held)
	return nil
}

// unless counts block b as skipped if err is a reason for that, and returns err
// if it is not.
func (v *advising) unless(b int, err error) error {
	if err == nil {
		return nil
	}
	for _, reason := range []error{coherency.ErrPinned, coherency.ErrBusy, coherency.ErrLastCopy, coherency.ErrDataLoss} {
		if !errors.Is(err, reason) {
			continue
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		for i := range v.out.Skipped {
			if skip := &v.out.Skipped[i]; errors.Is(skip.Err, reason) {
				skip.Blocks++
				if b < skip.First {
					skip.First, skip.Err = b, err
				}
				return nil
			}
		}
		v.out.Skipped = append(v.out.Skipped, Skip{Err: err, First: b, Blocks: 1})
		return nil
	}
	return err
}

// count counts block b as changed, or as there already.
func (v *advising) count(b int, changed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !changed {
		v.out.There++
		return
	}
	v.out.Changed++
	v.out.Bytes += v.span.blockLen(b)
}

// note adds a copy of block b to moves.
func (v *advising) note(moves *[]Move, b int, src, dst coherency.Agent) {
	s := v.span
	move := Move{To: s.store.agents[dst].Tier, Blocks: 1, Bytes: s.blockLen(b)}
	if src != coherency.NoAgent {
		move.From.Add(s.store.agents[src].Tier)
	}
	for i := range *moves {
		if m := &(*moves)[i]; m.From == move.From && m.To == move.To {
			m.Blocks++
			m.Bytes += move.Bytes
			return
		}
	}
	*moves = append(*moves, move)
}

// pinned returns the blocks that advice pinned at agent a. The caller holds mu.
func (s *Span) pinned(a coherency.Agent) *blockSet {
	if s.pins == nil {
		s.pins = make([]blockSet, len(s.spaces))
	}
	return &s.pins[a]
}

// A blockSet is a set of blocks, a bit for each.
type blockSet []uint64

func (p blockSet) has(b int) bool { return b/64 < len(p) && p[b/64]&(1<<(b%64)) != 0 }

func (p *blockSet) add(b int) {
	if short := b/64 + 1 - len(*p); short > 0 {
		*p = append(*p, make([]uint64, short)...)
	}
	(*p)[b/64] |= 1 << (b % 64)
}

func (p blockSet) remove(b int) { p[b/64] &^= 1 << (b % 64) }
