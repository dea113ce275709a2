// SPDX-License-Identifier: Apache-2.0

package span

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// A Direct is a direct mapping: another process has the span's very pages in
// its address space. While it is open those pages stay, and writes to blocks
// that a writable one covers go to them.
type Direct struct {
	span     *Span
	off, n   int64
	writable bool
	onFree   func()

	closing sync.Mutex // held by Close

	// Guarded by the span's mu. Pinned are the copies in RAM that the mapping
	// keeps from being evicted.
	closed    bool
	pinnedAll bool
	pinned    []int
}

// MapDirect brings bytes [off, off+n) to RAM and keeps them there. If they are
// all there already its cost does not depend on n. Whoever gets File may read,
// and if writable store, anywhere in the span: the kernel shares pages, and
// the range is a promise of the holder. onFree is called when the span goes,
// by whoever frees it; it must not wait for anything, nor call the span.
func (s *Span) MapDirect(ctx context.Context, off, n int64, writable bool, onFree func()) (*Direct, error) {
	d, err := s.newDirect(off, n, writable, onFree, true)
	if err != nil || d.pinnedAll {
		return d, err
	}
	if err := d.blocks(ctx, Extent{off, n}, d.pin); err != nil {
		d.close()
		return nil, s.fail("map", off, n, err)
	}
	return d, nil
}

// TryMapDirect is MapDirect if all of the span is in RAM and nothing is under
// way: it waits for nothing. Otherwise ok is false, and nothing is mapped.
func (s *Span) TryMapDirect(off, n int64, writable bool, onFree func()) (d *Direct, ok bool, err error) {
	d, err = s.newDirect(off, n, writable, onFree, false)
	return d, d != nil, err
}

// newDirect registers a mapping and pins what it maps if that is in RAM. If it
// is not, pinning is left to the caller, or if anyway is false there is no
// mapping.
func (s *Span) newDirect(off, n int64, writable bool, onFree func(), anyway bool) (*Direct, error) {
	if err := s.checkRange(off, n); err != nil {
		return nil, s.fail("map", off, n, err)
	}
	d := &Direct{span: s, off: off, n: n, writable: writable, onFree: onFree}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return nil, s.fail("map", off, n, ErrFreed)
	}
	d.pinnedAll = len(s.busy) == 0 && s.dir.PinAll(hostAgent) == nil
	if !d.pinnedAll && !anyway {
		return nil, nil
	}
	// Blocks that are not pinned are looked at after the registration, which
	// turns later writes to RAM: earlier ones may still be under way elsewhere.
	if s.direct == nil {
		s.direct = make(map[*Direct]struct{})
	}
	s.direct[d] = struct{}{}
	return d, nil
}

// pin brings block b to RAM and keeps it there.
func (d *Direct) pin(ctx context.Context, b int) error {
	s := d.span
	if err := s.lockBlock(ctx, b, true); err != nil {
		return err
	}
	defer s.unlockBlock(b, true)
	if err := s.fetch(ctx, b, hostAgent); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.dir.Pin(b, hostAgent); err != nil {
		return err
	}
	d.pinned = append(d.pinned, b)
	return nil
}

// Invalidate makes others' commits visible in the extents (none: the whole
// mapping). It has work to do only if the mapping is read-only and the span
// was written on another tier.
func (d *Direct) Invalidate(ctx context.Context, extents ...Extent) error {
	extents, err := d.check(extents)
	if err != nil {
		return d.span.fail("invalidate", d.off, d.n, err)
	}
	for _, e := range extents {
		err := d.blocks(ctx, e, func(ctx context.Context, b int) error {
			return d.span.fetchBlock(ctx, b, hostAgent)
		})
		if err != nil {
			return d.span.fail("invalidate", e.Offset, e.Length, err)
		}
	}
	return nil
}

// check returns the extents to work on, the whole mapping for none.
func (d *Direct) check(extents []Extent) ([]Extent, error) {
	if len(extents) == 0 {
		return []Extent{{d.off, d.n}}, nil
	}
	for _, e := range extents {
		if e.Offset < d.off || e.Length <= 0 || e.Length > d.n || e.Offset-d.off > d.n-e.Length {
			return nil, fmt.Errorf("%w: [%d, +%d) is not within the mapping [%d, +%d)", ErrRange, e.Offset, e.Length, d.off, d.n)
		}
	}
	return extents, nil
}

// Extent is bytes [Offset, Offset+Length) of a span.
type Extent struct{ Offset, Length int64 }

func (d *Direct) covers(b int) bool {
	start := int64(b) * tier.BlockSize
	return d.off < start+tier.BlockSize && start < d.off+d.n
}

// blocks calls f for each block of e, several at a time.
func (d *Direct) blocks(ctx context.Context, e Extent, f func(ctx context.Context, b int) error) error {
	first, last := int(e.Offset/tier.BlockSize), int((e.Offset+e.Length-1)/tier.BlockSize)
	if first == last {
		return f(ctx, first)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for b := first; b <= last; b++ {
		g.Go(func() error { return f(ctx, b) })
	}
	return g.Wait()
}

// File returns a descriptor of the span's memory, byte i of which is byte i of
// the span, and its size. It can be mapped writable only if the mapping is. The
// caller closes it.
func (d *Direct) File() (f *os.File, size int64, err error) {
	f, size, err = d.span.host.Share(d.writable)
	return f, size, d.span.fail("map", d.off, d.n, err)
}

// Flush makes what was stored in the extents (none: the whole mapping) a new
// version of the blocks that changed, and meets the write policy. It returns
// the span's version and the tiers that hold all blocks of the extents.
//
// A block that was written by other means since it was last flushed counts as
// changed: its sum is not known.
func (d *Direct) Flush(ctx context.Context, extents ...Extent) (Committed, error) {
	extents, err := d.check(extents)
	if err != nil {
		return Committed{}, d.span.fail("flush", d.off, d.n, err)
	}
	return d.release(ctx, extents, false)
}

// release commits what changed. It commits all it can before it returns an
// error.
func (d *Direct) release(ctx context.Context, extents []Extent, unclean bool) (Committed, error) {
	s := d.span
	if d.writable && s.disk != nil && s.Policy != coherency.WriteBack {
		done, err := d.releaseTogether(ctx, extents, unclean)
		return done, s.fail("flush", extents[0].Offset, extents[0].Length, err)
	}
	var mu sync.Mutex // guards errs, changed, stored and holders
	var errs []error
	changed := false
	stored := int64(0)
	holders := s.store.Tiers()
	for _, e := range extents {
		err := d.blocks(ctx, e, func(ctx context.Context, b int) error {
			c, did, err := d.releaseBlock(ctx, b, unclean)
			mu.Lock()
			defer mu.Unlock()
			changed = changed || did
			stored += c.Stored
			holders = holders.Intersect(c.Holders)
			if err != nil {
				errs = append(errs, err)
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	version := s.Version()
	if changed {
		version = s.CountCommit()
	}
	done := Committed{Version: version, Holders: holders, Stored: stored}
	if len(errs) > 0 {
		return done, s.fail("flush", extents[0].Offset, extents[0].Length, errs[0])
	}
	return done, nil
}

// releaseBlock commits block b if RAM's bytes are not those of its last
// commit.
func (d *Direct) releaseBlock(ctx context.Context, b int, unclean bool) (c Committed, changed bool, err error) {
	s := d.span
	if err := s.lockBlock(ctx, b, true); err != nil {
		return Committed{}, false, err
	}
	defer s.unlockBlock(b, true)
	if !d.writable {
		return d.held(b), false, nil
	}
	commit, changed, err := d.commitStored(ctx, b, unclean)
	if err != nil || !changed {
		return d.held(b), false, err
	}
	c, err = s.push(ctx, b, hostAgent, commit, nil)
	c.Stored = s.blockLen(b)
	return c, true, err
}

// commitStored makes what RAM has of block b a version if it is not the last
// one. The caller holds the block's lock for writing.
func (d *Direct) commitStored(ctx context.Context, b int, unclean bool) (commit coherency.Commit, changed bool, err error) {
	s := d.span
	s.mu.Lock()
	err = d.usable(b)
	s.mu.Unlock()
	if err != nil {
		return coherency.Commit{}, false, err
	}
	m, err := s.host.Memory(b, 0, s.blockLen(b))
	if err != nil {
		return coherency.Commit{}, false, err
	}
	var sum uint64
	if err := memfd.Guard(func() { sum = maphash.Bytes(s.seed, m.Bytes()) }); err != nil {
		return coherency.Commit{}, false, err
	}
	s.mu.Lock()
	known, ok := s.sums[b]
	s.mu.Unlock()
	if ok && known == sum {
		return coherency.Commit{}, false, nil
	}
	if err := s.writable(); err != nil {
		return coherency.Commit{}, false, err
	}
	// RAM is current and nothing is under way: there is nothing to fetch.
	s.mu.Lock()
	_, _, err = s.dir.BeginWrite(b, hostAgent, false, AnyVersion)
	s.mu.Unlock()
	if err != nil {
		return coherency.Commit{}, false, err
	}
	if s.unsaved(hostAgent) { // after BeginWrite: whoever publishes the span knows of the write
		err = s.mark(ctx, b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		_ = s.dir.Abort(b, hostAgent, false)
		return coherency.Commit{}, false, err
	}
	if commit, err = s.dir.Commit(b, hostAgent); err != nil {
		return coherency.Commit{}, false, err
	}
	s.record(b, commit.Version, 0, []Run{{0, uint32(m.Len)}})
	if s.sums == nil {
		s.sums = make(map[int]uint64)
	}
	s.sums[b] = sum
	if unclean {
		s.dir.MarkUnclean(b)
	}
	s.writeBackLater(b, hostAgent, commit.Version)
	return commit, true, nil
}

// releaseTogether is release for a span that is durable when it is answered:
// what changed is so as a whole.
func (d *Direct) releaseTogether(ctx context.Context, extents []Extent, unclean bool) (Committed, error) {
	s := d.span
	blocks := blocksOf(extents)
	unlock, err := s.lockBlocks(ctx, blocks)
	if err != nil {
		return Committed{}, err
	}
	defer unlock()
	commits := make([]coherency.Commit, len(blocks))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, b := range blocks {
		g.Go(func() (err error) {
			commits[i], _, err = d.commitStored(ctx, b, unclean)
			return err
		})
	}
	err = g.Wait() // what is committed is made durable all the same
	var changed []dirty
	stored := int64(0)
	for i, b := range blocks {
		if commits[i].Version != 0 {
			changed = append(changed, dirty{block: b})
			stored += s.blockLen(b)
		}
	}
	ctx = context.WithoutCancel(ctx)
	var debt error
	if len(changed) > 0 {
		s.CountCommit()
		if perr := s.persist(ctx, changed); perr != nil {
			debt = s.owed(ctx, commits, blocks, perr)
		}
	}
	saved := debt == nil
	done := Committed{Version: s.Version(), Holders: s.store.Tiers(), Stored: stored}
	for i, b := range blocks {
		c := d.held(b)
		if commits[i].Version != 0 && saved { // to the other tiers that the policy names
			var perr error
			c, perr = s.push(ctx, b, hostAgent, commits[i], nil)
			debt = cmp.Or(debt, perr)
		}
		done.Holders = done.Holders.Intersect(c.Holders)
	}
	return done, cmp.Or(err, debt)
}

// owed notes that Disk is owed the commits, and returns that as an error.
func (s *Span) owed(ctx context.Context, commits []coherency.Commit, blocks []int, err error) error {
	for i, b := range blocks {
		v := commits[i].Version
		if v == 0 {
			continue
		}
		s.mu.Lock()
		s.owe(coherency.Sync{Block: b, From: hostAgent, Target: s.store.disk, Version: v})
		s.mu.Unlock()
		if merr := s.mark(ctx, b); merr != nil { // else a crash would take it back in silence
			err = errors.Join(err, merr)
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
	return fmt.Errorf("%w: %s asks for more: %w", ErrDebt, s.Policy, err)
}

// blocksOf returns the blocks that the extents touch, each once, in order.
func blocksOf(extents []Extent) []int {
	var blocks []int
	for _, e := range extents {
		for b := e.Offset / tier.BlockSize; b*tier.BlockSize < e.Offset+e.Length; b++ {
			blocks = append(blocks, int(b))
		}
	}
	slices.Sort(blocks)
	return slices.Compact(blocks)
}

// usable reports why block b cannot be released: the mapping was closed, or
// RAM's copy is not current, which takes a loss to happen. The caller holds the
// span's mu and the block's lock.
func (d *Direct) usable(b int) error {
	switch _, err := d.span.source(b); {
	case d.closed:
		return ErrNotMapped
	case err != nil:
		return err
	case !d.span.dir.Valid(b, hostAgent):
		return fmt.Errorf("%w: block %d was replaced while it was mapped", coherency.ErrConflict, b)
	}
	return nil
}

func (d *Direct) held(b int) Committed {
	s := d.span
	s.mu.Lock()
	defer s.mu.Unlock()
	info := s.dir.Block(b)
	return Committed{Version: info.Version, Holders: info.Holders}
}

// Close ends the mapping and releases what was stored through it. Died says
// that its user did not end it: blocks that changed are marked unclean, and the
// mapping ends whatever happens. Otherwise it stays if the release fails with
// anything but ErrDebt. Closing it again does nothing.
func (d *Direct) Close(ctx context.Context, died bool) (c Committed, err error) {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.writable && !d.isClosed() {
		c, err = d.release(ctx, []Extent{{d.off, d.n}}, died)
		if err != nil && !died && !errors.Is(err, ErrDebt) && !errors.Is(err, ErrFreed) {
			return c, err
		}
	}
	d.close()
	return c, err
}

func (d *Direct) isClosed() bool {
	d.span.mu.Lock()
	defer d.span.mu.Unlock()
	return d.closed
}

func (d *Direct) close() {
	s := d.span
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.direct, d)
	d.closed = true
	if d.pinnedAll {
		s.dir.UnpinAll(hostAgent)
	}
	for _, b := range d.pinned {
		s.dir.Unpin(b, hostAgent)
	}
	d.pinnedAll, d.pinned = false, nil
}
