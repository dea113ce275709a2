// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

// A span whose home is Disk and that has a name is durable: it outlives the
// daemon. What Disk is owed is noted in the data directory before a version
// that Disk lacks is committed (see mark), so that after a crash such a version
// is known to be lost and not taken back in silence.

// markAhead is how many versions a mark covers. The next so many commits of the
// block need none; after a crash the block's version is what was marked, so
// that no number is used twice.
const markAhead = 64

// versionsAhead is how far a span's version moves on when a crash lost commits
// of it, for the same reason.
const versionsAhead = 1 << 16

// durable reports whether the span outlives the daemon.
func (i Info) durable() bool { return i.Home == coherency.Disk && i.Name != "" }

// Atomic reports whether a write or flush of several blocks is durable before
// it is answered, and so must be so as a whole: see Begin.
func (s *Span) Atomic() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.savesFirst() {
		return false
	}
	for d := range s.direct {
		if d.writable {
			return false // writes go to the mapped pages, block by block
		}
	}
	return true
}

// savesFirst reports whether writes are durable before they are answered. The
// caller holds mu.
func (s *Span) savesFirst() bool {
	return s.disk != nil && (s.Policy != coherency.WriteBack || s.prefer == s.store.disk)
}

// writable reports why the span takes no changes: the data directory takes none,
// and nothing could note that Disk has not the newest version.
func (s *Span) writable() error {
	if s.disk == nil {
		return nil
	}
	return s.store.files.Err()
}

// diskRecord is what the data directory keeps of the span. The caller holds mu.
func (s *Span) diskRecord(published bool) disk.Record {
	return disk.Record{
		ID: s.ID, Name: s.Name, Size: s.Size,
		Tier: s.store.agents[s.prefer].Tier, Home: s.Home, Policy: s.Policy, Placement: s.Placement,
		Created: s.Created, Version: s.version, Published: published,
	}
}

// restore fills a new directory with what the data directory has of the span.
func restore(dir *coherency.Manager, space *disk.Space) error {
	for b, state := range space.Blocks() {
		last := max(state.Version, state.Marked)
		if last == 0 {
			continue
		}
		if err := dir.Restore(b, last, state.Version, state.Held); err != nil {
			return err
		}
	}
	return nil
}

// A dirty is a block whose version Disk is to be given. Runs are what changed
// since the version before it; nil: all of it may have.
type dirty struct {
	block int
	runs  []Run
}

// persist gives Disk the current versions of blocks of a durable span, all of
// them at once: after a crash all are there or none. The caller holds the
// blocks' locks for writing.
func (s *Span) persist(ctx context.Context, blocks []dirty) error {
	steps := make([]saving, 0, len(blocks))
	s.mu.Lock()
	for _, d := range blocks {
		step, hit, err := s.planSaving(d)
		if errors.Is(err, coherency.ErrDataLoss) {
			continue // whoever reads it is told
		}
		if err != nil {
			s.abandonLocked(steps)
			s.mu.Unlock()
			return err
		}
		if !hit {
			steps = append(steps, step)
		}
	}
	s.mu.Unlock()
	return s.save(ctx, steps)
}

// A saving is a copy to Disk that is planned.
type saving struct {
	coherency.Copy
	runs []Run // that alone differ from what Disk has; nil: take the whole block
}

// planSaving plans the copy of a block to Disk; the caller holds mu.
func (s *Span) planSaving(d dirty) (step saving, hit bool, err error) {
	info := s.dir.Block(d.block).Replicas[s.store.disk]
	c, hit, err := s.dir.Acquire(d.block, s.store.disk)
	if err != nil || hit {
		return saving{}, hit, err
	}
	return s.savingOf(c, info, d.runs), false, nil
}

func (s *Span) savingOf(c coherency.Copy, has coherency.ReplicaInfo, runs []Run) saving {
	if !has.Held || has.Version != c.Version-1 || c.Src == coherency.NoAgent {
		runs = nil
	}
	return saving{c, runs}
}

// save carries out copies to Disk, all or none of them, and completes them.
func (s *Span) save(ctx context.Context, steps []saving) error {
	if len(steps) == 0 {
		return nil
	}
	steps = slices.Clone(steps) // completed as they are when they are staged
	tx := s.store.files.Begin()
	stale := make(map[int]bool) // exposed blocks that clients stored to meanwhile
	err := func() error {
		for i := range steps {
			step := &steps[i]
			staged, changed, err := s.stage(ctx, *step)
			if err != nil {
				return err
			}
			stale[step.Block] = changed
			tx.Put(staged, step.Version)
			s.mu.Lock()
			from := step.Src
			received, counts := s.dir.Received(step.Copy)
			step.Copy = received
			s.mu.Unlock()
			if !counts {
				return fmt.Errorf("block %d: %w while it was copied to disk", step.Block, tier.ErrLost)
			}
			if from != coherency.NoAgent {
				s.store.traffic[from].out.Add(s.savedBytes(*step))
			}
		}
		return nil
	}()
	s.mu.Lock()
	version := s.version
	s.mu.Unlock()
	if err == nil {
		tx.Version(s.disk, version)
		err = tx.Commit(ctx)
	} else {
		tx.Discard()
	}
	committed := err == nil
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, step := range steps {
		if stale[step.Block] {
			delete(s.sums, step.Block) // see carryLocked
		}
		if _, cerr := s.dir.Complete(step.Copy, committed); err == nil {
			err = cerr
		}
		if committed { // on Disk the marks have ended, whatever became of the copies here
			delete(s.marks, step.Block)
			s.countCopy(step.Copy, s.savedBytes(step))
		}
	}
	return err
}

// savedBytes is how many bytes a copy to Disk moves.
func (s *Span) savedBytes(step saving) int64 {
	if step.runs != nil {
		return total(step.runs)
	}
	return s.blockLen(step.Block)
}

// abandonLocked gives up copies that nobody began. The caller holds mu.
func (s *Span) abandonLocked(steps []saving) {
	for _, step := range steps {
		_, _ = s.dir.Complete(step.Copy, false) // it is known
	}
}

// stage brings a block's bytes to the data directory, where nobody sees them
// yet. Changed says that clients stored to the block since its last release.
func (s *Span) stage(ctx context.Context, step saving) (staged *disk.Staged, changed bool, err error) {
	b, n := step.Block, s.blockLen(step.Block)
	runs := step.runs
	if runs == nil {
		runs = []Run{{0, uint32(n)}}
	}
	var data tier.Memory
	s.mu.Lock()
	exposed := step.Src == hostAgent && s.exposed(b)
	known := s.sums[b]
	s.mu.Unlock()
	if step.Src == hostAgent && !exposed && !s.host.Storable() && len(runs) == 1 {
		if data, err = s.host.Memory(b, int64(runs[0].Offset), int64(runs[0].Length)); err != nil {
			return nil, false, err
		}
		staged, err = s.disk.Stage(ctx, b, diskRuns(runs), data)
		return staged, false, err
	}
	scratch, err := s.store.moving.get(ctx)
	if err != nil {
		return nil, false, err
	}
	defer s.store.moving.put(scratch)
	switch {
	case step.Src == coherency.NoAgent:
		clear(scratch.Bytes()[:n])
	case exposed:
		err = s.host.Read(ctx, b, 0, scratch.Slice(0, n))
		runs = []Run{{0, uint32(n)}}
		changed = err == nil && maphash.Bytes(s.seed, scratch.Slice(0, n).Bytes()) != known
	default:
		at := int64(0)
		for _, r := range runs {
			if err = s.spaces[step.Src].Read(ctx, b, int64(r.Offset), scratch.Slice(at, int64(r.Length))); err != nil {
				break
			}
			at += int64(r.Length)
		}
	}
	if err != nil {
		return nil, false, err
	}
	staged, err = s.disk.Stage(ctx, b, diskRuns(runs), scratch.Slice(0, total(runs)))
	return staged, changed, err
}

func diskRuns(runs []Run) []disk.Run {
	out := make([]disk.Run, len(runs))
	for i, r := range runs {
		out[i] = disk.Run(r)
	}
	return out
}

func total(runs []Run) (n int64) {
	for _, r := range runs {
		n += int64(r.Length)
	}
	return n
}

// mark notes on Disk that block b is about to get a version that Disk will not
// have when the write is answered. The caller holds the block's lock for
// writing. A span that nobody can find needs no marks: a crash takes it whole.
func (s *Span) mark(ctx context.Context, b int) error {
	s.mu.Lock()
	next := s.dir.Version(b) + 1
	needed := s.disk != nil && s.announced && s.marks[b] < next
	s.mu.Unlock()
	if !needed {
		return nil
	}
	tx := s.store.files.Begin()
	tx.Mark(s.disk, b, next+markAhead)
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("note that block %d will be newer than on disk: %w", b, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteMark(b, next+markAhead)
	return nil
}

// unmark takes back a mark for a version that never came to be, if Disk has the
// newest there is: else the next daemon would take that for lost. The caller
// holds the block's lock for writing.
func (s *Span) unmark(ctx context.Context, b int) {
	s.mu.Lock()
	version := s.dir.Version(b)
	idle := s.marks[b] != 0 && (version == 0 || s.dir.Valid(b, s.store.disk))
	s.mu.Unlock()
	if !idle {
		return
	}
	err := s.saveAgain(ctx, b, version)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.store.log.Warn("a note on disk of a write that failed stays: after a restart the block may count as lost", "span", s.Label(), "block", b, "err", err)
		return
	}
	delete(s.marks, b)
}

// saveAgain puts what Disk has of block b, which ends its mark.
func (s *Span) saveAgain(ctx context.Context, b int, version uint64) error {
	scratch, err := s.store.moving.get(ctx)
	if err != nil {
		return err
	}
	defer s.store.moving.put(scratch)
	data := scratch.Slice(0, s.blockLen(b))
	if version == 0 {
		clear(data.Bytes())
	} else if err := s.disk.Read(ctx, b, 0, data); err != nil {
		return err
	}
	staged, err := s.disk.Stage(ctx, b, []disk.Run{{Length: uint32(data.Len)}}, data)
	if err != nil {
		return err
	}
	tx := s.store.files.Begin()
	tx.Put(staged, version)
	return tx.Commit(ctx)
}

// noteLoss notes on Disk, before anybody is told, that of blocks first to end
// those versions are lost that agent a alone has. A version that the write policy
// could not bring to Disk is not marked: after a restart what was there before it
// would be back, as if nothing had been.
func (s *Span) noteLoss(ctx context.Context, a coherency.Agent, first, end int) {
	lost := make(map[int]uint64)
	s.mu.Lock()
	if s.disk != nil && s.announced && !s.freed && s.dir != nil {
		for b := first; b < end; b++ {
			v := s.dir.Version(b)
			if s.marks[b] < v && s.dir.Holders(b) == coherency.AgentsOf(a) {
				lost[b] = v
			}
		}
	}
	s.mu.Unlock()
	if len(lost) == 0 {
		return
	}
	tx := s.store.files.Begin()
	for b, v := range lost {
		tx.Mark(s.disk, b, v)
	}
	if err := tx.Commit(ctx); err != nil {
		s.store.log.Error("a loss is not noted on disk", "span", s.Label(), "blocks", len(lost), "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for b, v := range lost {
		s.noteMark(b, max(v, s.marks[b]))
	}
}

// noteMark remembers a mark; the caller holds mu.
func (s *Span) noteMark(b int, version uint64) {
	if s.marks == nil {
		s.marks = make(map[int]uint64)
	}
	s.marks[b] = version
}

// unmarked returns the blocks of a span that is about to be found by its name
// whose versions Disk does not have, or will not have in a moment, in order. The
// caller holds mu.
func (s *Span) unmarked() (due []int) {
	for b := range s.Blocks() {
		info := s.dir.Block(b)
		if s.disk != nil && (info.Debt || info.Writer != coherency.NoAgent && info.Writer != s.store.disk) {
			due = append(due, b)
		}
	}
	return due
}

// changeOnDisk makes a new version of block b on Disk itself. It is changeLocked
// from the moment on that the directory knows of the write.
func (s *Span) changeOnDisk(ctx context.Context, b int, from origin, runs []Run, apply func(context.Context, coherency.Agent) error) (Committed, error) {
	a := s.store.disk
	ctx = context.WithoutCancel(ctx) // tiers end by themselves
	err := apply(ctx, a)
	staged := s.disk.Take(b)
	s.mu.Lock()
	version := s.dir.Version(b) + 1
	if from.last {
		s.version++
	}
	commits := s.version
	s.mu.Unlock()
	if err == nil {
		tx := s.store.files.Begin()
		tx.Put(staged, version)
		tx.Version(s.disk, commits)
		err = tx.Commit(ctx)
	} else if staged != nil {
		staged.Discard()
	}
	s.mu.Lock()
	if err != nil {
		_ = s.dir.Abort(b, a, false) // what was published before is untouched
		s.mu.Unlock()
		return Committed{}, err
	}
	c, err := s.dir.Commit(b, a)
	if err != nil {
		s.mu.Unlock()
		return Committed{}, err
	}
	delete(s.marks, b)
	s.record(b, c.Version, from.author, runs)
	s.mu.Unlock()
	return s.push(ctx, b, a, c, runs)
}

// countDurably counts one commit of the span, and notes the count on Disk if
// that is where its bytes are by now.
func (s *Span) countDurably(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	s.version++
	version, saves := s.version, s.savesFirst()
	s.mu.Unlock()
	if !saves {
		return version, nil
	}
	if err := s.persistVersion(context.WithoutCancel(ctx)); err != nil {
		return version, fmt.Errorf("%w: %w", ErrDebt, err)
	}
	return version, nil
}

// persistVersion notes on Disk how many commits a durable span has seen.
func (s *Span) persistVersion(ctx context.Context) error {
	s.mu.Lock()
	version, space := s.version, s.disk
	known := s.savedVersion == version
	s.mu.Unlock()
	if space == nil || known {
		return nil
	}
	tx := s.store.files.Begin()
	tx.Version(space, version)
	if err := tx.Commit(ctx); err != nil {
		return s.fail("save", 0, 0, fmt.Errorf("the span's version is not noted on disk: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.savedVersion = max(s.savedVersion, version)
	return nil
}

// lockBlocks locks blocks, which ascend, for writing. It holds none while it
// waits for one: whoever has that may be waiting for room, which one of the
// others could make.
func (s *Span) lockBlocks(ctx context.Context, blocks []int) (unlock func(), err error) {
	for held := 0; held < len(blocks); {
		if s.tryLockBlock(blocks[held]) {
			held++
			continue
		}
		s.unlockBlocks(blocks[:held])
		if err := s.lockBlock(ctx, blocks[held], true); err != nil {
			return nil, err
		}
		if held == 0 {
			held = 1
			continue
		}
		s.unlockBlock(blocks[held], true)
		held = 0
	}
	return func() { s.unlockBlocks(blocks) }, nil
}

func (s *Span) unlockBlocks(blocks []int) {
	for _, b := range blocks {
		s.unlockBlock(b, true)
	}
}

// acceptOnDisk makes what survives of a lost block its next version, on Disk
// first: if that fails the loss stands. The caller holds the block's lock for
// writing.
func (s *Span) acceptOnDisk(ctx context.Context, b int) error {
	scratch, err := s.store.moving.get(ctx)
	if err != nil {
		return err
	}
	defer s.store.moving.put(scratch)
	data := scratch.Slice(0, s.blockLen(b))
	s.mu.Lock()
	info, home := s.dir.Block(b), s.dir.Home()
	s.mu.Unlock()
	from := coherency.NoAgent
	for a := range s.store.agents { // as coherency.Accept chooses: home, if it has that version
		if r := info.Replicas[a]; r.Held && r.Version == info.Survivor && (from != home) {
			from = coherency.Agent(a)
		}
	}
	if from == coherency.NoAgent {
		clear(data.Bytes())
	} else if err := s.spaces[from].Read(ctx, b, 0, data); err != nil {
		return err
	}
	staged, err := s.disk.Stage(ctx, b, []disk.Run{{Length: uint32(data.Len)}}, data)
	if err != nil {
		return err
	}
	tx := s.store.files.Begin()
	tx.Put(staged, info.Version+1)
	tx.Version(s.disk, s.Version()+1) // which the caller counts
	if err := tx.Commit(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.marks, b)
	_, _, err = s.dir.Accept(b)
	return err
}

// spread copies the bytes of runs, one after the other in src, to their places.
func spread(dst []byte, runs []Run, src []byte) {
	for _, r := range runs {
		memfd.Copy(dst[r.Offset:r.end()], src[:r.Length])
		src = src[r.Length:]
	}
}

// keep tells the data directory what the span is, if it is durable.
func (s *Span) keep(ctx context.Context) error {
	s.mu.Lock()
	if s.disk == nil {
		s.mu.Unlock()
		return nil
	}
	rec := s.diskRecord(s.published)
	s.mu.Unlock()
	tx := s.store.files.Begin()
	tx.Set(rec)
	return tx.Commit(ctx)
}

// persistAll gives Disk all that it is owed.
func (s *Span) persistAll(ctx context.Context) error {
	s.mu.Lock()
	var owed []int
	if s.disk != nil && !s.freed {
		owed = slices.Collect(s.dir.Debts())
	}
	s.mu.Unlock()
	var errs []error
	for some := range slices.Chunk(owed, maxTogether) {
		if _, err := s.saveBlocks(ctx, some); err != nil && !errors.Is(err, ErrFreed) {
			errs = append(errs, s.fail("save", int64(some[0])*tier.BlockSize, tier.BlockSize, err))
		}
	}
	return errors.Join(errs...)
}
