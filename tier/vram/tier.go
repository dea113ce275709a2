// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// stallLimit is how long a worker may owe answers without giving one. A call
// moves at most a block, or makes a slab, and the worker itself gives its
// device half of it.
const stallLimit = 20 * time.Second

// A Tier is the VRAM tier of one device; it implements [tier.Tier]. Its methods
// may be called concurrently.
type Tier struct {
	cfg    Config
	log    *slog.Logger
	stall  time.Duration
	count  counters
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   chan struct{} // closed when the tier's own goroutine has ended

	mu     sync.Mutex
	cur    *generation // nil while there is no worker
	why    error       // then, why not
	opened openReply   // of the latest worker
	budget int64
}

// Start starts a worker and returns the tier when it has opened the device.
// It fails with [tier.ErrAbsent] where there is no Vulkan or no such device.
// Ending ctx stops Start, not the tier.
func Start(ctx context.Context, cfg Config) (*Tier, error) { return start(ctx, cfg, stallLimit) }

func start(ctx context.Context, cfg Config, stall time.Duration) (*Tier, error) {
	if cfg.Budget != 0 && cfg.Budget < slabUnit {
		return nil, fmt.Errorf("vram: a budget of %d bytes holds no span: memory is taken in pieces of %d bytes at least", cfg.Budget, slabUnit)
	}
	t := &Tier{cfg: cfg, stall: stall, done: make(chan struct{})}
	var err error
	if t.cfg.Command, t.log, err = cfg.worker(); err != nil {
		return nil, err
	}
	first, err := t.startWorker(ctx, 1)
	if err != nil {
		return nil, err
	}
	t.cur, t.budget = first, cfg.Budget
	if t.budget == 0 {
		local := t.opened.Device.Types[t.opened.Kinds[t.opened.Place[tier.DeviceLocal]].Type]
		t.budget = t.opened.Device.Heaps[local.Heap].Size / 10 * 8
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	go t.supervise(first)
	return t, nil
}

// worker returns the argv and the logger that cfg asks for.
func (cfg Config) worker() ([]string, *slog.Logger, error) {
	if errBuild != nil {
		return nil, nil, errBuild
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Command) > 0 {
		return cfg.Command, log, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("vram: find the program to start as worker: %w", err)
	}
	return []string{self, "worker"}, log, nil
}

// Probe starts a worker that lists the devices it sees, and ends it again. It
// fails with [tier.ErrAbsent], and with what is missing, where there is no
// Vulkan.
func Probe(ctx context.Context, cfg Config) ([]DeviceInfo, error) {
	command, log, err := cfg.worker()
	if err != nil {
		return nil, err
	}
	l, err := startLink(command, stallLimit, new(counters), log)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var devices []DeviceInfo
	if err := l.ask(ctx, opProbe, nil, &devices); err != nil {
		return nil, fmt.Errorf("vram: list devices: %w", err)
	}
	return devices, nil
}

// startWorker starts the worker of a generation and has it open the device.
func (t *Tier) startWorker(ctx context.Context, number uint32) (*generation, error) {
	l, err := startLink(t.cfg.Command, t.stall, &t.count, t.log)
	if err != nil {
		return nil, err
	}
	question := openRequest{t.cfg.Device, t.cfg.HideHostVisible, t.cfg.HideHostCoherent}
	var opened openReply
	if err := l.ask(ctx, opOpen, question, &opened); err != nil {
		l.close()
		return nil, fmt.Errorf("vram: open device %q: %w", t.cfg.Device, err)
	}
	level := slog.LevelDebug
	if !opened.Full {
		level = slog.LevelWarn
	}
	t.log.Log(ctx, level, "vram worker ready", "pid", l.pid(), "device", opened.Device.Name, "confined", opened.Confined)
	t.mu.Lock()
	t.opened = opened
	t.mu.Unlock()
	return newGeneration(t, l, number, opened), nil
}

// supervise replaces dead workers until the tier is closed.
func (t *Tier) supervise(g *generation) {
	defer close(t.done)
	for {
		select {
		case <-g.dead:
		case <-t.ctx.Done():
			g.close()
			t.mu.Lock()
			t.cur = nil
			t.mu.Unlock()
			return
		}
		t.mu.Lock()
		t.cur, t.why = nil, g.ended
		t.mu.Unlock()
		t.log.Warn("vram worker lost", "err", g.ended)
		if t.cfg.Lost != nil {
			t.cfg.Lost()
		}
		if g = t.replace(g.number + 1); g == nil {
			return
		}
	}
}

// replace starts the next generation, again and again until it succeeds or the
// tier is closed: then it returns nil.
func (t *Tier) replace(number uint32) *generation {
	const most = 30 * time.Second
	for delay := 250 * time.Millisecond; ; delay = min(2*delay, most) {
		g, err := t.startWorker(t.ctx, number)
		if err == nil {
			t.mu.Lock()
			t.cur, t.why = g, nil
			t.mu.Unlock()
			return g
		}
		if t.ctx.Err() == nil {
			t.log.Error("vram worker does not start", "err", err, "retry", delay)
		}
		t.mu.Lock()
		t.why = err
		t.mu.Unlock()
		select {
		case <-time.After(delay):
		case <-t.ctx.Done():
			return nil
		}
	}
}

// generation returns the current worker, or ErrAbsent and why there is none.
func (t *Tier) generation() (*generation, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.ctx.Err() != nil:
		return nil, fmt.Errorf("tier is closed: %w", os.ErrClosed)
	case t.cur == nil:
		return nil, fmt.Errorf("%w for now, a new worker is being started: %w", tier.ErrAbsent, t.why)
	}
	return t.cur, nil
}

// Kind returns coherency.VRAM.
func (t *Tier) Kind() coherency.Tier { return coherency.VRAM }

// Device returns the device in use.
func (t *Tier) Device() DeviceInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.opened.Device
}

// WorkerPID returns the process id of the worker, 0 while there is none.
func (t *Tier) WorkerPID() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cur == nil {
		return 0
	}
	return t.cur.pid()
}

// Usage returns the bytes of the slabs taken from the device, and the budget.
// A slab that has become empty is kept for the next block, one of each kind.
func (t *Tier) Usage() tier.Usage {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := tier.Usage{Budget: t.budget}
	if t.cur != nil {
		u.Used, _, _ = t.cur.usage()
	}
	return u
}

// Stats returns what the tier has done so far.
func (t *Tier) Stats() Stats {
	s := Stats{
		Mapped: t.count.mapped.Load(), Staged: t.count.staged.Load(), Device: t.count.device.Load(),
		Submits: t.count.submits.Load(), Flushes: t.count.flushes.Load(), Workers: t.count.workers.Load(),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cur != nil {
		_, s.Slabs, s.Slots = t.cur.usage()
	}
	return s
}

// Forget lets the worker unmap a region, which must be done before the region
// is closed and with no call under way that uses it. A region that no call used
// is ignored.
func (t *Tier) Forget(r *memfd.Region) {
	if g, err := t.generation(); err == nil {
		g.forget(r)
	}
}

// Close ends the worker, and with it all that the tier holds. It is idempotent
// and must not be called from Config.Lost.
func (t *Tier) Close() error {
	t.cancel()
	<-t.done
	return nil
}
