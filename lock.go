// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/memspan/memspan/wire/control"
)

// A LockKind says whom a lock keeps out.
type LockKind uint8

// The kinds.
const (
	Shared    LockKind = iota // holders of exclusive locks
	Exclusive                 // all other holders
)

// A Lock is held on a range of a span until Unlock, or until the connection
// ends.
type Lock struct {
	span      *Span
	id        uint64
	off, n    int64
	abandoned bool

	mu       sync.Mutex
	unlocked bool
}

// Lock waits until it holds bytes [off, off+n) against all other holders,
// those of this client included. Locks are advisory: they bind those who lock.
//
// If ctx ends first Lock returns an error that is ErrCanceled, and holds
// nothing. If the lock was granted before the server learned of it, Lock
// succeeds.
func (s *Span) Lock(ctx context.Context, off, n int64, kind LockKind) (*Lock, error) {
	err := s.checkRange(off, n)
	if err == nil && kind > Exclusive {
		err = &Error{Code: ErrInvalid, Message: fmt.Sprintf("unknown kind of lock %d", kind)}
	}
	if err != nil {
		return nil, s.failed("lock", off, n, err)
	}
	done, err := ask[control.Locked](ctx, s.client, control.OpLock, control.Lock{
		Handle: s.handle, Offset: off, Length: n, Exclusive: kind == Exclusive,
	})
	if err != nil {
		return nil, s.failed("lock", off, n, err)
	}
	return &Lock{span: s, id: done.Lock, off: off, n: n, abandoned: done.Abandoned}, nil
}

// Abandoned reports whether an exclusive holder of part of the range died with
// the lock held since it was last taken: what it was changing may be half
// done.
func (l *Lock) Abandoned() bool { return l.abandoned }

// Unlock releases the lock. It fails with ErrNotHeld if it was released before,
// and with ErrLockLost if the connection broke: others may have held the lock
// since.
func (l *Lock) Unlock(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unlocked {
		return l.span.failed("unlock", l.off, l.n, &Error{Code: ErrNotHeld, Message: "it was unlocked before"})
	}
	_, err := ask[nothing](ctx, l.span.client, control.OpUnlock, control.Unlock{Lock: l.id})
	l.unlocked = err == nil
	if errors.Is(err, ErrPeerLost) {
		err = &Error{Code: ErrLockLost, Err: err}
	}
	return l.span.failed("unlock", l.off, l.n, err)
}
