// SPDX-License-Identifier: Apache-2.0

package span

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/residency"
	"github.com/memspan/memspan/tier"
)

// A place is a block of a span.
type place struct {
	span  *Span
	block int
}

// residents are the blocks that have memory on one tier and may be asked to
// give it up for others.
type residents struct {
	entry sync.RWMutex // held for reading from when a block is given memory until the queue has it

	mu    sync.Mutex
	queue *residency.Queue[place]
}

// candidates is how many blocks are looked at together for one whose copy is
// clean: writing back takes longer than looking.
const candidates = 16

// mayLeave reports whether blocks of the span can give up their memory on a
// tier: whether there is another place where they belong, or can be put.
func (s *Span) mayLeave(a coherency.Agent) bool {
	switch {
	case a == s.store.disk:
		return false
	case a == hostAgent:
		return s.store.disk != coherency.NoAgent
	}
	return s.Home != s.store.agents[a].Tier
}

// used notes that block b's memory on a tier is wanted.
func (s *Span) used(a coherency.Agent, b int) {
	if !s.mayLeave(a) {
		return
	}
	r := &s.store.residents[a]
	r.mu.Lock()
	r.queue.Use(place{s, b})
	r.mu.Unlock()
}

// left notes that block b has no memory on a tier any more; for ever, if the
// span goes.
func (s *Span) left(a coherency.Agent, b int, forever bool) {
	if !s.mayLeave(a) {
		return
	}
	r := &s.store.residents[a]
	r.mu.Lock()
	defer r.mu.Unlock()
	if forever {
		r.queue.Forget(place{s, b})
	} else {
		r.queue.Remove(place{s, b})
	}
}

// wanted reports whether a block that has no memory on a tier had some not long
// ago.
func (s *Span) wanted(a coherency.Agent, b int) bool {
	r := &s.store.residents[a]
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queue.Recent(place{s, b})
}

// reserve takes memory for block b on a tier. If the tier is full, blocks that
// are not wanted there leave. The caller holds the block's lock.
func (s *Span) reserve(ctx context.Context, a coherency.Agent, b int) error {
	err := s.enter(ctx, a, b)
	for errors.Is(err, tier.ErrBudget) {
		if rerr := s.store.makeRoom(ctx, a); rerr != nil {
			return fmt.Errorf("%w; %w", err, rerr)
		}
		err = s.enter(ctx, a, b)
	}
	return err
}

// enter is one attempt of reserve.
func (s *Span) enter(ctx context.Context, a coherency.Agent, b int) error {
	entry := &s.store.residents[a].entry
	entry.RLock()
	defer entry.RUnlock()
	err := s.spaces[a].Reserve(ctx, b)
	if err == nil {
		s.used(a, b)
	}
	return err
}

// roomDepth finds in a context how many tiers must make room for this one.
type roomDepth struct{}

// roomPatience is how long a tier is waited for in which every block that could
// leave is in use: whoever uses it may be waiting for room himself.
const roomPatience = 5 * time.Second

// Why a tier that is full stays so.
var (
	errNoRoom = errors.New("and nothing there can make room: it is pinned or belongs there")
	errInUse  = errors.New("and what could make room is in use")
)

// makeRoom evicts a block from a tier: of the coldest few one whose bytes
// others have, or else the coldest, after writing it back. It waits for nobody
// else's block, as the caller holds one.
func (st *Store) makeRoom(ctx context.Context, a coherency.Agent) error {
	depth, _ := ctx.Value(roomDepth{}).(int)
	if depth > len(st.tiers) { // tiers whose blocks can go to each other alone, all of them full
		return errNoRoom
	}
	ctx = context.WithValue(ctx, roomDepth{}, depth+1)
	deadline := time.Now().Add(roomPatience)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		gone, err := st.evictOne(ctx, a, candidates)
		if !gone && !errors.Is(err, errInUse) {
			// What took the last room may not have been in the queue yet, and
			// others who look for room turn the queue meanwhile.
			entry := &st.residents[a].entry
			entry.Lock()
			//lint:ignore SA2001 that nobody is between is all that is wanted
			entry.Unlock()
			gone, err = st.evictOne(ctx, a, math.MaxInt)
		}
		if gone {
			return nil
		}
		if !errors.Is(err, errInUse) || time.Now().After(deadline) {
			return cmp.Or(err, errNoRoom)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// evictOne is one attempt of makeRoom that looks at so many blocks together. The
// error is why the block that was looked at last could not leave; errInUse if
// any might in a moment.
func (st *Store) evictOne(ctx context.Context, a coherency.Agent, together int) (gone bool, failed error) {
	r := &st.residents[a]
	r.mu.Lock()
	rest := r.queue.Len()
	r.mu.Unlock()
	for rest > 0 {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		r.mu.Lock()
		cold := slices.Clone(r.queue.Victims(min(rest, together)))
		r.mu.Unlock()
		if len(cold) == 0 {
			break
		}
		rest -= len(cold)
		for _, clean := range []bool{true, false} {
			for _, p := range cold {
				gone, err := p.span.leave(ctx, p.block, a, clean)
				if gone {
					return true, nil
				}
				if err != nil && !errors.Is(failed, errInUse) {
					failed = err
				}
			}
		}
	}
	return false, failed
}

// leave gives up block b's memory on a tier, unless somebody uses the block or
// wants it there. If clean it does so only if nothing has to be written back.
func (s *Span) leave(ctx context.Context, b int, a coherency.Agent, clean bool) (gone bool, err error) {
	if !s.tryLockBlock(b) {
		return false, errInUse
	}
	defer s.unlockBlock(b, true)
	s.mu.Lock()
	safe := s.dir.Holders(b)&^coherency.AgentsOf(a) != 0
	fromHome := a == hostAgent && s.Home == coherency.Host
	if fromHome { // what belongs in RAM must not depend on a device alone
		safe = s.dir.Valid(b, s.store.disk)
	}
	needed := s.dir.Valid(b, a) && s.dir.Version(b) > 0 && !safe
	exposed := a == hostAgent && (s.exposed(b) || s.borrowed)
	s.mu.Unlock()
	if exposed || clean && needed {
		return false, nil
	}
	if fromHome && needed {
		err = s.fetch(ctx, b, s.store.disk)
	}
	if err == nil {
		err = s.evict(ctx, b, a)
	}
	if err != nil {
		switch {
		case errors.Is(err, coherency.ErrPinned):
			err = nil
		case errors.Is(err, coherency.ErrBusy):
			err = errInUse
		}
		return false, err
	}
	s.drop(a, b)
	return true, nil
}

// drop gives back block b's memory on a tier, which holds no copy of it any
// more.
func (s *Span) drop(a coherency.Agent, b int) {
	s.spaces[a].Drop(b)
	s.left(a, b, false)
}
