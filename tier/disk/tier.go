// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/filelock"
	"github.com/memspan/memspan/tier"
)

// Config says which directory a Tier has.
type Config struct {
	Dir    string // made, for this user only, if there is none
	Budget int64  // bytes of blocks; 0: what the file system has
	Logger *slog.Logger
}

// A Tier is the spans of one data directory. It implements tier.Tier. Its
// methods may be called concurrently.
type Tier struct {
	dirName string
	dir     directory
	lock    interface{ Close() error }
	budget  int64
	log     *slog.Logger
	store   ID
	stamp   atomic.Uint64
	failed  atomic.Pointer[error]
	buffers sync.Pool
	pages   sync.Pool
	slots   slotFile

	syncTurn chan struct{} // held by who syncs the file of slots
	logTurn  chan struct{} // held by who writes to the log

	// In the log's turn only:
	tail         *logFile
	batch        []byte
	checkpointAt int64 // when the log has grown to here

	covered uint64 // the newest index has all up to here; of the only goroutine that makes them

	queueMu sync.Mutex
	queue   []*commit

	mu            sync.RWMutex // guards what follows
	state         state
	logs          map[uint64]*logFile
	staged        int64 // bytes counted for blocks that were staged and have no contents
	stagedPatches int64
	syncsBegun    uint64

	wake      chan struct{} // one slot
	stop      context.CancelFunc
	work      sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

var _ tier.Tier = (*Tier)(nil)

// Open opens the tier of a directory, which it makes if there is none, and brings
// it to the state of the last Commit. It fails with ErrInUse if another process
// has the directory, ErrFormat, or tier.ErrCorrupt if what says where the blocks
// are is damaged. Damage of blocks is found when they are read, or by Check.
// Close ends the tier. The context bounds opening only.
func Open(ctx context.Context, cfg Config) (*Tier, error) {
	t, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("tier/disk: open %s: %w", cfg.Dir, err)
	}
	return t, nil
}

func open(ctx context.Context, cfg Config) (*Tier, error) {
	if cfg.Dir == "" {
		return nil, errors.New("no directory is named")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDirectory(cfg.Dir)
	if err != nil {
		return nil, err
	}
	t, err := openDirectory(ctx, realDirectory(cfg.Dir), cfg)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	t.lock = lock
	return t, nil
}

// lockDirectory takes the directory's lock. The file has the holder's number,
// for the errors of others.
func lockDirectory(dir string) (*filelock.Lock, error) {
	path := filepath.Join(dir, lockName)
	lock, err := filelock.Try(path)
	if errors.Is(err, filelock.ErrHeld) {
		pid, _ := os.ReadFile(path)
		return nil, fmt.Errorf("%w by process %s: end it, or use another directory", ErrInUse, cmp.Or(strings.TrimSpace(string(pid)), "unknown"))
	}
	if errors.Is(err, os.ErrPermission) || errors.Is(err, errReadOnly) {
		return nil, fmt.Errorf("the directory must be writable: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// openDirectory is open for a directory that nobody else uses.
func openDirectory(ctx context.Context, dir directory, cfg Config) (_ *Tier, err error) {
	t := newTier(dir, cfg)
	defer func() {
		if err != nil {
			err = errors.Join(err, t.closeFiles())
		}
	}()
	if err := t.recover(ctx); err != nil {
		return nil, err
	}
	keeping, stop := context.WithCancel(context.Background())
	t.stop = stop
	t.work.Go(func() { t.keep(keeping) })
	return t, nil
}

// newTier returns a tier that knows nothing of its directory yet.
func newTier(dir directory, cfg Config) *Tier {
	t := &Tier{
		dirName:  cfg.Dir,
		dir:      dir,
		budget:   cfg.Budget,
		log:      cfg.Logger,
		syncTurn: make(chan struct{}, 1),
		logTurn:  make(chan struct{}, 1),
		logs:     make(map[uint64]*logFile),
		wake:     make(chan struct{}, 1),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	return t
}

// keep makes checkpoints until ctx ends.
func (t *Tier) keep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		}
		if err := t.checkpoint(ctx); err != nil && ctx.Err() == nil {
			t.log.Error("the disk tier's log could not be shortened", "dir", t.dirName, "err", err)
			t.logTurn <- struct{}{}
			t.checkpointAt = t.tail.tail + leastLog // not with every commit
			<-t.logTurn
		}
	}
}

// Close makes a checkpoint, so that the next Open has little to do, and gives the
// directory back. No other call may be under way. It is idempotent.
func (t *Tier) Close() error {
	t.closeOnce.Do(func() {
		t.stop()
		t.work.Wait()
		if t.Err() == nil && t.covered != t.state.seq {
			t.closeErr = t.checkpoint(context.Background())
		}
		closed := errClosed
		t.failed.CompareAndSwap(nil, &closed)
		t.closeErr = errors.Join(t.closeErr, t.closeFiles())
		if t.lock != nil {
			t.closeErr = errors.Join(t.closeErr, t.lock.Close())
		}
	})
	return t.closeErr
}

func (t *Tier) closeFiles() error {
	var errs []error
	for _, l := range t.logs {
		errs = append(errs, l.f.Close())
	}
	if t.slots.f != nil {
		errs = append(errs, t.slots.f.Close())
	}
	return errors.Join(errs...)
}

// Kind returns coherency.Disk.
func (t *Tier) Kind() coherency.Tier { return coherency.Disk }

// Usage returns what blocks take that have contents, are being staged, or were
// reserved in ephemeral spaces. It leaves out headers and the log.
func (t *Tier) Usage() tier.Usage {
	t.mu.RLock()
	defer t.mu.RUnlock()
	used := t.state.used + t.staged
	return tier.Usage{Used: used, Held: used, Budget: t.budget}
}

// Open makes an ephemeral space of size bytes: nothing of it survives a restart.
func (t *Tier) Open(_ context.Context, name string, size int64, _ tier.Placement) (tier.Space, error) {
	if size <= 0 || size > maxSize {
		return nil, fmt.Errorf("tier/disk: open %q: size %d is not within 1 and %d", name, size, int64(maxSize))
	}
	sp := newSpanState(Record{Name: name, Size: size})
	sp.ephemeral = true
	return &Space{t: t, name: name, sp: sp}, nil
}

// Recovered returns the published durable spans that Open found, oldest first.
// It must be called before any of them is changed.
func (t *Tier) Recovered() []Record {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var recs []Record
	for _, sp := range t.state.spans {
		if sp.known {
			recs = append(recs, sp.rec)
		}
	}
	slices.SortFunc(recs, func(a, b Record) int {
		return cmp.Or(a.Created.Compare(b.Created), slices.Compare(a.ID[:], b.ID[:]))
	})
	return recs
}

// Epoch returns the highest epoch that a Tx has recorded.
func (t *Tier) Epoch() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.state.epoch
}

// Durable returns the space of a recovered span, or of a new one, of which
// nothing is durable before a Tx with its Set is. There may be one at a time.
func (t *Tier) Durable(rec Record) (*Space, error) {
	fail := func(err error) (*Space, error) {
		return nil, fmt.Errorf("tier/disk: durable span %q: %w", rec.label(), err)
	}
	if err := rec.check(); err != nil {
		return fail(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	sp := t.state.spans[rec.ID]
	switch {
	case sp == nil:
		sp = newSpanState(rec)
		t.state.spans[rec.ID] = sp
	case sp.rec.Size != rec.Size:
		return fail(fmt.Errorf("it has %d bytes, not %d", sp.rec.Size, rec.Size))
	case sp.open:
		return fail(fmt.Errorf("id %s: its space is open already", hex.EncodeToString(rec.ID[:])))
	}
	sp.open = true
	return &Space{t: t, name: rec.label(), sp: sp, pending: make(map[int]*Staged)}, nil
}
