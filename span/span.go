// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/tier/host"
)

// A Span is an allocated range of memory. Its methods may be called
// concurrently; after Free they return ErrFreed.
type Span struct {
	Info // immutable

	store *Store
	read  atomic.Int64 // bytes, by users
	// The storage and dir are made by build, or when a span that the data
	// directory kept is first used, and stay.
	spaces []tier.Space // by agent
	host   *host.Space  // spaces[hostAgent]
	disk   *disk.Space  // spaces[store.disk] of a durable span; else nil

	mu           sync.Mutex         // guards what follows
	dir          *coherency.Manager // nil: nobody has used the span since the daemon began
	prefer       coherency.Agent    // where writes go, and where build puts the span
	pins         []blockSet         // by agent: what advice pinned there; nil: nothing
	written      int64              // bytes of all commits
	version      uint64             // commits of the span
	freed        bool
	drained      chan struct{} // made by Free, closed when no block is in use
	busy         map[int]*blockLock
	spare        []*blockLock
	users        int  // open handles; a span that is not published goes with the last
	published    bool // its name finds it; changed with the store's mu held, too
	borrowed     bool // its memory in RAM is to be as it is until it is published: see Adopt
	locks        rangeLocks
	direct       map[*Direct]struct{}
	sums         map[int]uint64 // of RAM's bytes at their last commit, where known
	seed         maphash.Seed
	writers      int              // shadow mappings that may flush against an old version
	history      map[int]*history // while writers > 0
	shadows      map[*Shadow]struct{}
	lastShadow   uint64
	due          coherency.SyncQueue // copies that a policy asked for and that are not made
	owing        bool                // the store knows that something is due
	failures     int                 // attempts in a row that failed
	lastErr      error               // why the last attempt failed
	unreported   error               // the same, until a flush has told
	announced    bool                // the data directory knows it by its name, or is about to
	marks        map[int]uint64      // by block: see mark
	savedVersion uint64              // that persistVersion noted last
}

// build makes the span's storage and directory, before anybody else can find
// the span.
func (s *Span) build(ctx context.Context, home coherency.Agent, memory *os.File) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeSpaces())
		}
	}()
	if err := s.openSpaces(ctx); err != nil {
		return err
	}
	if memory != nil {
		if err := s.host.Adopt(memory); err != nil {
			return err
		}
	}
	var zeroed coherency.AgentMask
	if !s.mayLeave(s.prefer) {
		if err := s.reserveAll(ctx); err != nil {
			return err
		}
		if s.prefer == hostAgent {
			zeroed = 1 << hostAgent
		}
	}
	s.users = 1
	s.dir, err = s.newDirectory(home, zeroed)
	return err
}

func (s *Span) newDirectory(home coherency.Agent, zeroed coherency.AgentMask) (*coherency.Manager, error) {
	return coherency.NewManager(coherency.Config{
		Agents: s.store.agents,
		Home:   home,
		Policy: s.Policy,
		Blocks: s.Blocks(),
		Zeroed: zeroed,
	})
}

func (s *Span) openSpaces(ctx context.Context) error {
	s.seed = maphash.MakeSeed()
	for _, t := range s.store.tiers {
		space, err := s.openSpace(ctx, t)
		if err != nil {
			return err
		}
		s.spaces = append(s.spaces, space)
	}
	s.host = s.spaces[hostAgent].(*host.Space) // tiers[0] is the host tier
	return nil
}

func (s *Span) openSpace(ctx context.Context, t tier.Tier) (tier.Space, error) {
	if t == tier.Tier(s.store.files) && s.durable() {
		space, err := s.store.files.Durable(s.diskRecord(s.published))
		s.disk = space
		return space, err
	}
	return t.Open(ctx, s.Label(), s.Size, s.Placement)
}

// reserveAll takes the memory of a span that has no other place to go, so that
// a later write cannot fail for want of it.
func (s *Span) reserveAll(ctx context.Context) error {
	// Refused before anything is taken: others may need it meanwhile.
	if u := s.store.tiers[s.prefer].Usage(); u.Budget > 0 && s.Size > u.Budget-u.Held {
		return fmt.Errorf("%d bytes do not fit: %d of the %s tier's %d are held: %w", s.Size, u.Held, s.Tier, u.Budget, tier.ErrBudget)
	}
	if s.prefer == hostAgent {
		return s.host.ReserveAll(ctx)
	}
	for b := range s.Blocks() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.spaces[s.prefer].Reserve(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// rouse makes what a span needs to be used that was found in the data directory,
// unless that was done. The caller holds mu.
func (s *Span) rouse() error {
	if s.dir != nil {
		return nil
	}
	dir, err := s.recall()
	if err == nil {
		err = s.openSpaces(context.Background()) // no space of an existing span waits
	}
	if err != nil {
		err = errors.Join(err, s.closeSpaces())
		s.spaces, s.host, s.disk = nil, nil, nil
		return s.fail("open", 0, 0, err)
	}
	s.busy = make(map[int]*blockLock)
	s.dir = dir
	for b := range s.Blocks() {
		if dir.Block(b).Lost {
			s.version += versionsAhead
			break
		}
	}
	return nil
}

// recall returns the span's directory as the data directory has it.
func (s *Span) recall() (*coherency.Manager, error) {
	dir, err := s.newDirectory(s.store.disk, 0)
	if err != nil {
		return nil, err
	}
	space, err := s.store.files.Durable(s.diskRecord(true))
	if err != nil {
		return nil, err
	}
	return dir, errors.Join(restore(dir, space), space.Close())
}

// Blocks returns how many blocks the span has.
func (s *Span) Blocks() int { return int((s.Size + tier.BlockSize - 1) / tier.BlockSize) }

func (s *Span) blockLen(b int) int64 {
	return min(tier.BlockSize, s.Size-int64(b)*tier.BlockSize)
}

// Label is how messages name the span.
func (s *Span) Label() string {
	if s.Name != "" {
		return s.Name
	}
	return s.ID.String()
}

// checkRange checks bytes [off, off+n) without overflow.
func (s *Span) checkRange(off, n int64) error {
	if off < 0 || n <= 0 || off > s.Size || n > s.Size-off {
		return fmt.Errorf("%w: it has %d bytes", ErrRange, s.Size)
	}
	return nil
}

// fail gives an error its place, unless it has one.
func (s *Span) fail(op string, off, n int64, err error) error {
	var placed *Error
	if err == nil || errors.As(err, &placed) {
		return err
	}
	return &Error{Op: op, Span: s.Label(), Offset: off, Length: n, Err: err}
}

// Retain notes one more user of the span. It fails if the span was freed.
func (s *Span) Retain() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return s.fail("open", 0, 0, ErrFreed)
	}
	if err := s.rouse(); err != nil {
		return err
	}
	s.users++
	return nil
}

// Forsake notes that a user is gone. A span that is not published is freed with
// its last.
func (s *Span) Forsake() error {
	s.mu.Lock()
	s.users--
	if s.users > 0 || s.published || s.freed {
		s.mu.Unlock()
		return nil
	}
	return s.freeLocked()
}

// Free removes the span and gives its memory back. It waits for operations in
// progress on blocks, which end by themselves; those that wait for a block or
// a lock fail with ErrFreed. Clients that have it mapped read zeros from then
// on.
func (s *Span) Free() error {
	s.mu.Lock()
	if s.freed {
		s.mu.Unlock()
		return s.fail("free", 0, 0, ErrFreed)
	}
	return s.freeLocked()
}

// freeLocked is Free; the caller holds mu, which it gives up.
func (s *Span) freeLocked() error {
	s.freed = true
	s.locks.fail(ErrFreed)
	for d := range s.direct {
		d.onFree()
	}
	for sh := range s.shadows {
		sh.onFree()
	}
	s.sums, s.history, s.due, s.marks = nil, nil, coherency.SyncQueue{}, nil
	var drained chan struct{}
	if len(s.busy) > 0 {
		drained = make(chan struct{})
		s.drained = drained
		for b, l := range s.busy { // waiters look again and see freed
			l.recall()
			s.wake(b, l)
		}
	}
	s.mu.Unlock()
	s.store.remove(s)
	if drained != nil {
		<-drained
	}
	for a := range s.spaces {
		for b := range s.Blocks() {
			s.left(coherency.Agent(a), b, true)
		}
	}
	return errors.Join(s.forgetOnDisk(), s.closeSpaces())
}

// forgetOnDisk takes a durable span out of the data directory, unless the store
// is closing: then it waits there for the next daemon.
func (s *Span) forgetOnDisk() error {
	if !s.durable() || s.store.closing.Load() {
		return nil
	}
	tx := s.store.files.Begin()
	tx.Delete(s.ID)
	if err := tx.Commit(context.Background()); err != nil {
		return s.fail("free", 0, 0, fmt.Errorf("the data directory still has it, and so will the next daemon: %w", err))
	}
	return nil
}

func (s *Span) closeSpaces() error {
	var errs []error
	for _, space := range s.spaces {
		errs = append(errs, space.Close())
	}
	return errors.Join(errs...)
}

// Stat describes a span now.
type Stat struct {
	State   coherency.State
	Version uint64 // commits of the span
	Debt    int    // blocks whose home does not hold their version
	Lost    int    // blocks whose current version is lost
	Unclean int    // blocks a direct writer died on
	Tiers   map[coherency.Tier]TierStat
	// Read and Written are bytes since the daemon began: read by users, and
	// changed by commits. What direct mappings read is not known, and what
	// they store only as the blocks that their releases found changed.
	Read, Written int64
	Direct        int // mappings
	Shadow        int
	Locks         int
	// Unpublished: the span has a name that does not find it, not yet or not
	// any more.
	Unpublished bool
	LastErr     error // why a debt could not be paid
}

// TierStat is one tier's share of a span, in blocks but for Bytes.
type TierStat struct {
	Current, Stale int   // held at the current version, or at an older one
	Bytes          int64 // of both
	// Lowest and Highest are the versions of the blocks held, the least and the
	// greatest: each block counts its own. 0: never written.
	Lowest, Highest uint64
	Dirty           int // current here, and home has yet to be given them
	Debt            int // at home only: blocks whose version another tier has and home has not
	Pinned          int // kept here by advice or a mapping
}

// statTogether is how many blocks Stat looks at before it lets others use the
// span.
const statTogether = 4096

// Stat describes the span now. Its cost grows with the number of blocks, which
// in a large span are not all of one moment.
func (s *Span) Stat() (Stat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return Stat{}, s.fail("stat", 0, 0, ErrFreed)
	}
	dir, err := s.directory()
	if err != nil {
		return Stat{}, s.fail("stat", 0, 0, err)
	}
	st := Stat{
		State:   dir.SpanState(),
		Version: s.version,
		Tiers:   make(map[coherency.Tier]TierStat),
		Read:    s.read.Load(),
		Written: s.written,
		Direct:  len(s.direct),
		Shadow:  len(s.shadows),
		Locks:   len(s.locks.held),
		LastErr: s.lastErr,

		Unpublished: s.Name != "" && !s.published,
	}
	home := dir.Home()
	tiers := make([]TierStat, len(s.store.agents)) // by agent
	for b := range s.Blocks() {
		info := dir.Block(b)
		debt := info.Debt && !s.swapped(info)
		st.Debt += count(debt)
		st.Lost += count(info.Lost)
		st.Unclean += count(info.Unclean)
		tiers[home].Debt += count(debt)
		for a := range tiers {
			tiers[a].add(info.Replicas[a], debt, s.blockLen(b))
		}
		if b%statTogether == statTogether-1 {
			s.mu.Unlock()
			s.mu.Lock()
			if s.freed {
				return Stat{}, s.fail("stat", 0, 0, ErrFreed)
			}
		}
	}
	for a, ts := range tiers {
		if ts != (TierStat{}) {
			st.Tiers[s.store.agents[a].Tier] = ts
		}
	}
	return st, nil
}

// add counts one block of size bytes, of which the tier has copy r, if any. Debt
// says that home is owed the block's version.
func (ts *TierStat) add(r coherency.ReplicaInfo, debt bool, size int64) {
	ts.Pinned += count(r.Pinned)
	if !r.Held {
		return
	}
	if ts.Current+ts.Stale == 0 {
		ts.Lowest = r.Version
	}
	ts.Lowest, ts.Highest = min(ts.Lowest, r.Version), max(ts.Highest, r.Version)
	current := r.State != coherency.Invalid
	ts.Current += count(current)
	ts.Stale += count(!current)
	ts.Bytes += size
	ts.Dirty += count(current && debt)
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// State returns the two-sided state of the span: RAM against the GPU.
func (s *Span) State() (coherency.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return 0, s.fail("state", 0, 0, ErrFreed)
	}
	dir, err := s.directory()
	if err != nil {
		return 0, s.fail("state", 0, 0, err)
	}
	return dir.SpanState(), nil
}

// directory returns the span's directory, one made for the occasion if nobody
// has used the span yet: to list a hundred thousand spans must not rouse them
// all. The caller holds mu.
func (s *Span) directory() (*coherency.Manager, error) {
	if s.dir != nil {
		return s.dir, nil
	}
	return s.recall()
}

// swapped reports whether a block that belongs in RAM had to leave it for Disk,
// where it is as safe: that is no debt.
func (s *Span) swapped(info coherency.BlockInfo) bool {
	return s.Home == coherency.Host && info.Holders.Has(coherency.Disk)
}
