// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/memlimit"
)

// A Config says how a Store works.
type Config struct {
	Budget int64        // bytes of RAM that all surfaces together may take; 0: what the system allows
	Logger *slog.Logger // nil: none
}

const (
	maxSurfaces = 1 << 16 // in a store
	maxGone     = 4096    // surfaces of which a store remembers how they ended
)

// A Store keeps surfaces in memory. Its methods may be called concurrently.
type Store struct {
	log   *slog.Logger
	room  room
	zeros Zeros
	slots chan struct{} // an element for each chunk being hashed behind an Append
	tries tries         // of proofs that were wrong
	dummy Ticket        // takes the place of a surface that there is not

	ops  sync.WaitGroup // operations under way, and their hashing
	kick chan struct{}  // a surface that expires was added
	stop chan struct{}
	done chan struct{} // closed by the goroutine of expire

	mu     sync.Mutex
	closed bool
	live   map[ID]*Exposure
	gone   map[ID]tombstone
	order  []ID // of gone, oldest first
}

// A tombstone is what is left of a surface that has ended.
type tombstone struct {
	ticket Ticket // who can prove that he has it is told the reason
	reason error
	stat   Stat
}

// NewStore returns an empty store. Close it.
func NewStore(config Config) *Store {
	s := &Store{
		log:   config.Logger,
		room:  room{budget: config.Budget, memory: memlimit.System, asked: recheck},
		slots: make(chan struct{}, runtime.GOMAXPROCS(0)),
		dummy: Ticket{ID: NewID(), Secret: newSecret()},
		kick:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
		live:  make(map[ID]*Exposure),
		gone:  make(map[ID]tombstone),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	go s.expire()
	return s
}

// Close ends all surfaces: who waits gets ErrClosed, openings read no more, and
// operations under way fail. It waits for these; memory is given back when the last
// read that is under way returns. It is idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	var all []*Exposure
	for _, e := range s.live {
		all = append(all, e)
	}
	s.mu.Unlock()
	for _, e := range all {
		s.end(e, Revoked, ErrClosed)
	}
	if first {
		close(s.stop)
	}
	<-s.done
	s.ops.Wait()
	return nil
}

// begin counts an operation that Close waits for; the caller calls s.ops.Done.
func (s *Store) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.ops.Add(1)
	return nil
}

// add takes e into the store, which holds it from then on.
func (s *Store) add(e *Exposure) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.live[e.header.ID] != nil:
		return ErrExists
	case len(s.live) >= maxSurfaces:
		return fmt.Errorf("%d surfaces: %w", len(s.live), ErrLimit)
	}
	s.live[e.header.ID] = e
	s.forget(e.header.ID) // a replica that was here before
	if !e.header.Expires.IsZero() {
		select {
		case s.kick <- struct{}{}:
		default: // it will look anyway
		}
	}
	return nil
}

// forget drops a tombstone; s.mu is held.
func (s *Store) forget(id ID) {
	if _, ok := s.gone[id]; ok {
		delete(s.gone, id)
		s.order = slices.DeleteFunc(s.order, func(o ID) bool { return o == id })
	}
}

// end ends e, once, for a reason that who proves to have its ticket is told.
func (s *Store) end(e *Exposure, state State, reason error) bool {
	id := e.header.ID
	s.mu.Lock() // so that what is live has not ended
	ended := e.end(state, reason)
	if ended && s.live[id] == e {
		delete(s.live, id)
		if len(s.order) == maxGone {
			delete(s.gone, s.order[0])
			s.order = slices.Delete(s.order, 0, 1)
		}
		stat := e.Stat()
		stat.Pullers, stat.Waiting = 0, 0 // from now on
		s.gone[id] = tombstone{e.ticket, reason, stat}
		s.order = append(s.order, id)
	}
	s.mu.Unlock()
	if !ended {
		return false
	}
	s.log.Info("surface ended", "surface", id, "state", state, "reason", reason)
	e.release() // the store's hold
	return true
}

// Lookup returns the surface of that id. It fails with ErrNotFound.
func (s *Store) Lookup(id ID) (*Exposure, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.live[id]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("surface %v: %w", id, ErrNotFound)
}

// Knows reports whether Open has an answer about id: the store has the surface, or
// had it lately and can tell its ticket's holder how it ended. A replica that has
// ended does not count: it can be made again.
func (s *Store) Knows(id ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	stone, gone := s.gone[id]
	return s.live[id] != nil || gone && !stone.stat.Replica
}

// Revoke takes a surface back: nobody opens it any more, and openings read no
// more. Memory that a puller has mapped stays mapped there. It fails with
// ErrNotFound.
func (s *Store) Revoke(id ID) error {
	e, err := s.Lookup(id)
	if err != nil {
		return err
	}
	if !s.end(e, Revoked, ErrRevoked) {
		return fmt.Errorf("surface %v: %w", id, ErrNotFound)
	}
	return nil
}

// List describes the surfaces, and those that failed lately, in the order of creation.
func (s *Store) List() []Stat {
	s.mu.Lock()
	all := make([]*Exposure, 0, len(s.live))
	for _, e := range s.live {
		all = append(all, e)
	}
	var stats []Stat
	for _, id := range s.order {
		if t := s.gone[id]; t.stat.State == Failed {
			stats = append(stats, t.stat)
		}
	}
	s.mu.Unlock()
	for _, e := range all {
		stats = append(stats, e.Stat())
	}
	slices.SortStableFunc(stats, func(a, b Stat) int { return a.Created.Compare(b.Created) })
	return stats
}

// expire ends surfaces whose time is over, until the store is closed.
func (s *Store) expire() {
	defer close(s.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
		case <-timer.C:
		}
		now, next := time.Now(), time.Duration(1<<63-1)
		var over []*Exposure
		s.mu.Lock()
		for _, e := range s.live {
			switch at := e.header.Expires; {
			case at.IsZero():
			case at.After(now):
				next = min(next, at.Sub(now))
			default:
				over = append(over, e)
			}
		}
		s.mu.Unlock()
		for _, e := range over {
			s.end(e, Revoked, ErrExpired)
		}
		timer.Reset(next)
	}
}

// slot waits for room to hash behind an Append.
func (s *Store) slot(ctx context.Context) error {
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
