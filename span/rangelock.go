// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"slices"
)

// Owner is who holds locks: a session. All of an owner's locks go when it
// does.
type Owner uint64

// LockID names a held lock.
type LockID uint64

// rangeLocks are the locks that users take on byte ranges of a span: any
// number of shared holders of a byte, or one exclusive. Waiters are served in
// order of arrival, so nobody starves.
type rangeLocks struct {
	held      []rangeLock
	queue     []*lockWaiter
	abandoned []extent // an exclusive holder died here
	next      LockID
}

type extent struct{ off, end int64 }

func (e extent) overlaps(o extent) bool { return e.off < o.end && o.off < e.end }

type rangeLock struct {
	extent
	id        LockID
	owner     Owner
	exclusive bool
}

func (l rangeLock) excludes(o rangeLock) bool {
	return (l.exclusive || o.exclusive) && l.overlaps(o.extent)
}

type lockWaiter struct {
	lock      rangeLock
	abandoned bool
	err       error
	ready     chan struct{} // closed when granted, or when err is set
}

// Lock waits until bytes [off, off+n) can be locked for owner. Abandoned tells
// that an exclusive holder of one of them died without unlocking since the
// bytes were last locked: what it was writing may be half done. It fails with
// ErrFreed when the span is freed meanwhile.
func (s *Span) Lock(ctx context.Context, owner Owner, off, n int64, exclusive bool) (id LockID, abandoned bool, err error) {
	if err := s.checkRange(off, n); err != nil {
		return 0, false, s.fail("lock", off, n, err)
	}
	s.mu.Lock()
	if s.freed {
		s.mu.Unlock()
		return 0, false, s.fail("lock", off, n, ErrFreed)
	}
	s.locks.next++
	w := &lockWaiter{
		lock:  rangeLock{extent{off, off + n}, s.locks.next, owner, exclusive},
		ready: make(chan struct{}),
	}
	s.locks.queue = append(s.locks.queue, w)
	s.locks.grant()
	s.mu.Unlock()

	select {
	case <-w.ready:
	case <-ctx.Done():
		s.mu.Lock()
		select {
		case <-w.ready: // granted in the meantime: take it back
			if w.err == nil {
				if w.abandoned { // nobody was told
					s.locks.abandon(w.lock.extent)
				}
				s.locks.drop(func(l rangeLock) bool { return l.id == w.lock.id })
			}
		default:
			s.locks.queue = slices.DeleteFunc(s.locks.queue, func(q *lockWaiter) bool { return q == w })
			s.locks.grant()
		}
		s.mu.Unlock()
		return 0, false, s.fail("lock", off, n, context.Cause(ctx))
	}
	if w.err != nil {
		return 0, false, s.fail("lock", off, n, w.err)
	}
	return w.lock.id, w.abandoned, nil
}

// Unlock releases a lock of owner.
func (s *Span) Unlock(owner Owner, id LockID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.locks.drop(func(l rangeLock) bool { return l.id == id && l.owner == owner }) {
		return s.fail("unlock", 0, 0, ErrNotHeld)
	}
	return nil
}

// UnlockAll releases whatever owner holds. Died tells that the owner did not
// mean to let go: the next to lock its exclusive ranges learns it.
func (s *Span) UnlockAll(owner Owner, died bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.locks.held {
		if l.owner == owner && l.exclusive && died {
			s.locks.abandon(l.extent)
		}
	}
	s.locks.drop(func(l rangeLock) bool { return l.owner == owner })
}

// drop releases the locks that match and serves the queue; it reports whether
// there were any.
func (r *rangeLocks) drop(match func(rangeLock) bool) bool {
	before := len(r.held)
	r.held = slices.DeleteFunc(r.held, match)
	if len(r.held) == before {
		return false
	}
	r.grant()
	return true
}

// grant gives every waiter its lock that no holder and no earlier waiter
// excludes.
func (r *rangeLocks) grant() {
	var blocked []rangeLock
	r.queue = slices.DeleteFunc(r.queue, func(w *lockWaiter) bool {
		excludes := func(l rangeLock) bool { return l.excludes(w.lock) }
		if slices.ContainsFunc(r.held, excludes) || slices.ContainsFunc(blocked, excludes) {
			blocked = append(blocked, w.lock)
			return false
		}
		r.held = append(r.held, w.lock)
		w.abandoned = r.tell(w.lock.extent)
		close(w.ready)
		return true
	})
}

// maxAbandoned bounds the memory of dead holders. Beyond it what lies between
// two abandoned ranges counts as abandoned too.
const maxAbandoned = 256

// abandon notes that an exclusive holder of e died.
func (r *rangeLocks) abandon(e extent) {
	rest := r.abandoned[:0]
	for _, a := range r.abandoned {
		if a.off <= e.end && e.off <= a.end {
			e = extent{min(a.off, e.off), max(a.end, e.end)}
		} else {
			rest = append(rest, a)
		}
	}
	r.abandoned = append(rest, e)
	if len(r.abandoned) > maxAbandoned {
		hull := r.abandoned[0]
		for _, a := range r.abandoned[1:] {
			hull = extent{min(a.off, hull.off), max(a.end, hull.end)}
		}
		r.abandoned = []extent{hull}
	}
}

// tell reports whether e touches abandoned bytes, which it then no longer are.
func (r *rangeLocks) tell(e extent) bool {
	told := false
	var rest []extent
	for _, a := range r.abandoned {
		if !a.overlaps(e) {
			rest = append(rest, a)
			continue
		}
		told = true
		if a.off < e.off {
			rest = append(rest, extent{a.off, e.off})
		}
		if e.end < a.end {
			rest = append(rest, extent{e.end, a.end})
		}
	}
	r.abandoned = rest
	return told
}

// fail ends every wait with err; the span is going away.
func (r *rangeLocks) fail(err error) {
	for _, w := range r.queue {
		w.err = err
		close(w.ready)
	}
	r.queue, r.held = nil, nil
}
