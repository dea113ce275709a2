// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"errors"

	"github.com/memspan/memspan/mapping"
	"github.com/memspan/memspan/wire"
)

// An Error says which request failed, on which bytes of which span, and why.
// Its Code, and its cause where there is one, are found by errors.Is.
type Error = wire.Error

// A Code is the reason of an [Error], and an error itself.
type Code = wire.Code

// The reasons for which requests fail, for use with errors.Is.
const (
	ErrInternal        = wire.Internal        // a fault of the server
	ErrInvalid         = wire.Invalid         // an argument makes no sense
	ErrNotFound        = wire.NotFound        // no such span
	ErrExists          = wire.Exists          // the name is taken
	ErrOutOfRange      = wire.OutOfRange      // bytes beyond the end of the span or mapping
	ErrWrongMode       = wire.WrongMode       // the mapping's mode does not allow it
	ErrNotMapped       = wire.NotMapped       // unmapped already
	ErrFreed           = wire.Freed           // the span was freed
	ErrTierAbsent      = wire.TierAbsent      // the server has no such tier
	ErrBudget          = wire.Budget          // the tier's budget does not hold it
	ErrLimit           = wire.Limit           // a limit of the server was reached
	ErrUnauthenticated = wire.Unauthenticated // the token or the certificate is missing or wrong
	ErrBadVersion      = wire.BadVersion      // the server speaks another version of the protocol
	ErrConflict        = wire.Conflict        // others changed the same bytes
	ErrDataLoss        = wire.DataLoss        // the last copy of the current version is gone: see Span.Accept
	ErrPeerLost        = wire.PeerLost        // there is no connection
	ErrCorrupt         = wire.Corrupt         // bytes are not those that were written: changed on their way, or on disk
	ErrStalled         = wire.Stalled         // no progress within Options.IOTimeout
	ErrClosed          = wire.Closed          // the client or the span was closed, or the server is stopping
	ErrUnsupported     = wire.Unsupported     // this server or this system cannot do it
	ErrLastCopy        = wire.LastCopy        // the copy is the only one
	ErrPinned          = wire.Pinned          // a mapping or an advice keeps the copy in its place
	ErrLockLost        = wire.LockLost        // the connection broke with the lock held: see Lock.Unlock
	ErrNotHeld         = wire.NotHeld         // the lock is not held
	ErrCanceled        = wire.Canceled        // the context ended
	ErrDebt            = wire.Debt            // stored, but the write policy is not met yet
	ErrBusy            = wire.Busy            // another write or copy is in the way: try again
	ErrWrongState      = wire.WrongState      // the request is not legal now
	ErrTierFailed      = wire.TierFailed      // the tier takes no more changes: its disk failed
	ErrExpired         = wire.Expired         // the surface's or the ticket's time is over
	ErrRevoked         = wire.Revoked         // the surface was taken back
	ErrTaken           = wire.Taken           // the surface was for one puller, and another came first
)

// failed gives err what was asked, where it does not say so itself. Joined
// errors are several answers and each has its own place: they stay as they
// are.
func failed(op, span string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	e, ok := err.(*Error)
	if !ok {
		if _, joined := err.(interface{ Unwrap() []error }); joined {
			return err
		}
		return &Error{Code: codeOf(err), Op: op, Span: span, Offset: off, Length: n, Err: err}
	}
	placed := *e // e may be the connection's, and others'
	if placed.Op == "" {
		placed.Op = op
	}
	if placed.Span == "" {
		placed.Span = span
		if placed.Length == 0 {
			placed.Offset, placed.Length = off, n
		}
	}
	return &placed
}

// codeOf finds the code for an error of this side.
func codeOf(err error) Code {
	var code Code
	switch {
	case errors.As(err, &code):
		return code
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return ErrCanceled
	case errors.Is(err, mapping.ErrClosed): // with its pool, by Client.Close
		return ErrClosed
	case errors.Is(err, errors.ErrUnsupported):
		return ErrUnsupported
	}
	return ErrInternal
}

// canceled says that ctx ended before the answer came.
func canceled(ctx context.Context) error {
	return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
}
