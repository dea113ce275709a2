// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/tier/disk"
)

// Backoff between attempts to pay debts. The first comes after a wait too: what
// is written again meanwhile is written back once.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// saveTogether is how many blocks of a span are written back in one step: their
// locks are held meanwhile.
const saveTogether = 32

// debtors are the spans with copies that are due, oldest debt first.
type debtors struct {
	mu    sync.Mutex
	spans []*Span
	wake  chan struct{} // one slot
}

// owe notes a copy that is due and lets it be tried again in the background.
// The caller holds mu.
func (s *Span) owe(sync coherency.Sync) {
	if s.freed {
		return
	}
	s.due.Queue(sync)
	if s.owing {
		return
	}
	s.owing = true
	d := &s.store.debtors
	d.mu.Lock()
	d.spans = append(d.spans, s)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default: // it is awake already
	}
}

// writeBackLater lets a version of a durable span that Disk has not be written
// there in the background. The caller holds mu.
func (s *Span) writeBackLater(b int, a coherency.Agent, version uint64) {
	if s.unsaved(a) {
		s.owe(coherency.Sync{Block: b, From: a, Target: s.store.disk, Version: version})
	}
}

// payDebts carries out copies that a write policy asks for and that are not made
// yet: those that a tier refused, and those that may come later.
func (st *Store) payDebts(ctx context.Context) {
	d := &st.debtors
	wait, armed := firstRetry, false
	timer := time.NewTimer(wait)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
			// A debt that comes while others wait must not put them off.
			if !armed {
				wait, armed = firstRetry, true
				timer.Reset(wait)
			}
			continue
		case <-timer.C:
		}
		d.mu.Lock()
		spans := d.spans
		d.spans = nil
		d.mu.Unlock()
		failed := false
		for _, s := range spans {
			failed = s.payDue(ctx) || failed
		}
		d.mu.Lock()
		armed = len(d.spans) > 0
		d.mu.Unlock()
		if failed {
			wait = min(2*wait, lastRetry)
		} else {
			wait = firstRetry
		}
		if armed {
			timer.Reset(wait)
		}
	}
}

// payDue makes the copies of the span that are due. It reports whether some
// could not be made; these are due again.
func (s *Span) payDue(ctx context.Context) (failed bool) {
	s.mu.Lock()
	due := s.due.Drain()
	s.owing = false
	s.mu.Unlock()
	var errs []error
	again := func(err error, syncs ...coherency.Sync) {
		errs = append(errs, fmt.Errorf("copy to %s: %w", s.store.agents[syncs[0].Target].Tier, err))
		if errors.Is(err, disk.ErrFailed) {
			return // for good: the debt stands, and the next daemon finds it noted
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range syncs {
			s.owe(d)
		}
	}
	var saves []coherency.Sync
	for _, d := range due {
		if s.disk != nil && d.Target == s.store.disk {
			saves = append(saves, d)
			continue
		}
		if err := s.fetchBlock(ctx, d.Block, d.Target); err != nil {
			again(err, d)
		}
	}
	slices.SortFunc(saves, func(a, b coherency.Sync) int { return a.Block - b.Block })
	for some := range slices.Chunk(saves, saveTogether) {
		blocks := make([]int, len(some))
		for i, d := range some {
			blocks[i] = d.Block
		}
		if err := s.saveBlocks(ctx, blocks); err != nil {
			again(err, some...)
		}
	}
	err := errors.Join(errs...)
	if errors.Is(err, ErrFreed) || len(due) == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastErr = err; err != nil && s.Policy == coherency.WriteBack {
		s.unreported = err
	}
	return err != nil
}

// saveBlocks gives Disk the current versions of blocks, which ascend, all at
// once.
func (s *Span) saveBlocks(ctx context.Context, blocks []int) error {
	unlock, err := s.lockBlocks(ctx, blocks)
	if err != nil {
		return err
	}
	defer unlock()
	list := make([]dirty, len(blocks))
	for i, b := range blocks {
		list[i].block = b
	}
	return s.persist(ctx, list)
}
