// SPDX-License-Identifier: Apache-2.0

package surface

import "errors"

// Reasons for which a surface is refused, for use with errors.Is.
var (
	// ErrTicket: there is no such surface, or the proof is not made with its
	// secret. These two are not told apart.
	ErrTicket = errors.New("the ticket opens nothing here")
	// ErrExpired: the surface's or the ticket's time is over.
	ErrExpired = errors.New("its time is over")
	// ErrRevoked: the surface was taken back.
	ErrRevoked = errors.New("it was taken back")
	// ErrTaken: the surface is read-once, and another puller has read of it first.
	ErrTaken = errors.New("it was for one puller, and another came first")
	// ErrLeft: the surface was gathered from elsewhere, and the last who had it open
	// has just closed it.
	ErrLeft = errors.New("who it was gathered for has left: pull it anew")
	// ErrGiven: the surface is read-once, and these bytes were read.
	ErrGiven = errors.New("these bytes were given out once already")
	// ErrFailed: the exposer ended, or gave up, before all was there.
	ErrFailed = errors.New("the exposer did not finish")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the store of surfaces is closed")
	// ErrBusy: too many proofs of this asker were wrong lately.
	ErrBusy = errors.New("too many wrong tickets: try again later")
	// ErrMissing: chunks that were asked for are not there yet.
	ErrMissing = errors.New("not there yet")
	// ErrRange: bytes beyond the end of the surface, or of what the ticket opens.
	ErrRange = errors.New("outside of what may be read")
	// ErrWiden: a derived ticket would open more than the one it comes from.
	ErrWiden = errors.New("a ticket can be narrowed only")
	// ErrCorrupt: a chunk's bytes are not those of its digest, or were not
	// sealed with this key.
	ErrCorrupt = errors.New("not the bytes that were exposed")
	// ErrChanged: the source was changed while it was copied.
	ErrChanged = errors.New("the source changed while it was copied")
	// ErrFormat: a manifest, a ticket or a caveat makes no sense.
	ErrFormat = errors.New("malformed")
	// ErrState: what was asked is not legal in the exposure's state.
	ErrState = errors.New("not legal in this state")
	// ErrExists: the store has a surface of this id.
	ErrExists = errors.New("there is one of this id already")
	// ErrNotFound: the store has no surface of this id.
	ErrNotFound = errors.New("there is no such surface")
	// ErrLimit: the store holds, or a message contains, as much as is allowed.
	ErrLimit = errors.New("the limit is reached")
	// ErrRoom is in every [*RoomError].
	ErrRoom = errors.New("no room")
)
