// SPDX-License-Identifier: Apache-2.0

package span

import "context"

// A blockLock is the lock of one block while somebody uses it: any number of
// readers or one writer. Idle blocks have none.
type blockLock struct {
	readers int
	writer  bool
	writers int           // waiting; new readers queue behind them
	free    chan struct{} // closed when the lock may have become free
	loans   []*loan       // of the readers that lend the block: see Lend
}

func (l *blockLock) idle() bool {
	return l.readers == 0 && !l.writer && l.writers == 0
}

// lockBlock waits for block b. It fails if ctx ends or the span is freed.
func (s *Span) lockBlock(ctx context.Context, b int, write bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	waiting := false
	for {
		l := s.busy[b]
		if l == nil {
			l = s.newBlockLock()
			s.busy[b] = l
		}
		if waiting {
			l.writers--
			waiting = false
		}
		switch {
		case s.freed:
			s.dropBlockLock(b, l)
			s.mu.Unlock()
			return ErrFreed
		case write && l.readers == 0 && !l.writer:
			l.writer = true
			s.mu.Unlock()
			return nil
		case !write && !l.writer && l.writers == 0:
			l.readers++
			s.mu.Unlock()
			return nil
		}
		if write {
			l.writers++
			waiting = true
			l.recall()
		}
		if l.free == nil {
			l.free = make(chan struct{})
		}
		free := l.free
		s.mu.Unlock()
		select {
		case <-free:
			s.mu.Lock()
		case <-ctx.Done():
			s.mu.Lock()
			if waiting {
				l.writers--
				s.wake(b, l)
			}
			s.mu.Unlock()
			return context.Cause(ctx)
		}
	}
}

// tryLockBlock locks block b for writing if nobody uses it or waits for it.
func (s *Span) tryLockBlock(b int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed || s.dir == nil || s.busy[b] != nil {
		return false
	}
	l := s.newBlockLock()
	l.writer = true
	s.busy[b] = l
	return true
}

func (s *Span) unlockBlock(b int, write bool) {
	s.mu.Lock()
	l := s.busy[b]
	if write {
		l.writer = false
	} else {
		l.readers--
	}
	s.wake(b, l)
	s.mu.Unlock()
}

// wake lets the waiters of l look again; the caller holds mu.
func (s *Span) wake(b int, l *blockLock) {
	if l.free != nil && !l.writer {
		close(l.free)
		l.free = nil
	}
	s.dropBlockLock(b, l)
}

// newBlockLock and dropBlockLock recycle locks, so that using a block does not
// allocate in the steady state; the caller holds mu.
func (s *Span) newBlockLock() *blockLock {
	if n := len(s.spare); n > 0 {
		l := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return l
	}
	return new(blockLock)
}

func (s *Span) dropBlockLock(b int, l *blockLock) {
	if !l.idle() || s.busy[b] != l {
		return
	}
	delete(s.busy, b)
	if len(s.spare) < 8 {
		s.spare = append(s.spare, l)
	}
	if s.drained != nil && len(s.busy) == 0 {
		close(s.drained)
		s.drained = nil
	}
}
