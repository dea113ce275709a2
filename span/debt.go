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

// maxTogether is how many blocks of a span are written back in one step: their
// locks are held meanwhile.
const maxTogether = 32

// debtors are the spans with copies that are due.
type debtors struct {
	mu    sync.Mutex
	spans []debtor
	wake  chan struct{} // one slot
}

// A debtor is a span and when it is tried next.
type debtor struct {
	span *Span
	at   time.Time
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
	wait := min(firstRetry<<min(s.failures, 10), lastRetry)
	d := &s.store.debtors
	d.mu.Lock()
	d.spans = append(d.spans, debtor{s, time.Now().Add(wait)})
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
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		for _, s := range d.ready(time.Now()) {
			s.payDue(ctx)
		}
		if next, ok := d.next(); ok {
			timer.Reset(time.Until(next))
		}
	}
}

// ready takes the spans whose time has come.
func (d *debtors) ready(now time.Time) (spans []*Span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spans = slices.DeleteFunc(d.spans, func(o debtor) bool {
		come := !o.at.After(now)
		if come {
			spans = append(spans, o.span)
		}
		return come
	})
	return spans
}

// next returns when the next span is to be tried, if there is one.
func (d *debtors) next() (at time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, o := range d.spans {
		if i == 0 || o.at.Before(at) {
			at = o.at
		}
	}
	return at, len(d.spans) > 0
}

// payDue makes the copies of the span that are due. Those that could not be made
// are due again, after twice the time.
func (s *Span) payDue(ctx context.Context) {
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
		if len(errs) == 1 {
			s.failures++
		}
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
	for some := range slices.Chunk(saves, maxTogether) {
		blocks := make([]int, len(some))
		for i, d := range some {
			blocks[i] = d.Block
		}
		if failed, err := s.saveBlocks(ctx, blocks); err != nil {
			again(err, slices.DeleteFunc(slices.Clone(some), func(d coherency.Sync) bool {
				return !slices.Contains(failed, d.Block)
			})...)
		}
	}
	err := errors.Join(errs...)
	if errors.Is(err, ErrFreed) || len(due) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
	if err == nil {
		s.failures = 0
	}
	if err != nil && s.Policy == coherency.WriteBack {
		s.unreported = err
	}
}

// saveBlocks gives Disk the current versions of blocks, which ascend: all at
// once, or if that fails one by one. It returns those that could not be saved, and
// why.
func (s *Span) saveBlocks(ctx context.Context, blocks []int) (failed []int, err error) {
	if err := s.saveTogether(ctx, blocks); err == nil || len(blocks) == 1 || errors.Is(err, ErrFreed) || s.writable() != nil {
		return blocks, err
	}
	var errs []error
	for _, b := range blocks {
		if err := s.saveTogether(ctx, []int{b}); err != nil {
			failed = append(failed, b)
			errs = append(errs, err)
		}
	}
	return failed, errors.Join(errs...)
}

func (s *Span) saveTogether(ctx context.Context, blocks []int) error {
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
