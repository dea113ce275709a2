// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/residency"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/tier/host"
)

// hostAgent is RAM's number in every span's directory; the other tiers follow.
const hostAgent coherency.Agent = 0

// Config says what a Store stands on.
type Config struct {
	Host *host.Tier
	// Others are the tiers beside Host and Disk. The store does not close
	// them.
	Others []tier.Tier
	// Disk keeps spans that outlive the daemon, and blocks for which RAM has no
	// room; nil: there is none. The store does not close it.
	Disk *disk.Tier
	// Forget, if set, is called before memory that tiers were given to read
	// or write is unmapped.
	Forget   func(*memfd.Region)
	Staging  int   // how many blocks of staging memory may be out; 0: 64
	MaxSpans int   // 0: 65536
	MaxSize  int64 // of one span, in bytes; 0: 1 TiB
	Logger   *slog.Logger
}

// A Store holds the spans of a daemon. Its methods may be called concurrently.
type Store struct {
	host      *host.Tier
	files     *disk.Tier      // nil: none
	disk      coherency.Agent // its number, or NoAgent
	tiers     []tier.Tier     // by agent
	agents    []coherency.AgentInfo
	residents []residents // by agent
	traffic   []traffic   // by agent
	maxSpans  int
	maxSize   int64
	log       *slog.Logger
	scratch   *scratch // what is received and sent passes through it
	moving    *scratch // what moves between tiers: whoever has some waits for nobody
	epoch     atomic.Uint64
	closing   atomic.Bool
	naming    sync.Mutex // held while names change hands, across the data directory's commit

	mu       sync.RWMutex // guards what follows
	byID     map[ID]*Span
	byName   map[string]*Span // nil values: names of spans being made
	building int              // spans being made

	debtors debtors
	stop    context.CancelFunc
	paying  sync.WaitGroup
}

// ID is a span's name for ever: 128 random bits.
type ID [16]byte

// String returns the id in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// NewStore returns an empty store. Close ends it.
func NewStore(cfg Config) (*Store, error) {
	if cfg.MaxSpans == 0 {
		cfg.MaxSpans = 1 << 16
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = 1 << 40
	}
	if cfg.Staging == 0 {
		cfg.Staging = 64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	scratch, err := newScratch(cfg.Staging, cfg.Forget)
	if err != nil {
		return nil, fmt.Errorf("span: staging memory: %w", err)
	}
	moving, err := newScratch(scratchWarm, cfg.Forget)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("span: staging memory: %w", err), scratch.close())
	}
	st := &Store{
		host:     cfg.Host,
		files:    cfg.Disk,
		disk:     coherency.NoAgent,
		tiers:    append([]tier.Tier{cfg.Host}, cfg.Others...),
		maxSpans: cfg.MaxSpans,
		maxSize:  cfg.MaxSize,
		log:      cfg.Logger,
		scratch:  scratch,
		moving:   moving,
		byID:     make(map[ID]*Span),
		byName:   make(map[string]*Span),
		debtors:  debtors{wake: make(chan struct{}, 1)},
	}
	if cfg.Disk != nil { // last: its copies are read only if no other tier has one
		st.disk = coherency.Agent(len(st.tiers))
		st.tiers = append(st.tiers, cfg.Disk)
	}
	st.traffic = make([]traffic, len(st.tiers))
	for _, t := range st.tiers {
		st.agents = append(st.agents, coherency.AgentInfo{Tier: t.Kind()})
		st.residents = append(st.residents, residents{queue: residency.New[place]()})
	}
	st.recover()
	ctx, stop := context.WithCancel(context.Background())
	st.stop = stop
	st.paying.Go(func() { st.payDebts(ctx) })
	return st, nil
}

// Close frees every span; of durable ones it first gives Disk what it is owed,
// and they stay there. The tiers stay open.
func (st *Store) Close() error {
	st.stop()
	st.paying.Wait()
	var errs []error
	spans := st.List()
	for _, s := range spans {
		if s.durable() {
			errs = append(errs, s.persistAll(context.Background()), s.persistVersion(context.Background()))
		}
	}
	st.closing.Store(true)
	for _, s := range spans {
		errs = append(errs, s.Free())
	}
	return errors.Join(append(errs, st.scratch.close(), st.moving.close())...)
}

// recover finds the spans that the data directory kept. They take little memory
// until somebody uses them.
func (st *Store) recover() {
	if st.files == nil {
		return
	}
	st.epoch.Store(st.files.Epoch())
	for _, rec := range st.files.Recovered() {
		s := &Span{
			Info: Info{
				ID: rec.ID, Name: rec.Name, Size: rec.Size, Tier: rec.Tier, Home: rec.Home,
				Policy: rec.Policy, Placement: rec.Placement, Created: rec.Created,
			},
			store: st, version: rec.Version, published: true, announced: true,
		}
		prefer, err := st.agentOf(rec.Tier)
		if err != nil {
			st.log.Warn("span lives in RAM: this daemon has not the tier it was made for", "span", s.Label(), "tier", rec.Tier)
			prefer = hostAgent
		}
		s.prefer = prefer
		st.byID[s.ID] = s
		st.byName[s.Name] = s
	}
}

// Tiers returns the tiers that spans can live on.
func (st *Store) Tiers() coherency.TierMask {
	var m coherency.TierMask
	for _, a := range st.agents {
		m.Add(a.Tier)
	}
	return m
}

// Usage returns what a tier has taken; ok is false if there is no such tier.
func (st *Store) Usage(kind coherency.Tier) (u tier.Usage, ok bool) {
	a, err := st.agentOf(kind)
	if err != nil {
		return tier.Usage{}, false
	}
	return st.tiers[a].Usage(), true
}

func (st *Store) agentOf(kind coherency.Tier) (coherency.Agent, error) {
	for i, a := range st.agents {
		if a.Tier == kind {
			return coherency.Agent(i), nil
		}
	}
	return coherency.NoAgent, fmt.Errorf("this daemon has no %s tier (it has: %s): %w", kind, st.Tiers(), tier.ErrAbsent)
}

// Info is what never changes about a span.
type Info struct {
	ID        ID
	Name      string         // empty: freed with its last user
	Size      int64          // bytes
	Tier      coherency.Tier // where writes go, until Span.Prefer says otherwise
	Home      coherency.Tier
	Policy    coherency.WritePolicy
	Placement tier.Placement
	Created   time.Time
}

// Alloc makes a span that reads as zeros, with one user: see Retain. ID and
// Created of info are set by the store. The tier's memory is taken now, so that
// a later write cannot fail for want of it; other tiers' as copies are made
// there. A span with a name is published: Open finds it by that.
func (st *Store) Alloc(ctx context.Context, info Info) (*Span, error) {
	return st.alloc(ctx, info, info.Name != "", nil)
}

// Draft is Alloc, but a span with a name is not found by it, and goes with its
// last user, until it is published.
func (st *Store) Draft(ctx context.Context, info Info) (*Span, error) {
	return st.alloc(ctx, info, false, nil)
}

// alloc is Alloc and Draft, for a span whose memory in RAM is that of a file, if
// that is not nil.
func (st *Store) alloc(ctx context.Context, info Info, published bool, memory *os.File) (*Span, error) {
	fail := func(err error) (*Span, error) {
		return nil, &Error{Op: "alloc", Span: info.Name, Err: err}
	}
	if err := checkName(info.Name); err != nil {
		return fail(err)
	}
	if info.Size <= 0 || info.Size > st.maxSize {
		return fail(fmt.Errorf("%w: size %d is not within 1 and %d bytes", ErrInvalid, info.Size, st.maxSize))
	}
	if info.Policy > coherency.WriteAll {
		return fail(fmt.Errorf("%w: unknown policy %v", ErrInvalid, info.Policy))
	}
	prefer, err := st.agentOf(info.Tier)
	if err != nil {
		return fail(err)
	}
	home, err := st.agentOf(info.Home)
	if err != nil {
		return fail(err)
	}
	rand.Read(info.ID[:])
	info.Created = time.Now()
	s := &Span{Info: info, store: st, prefer: prefer, published: published, borrowed: memory != nil, busy: make(map[int]*blockLock)}
	if published && info.durable() { // see publish
		st.naming.Lock()
		defer st.naming.Unlock()
	}
	if err := st.reserve(s); err != nil {
		return fail(err)
	}
	err = s.build(ctx, home, memory)
	if err == nil {
		s.announced = published
		if err = s.keep(ctx); err != nil {
			err = errors.Join(err, s.closeSpaces())
		}
	}
	st.built(s, err == nil)
	if err != nil {
		return fail(err)
	}
	return s, nil
}

// List returns all spans, oldest first.
func (st *Store) List() []*Span {
	st.mu.RLock()
	defer st.mu.RUnlock()
	list := make([]*Span, 0, len(st.byID))
	for _, s := range st.byID {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *Span) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return slices.Compare(a.ID[:], b.ID[:])
	})
	return list
}

// Stats returns both of the document's statistics over all spans.
func (st *Store) Stats() (coherency.Stats, coherency.TieredStats) {
	var stats coherency.Stats
	var tiered coherency.TieredStats
	for _, s := range st.List() {
		s.mu.Lock()
		if dir, err := s.directory(); err == nil && !s.freed {
			one, blocks := dir.Stats()
			stats.Add(one)
			tiered.Add(blocks)
		}
		s.mu.Unlock()
	}
	tiered.Epoch = st.epoch.Load()
	return stats, tiered
}

// Lose tells every span that a tier's contents are gone. The tier calls it,
// through its owner, before it works again.
func (st *Store) Lose(kind coherency.Tier) {
	a, err := st.agentOf(kind)
	if err != nil {
		return
	}
	for _, s := range st.List() {
		s.noteLoss(context.Background(), a, 0, s.Blocks())
		s.mu.Lock()
		lost := 0
		if !s.freed && s.dir != nil {
			lost = s.dir.Lose(a)
		}
		s.mu.Unlock()
		if lost > 0 {
			st.log.Error("span lost data", "span", s.Label(), "tier", kind, "blocks", lost)
		}
	}
}

// Sync is a barrier over all spans: when it returns, every version committed
// before is held by its home, and no copy is stale. It returns the number of
// the epoch that ended.
func (st *Store) Sync(ctx context.Context) (epoch uint64, err error) {
	var errs []error
	for _, s := range st.List() {
		if err := s.refresh(ctx); err != nil && !errors.Is(err, ErrFreed) {
			errs = append(errs, s.fail("sync", 0, 0, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return st.epoch.Load(), err
	}
	return st.endEpoch(ctx)
}

// endEpoch counts a barrier. The count outlives the daemon.
func (st *Store) endEpoch(ctx context.Context) (uint64, error) {
	epoch := st.epoch.Add(1)
	if st.files == nil {
		return epoch, nil
	}
	tx := st.files.Begin()
	tx.Epoch(epoch)
	if err := tx.Commit(ctx); err != nil {
		return epoch, fmt.Errorf("note the end of epoch %d: %w", epoch, err)
	}
	return epoch, nil
}

// Scratch returns BlockSize bytes of staging memory that every tier can reach,
// with undefined contents. It waits while too much is out. The caller gives it
// back with PutScratch, the whole of it.
func (st *Store) Scratch(ctx context.Context) (tier.Memory, error) { return st.scratch.get(ctx) }

// PutScratch takes back what Scratch returned.
func (st *Store) PutScratch(m tier.Memory) { st.scratch.put(m) }
