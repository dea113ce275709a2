// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"errors"
	"time"

	"github.com/memspan/memspan/wire"
)

// Whose turn it is to read. The link has a reader of its own, which hands each
// caller his answer: a switch of goroutines, which for a small request costs
// about as much as the kernel does. So a caller who is the only one waiting
// reads himself, as if the connection were his alone. Everything else is the
// link's reader's: answers to several, the events and the end of a connection
// that nobody calls on.
//
// The link's reader gives its turn up once it has handed out the last answer
// that was waited for. It takes it again when a caller says so, who leaves
// others waiting, or when no caller has had a turn for restTime.

// restTime is how long the link's reader leaves the connection to callers who
// no longer come: how late an event may be noticed, no more.
const restTime = 5 * time.Millisecond

// read receives frames, with pauses, until the connection ends. It begins with
// the turn.
func (l *link) read() {
	for l.readAll() && l.rest() {
	}
}

// readAll receives frames until nothing more is waited for, and gives up the
// turn. It returns false once the connection has ended.
func (l *link) readAll() bool {
	for {
		if err := l.readFrame(); err != nil && !errors.Is(err, wire.ErrInterrupted) {
			l.fail(peerLost(err))
			return false
		}
		if l.giveUp() {
			return true
		}
	}
}

// readFrame receives one frame. ErrInterrupted says that none has begun.
func (l *link) readFrame() error {
	h, err := l.wire.ReadHeader()
	if err != nil {
		return err
	}
	return l.receive(h)
}

// giveUp ends the turn of the link's reader if nobody waits, and only where
// callers can read.
func (l *link) giveUp() bool {
	if !l.wire.Interruptible() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) > l.given {
		return false
	}
	l.reading = false
	return true
}

// rest waits until the link's reader has the turn again. It returns false once
// the connection has ended.
func (l *link) rest() bool {
	timer := time.NewTimer(restTime)
	defer timer.Stop()
	for last := uint64(0); ; {
		wanted := false
		select {
		case <-l.lost:
			return false
		case <-l.wanted:
			wanted = true
		case <-timer.C:
			timer.Reset(restTime)
		}
		l.mu.Lock()
		quiet := l.turns == last
		last = l.turns
		if !l.reading && (wanted || quiet) {
			l.reading = true
			l.mu.Unlock()
			return true
		}
		l.mu.Unlock()
	}
}

// wait waits until c is answered, and returns false if ctx ends before.
func (l *link) wait(ctx context.Context, c *call) bool {
	select {
	case <-c.done:
		return true
	default:
	}
	if l.takeTurn(c) {
		answered := l.readFor(ctx, c)
		l.passTurn()
		if answered {
			return true
		}
	}
	select {
	case <-c.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// takeTurn gives the turn to the caller that waits for c if it is free and
// nobody else waits. If others wait it is the link's reader's.
func (l *link) takeTurn(c *call) bool {
	if !l.wire.Interruptible() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reading || l.pending == nil {
		return false
	}
	if len(l.pending)-l.given != 1 || l.pending[c.id] != c {
		l.wake()
		return false
	}
	l.reading = true
	l.turns++
	return true
}

// passTurn ends a caller's turn.
func (l *link) passTurn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = false
	if len(l.pending) > l.given {
		l.wake()
	}
}

// wake calls the link's reader. The caller holds mu.
func (l *link) wake() {
	select {
	case l.wanted <- struct{}{}:
	default:
	}
}

// readFor receives frames until c is answered, which it then takes note of, or
// ctx ends. It returns whether c is answered.
func (l *link) readFor(ctx context.Context, c *call) bool {
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, l.wire.Interrupt)
		defer stop()
	}
	for {
		err := l.readFrame()
		switch {
		case err == nil:
		case errors.Is(err, wire.ErrInterrupted):
			// It may be the echo of an earlier turn's end.
			if ctx.Err() != nil {
				return false
			}
		default:
			l.fail(peerLost(err))
		}
		select {
		case <-c.done:
			return true
		default:
		}
	}
}
