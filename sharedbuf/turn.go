// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/sockopt"
)

// Whose turn it is to read. To hand an answer from one goroutine to another costs
// more than the kernel takes for the whole exchange. So a caller who is the only one
// waiting reads his answer himself. The link's reader, a goroutine, has the turn
// when several answers are awaited or nobody waits for one any more, while blocks
// are sent, and for answers that blocks follow. If nothing is awaited nobody reads:
// that the connection has ended is seen before the next request.
//
// A caller who reads must be able to give up. Where the system cannot tell whether
// there is something to read, and with TLS, the link's reader always has the turn.

// A turn is the reading side of a link. What stands behind mu in the link guards
// reading, too.
type turn struct {
	r      *bufio.Reader
	socket *sockopt.Socket // nil: the link's reader always has the turn
	begun  *Reply          // the answer whose blocks come next; nil: none

	wanted  chan struct{} // has an element when the link's reader shall read
	lost    chan struct{} // closed when the link has failed
	done    chan struct{} // closed when the link's reader has ended
	reading bool          // somebody has the turn
}

// newTurn prepares to read nc; layered says that it is TLS.
func newTurn(nc net.Conn, layered bool) turn {
	t := turn{
		r:      bufio.NewReaderSize(nc, headerSize+MaxResponse),
		wanted: make(chan struct{}, 1),
		lost:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	if c, ok := nc.(syscall.Conn); ok && !layered {
		t.socket, _ = sockopt.Of(c)
	}
	if t.socket == nil {
		t.wake()
	}
	return t
}

// wake has the link's reader read, unless somebody does.
func (t *turn) wake() {
	select {
	case t.wanted <- struct{}{}:
	default:
	}
}

// read is the link's reader.
func (l *link) read() {
	defer close(l.done)
	for l.await() {
		for l.receive(true) == nil && !l.rest() {
		}
	}
}

// await waits for the turn of the link's reader. It returns false once the link has
// failed.
func (l *link) await() bool {
	for {
		select {
		case <-l.wanted:
		case <-l.lost:
			return false
		}
		l.mu.Lock()
		free := !l.reading
		l.reading = true
		l.mu.Unlock()
		if free {
			return true
		}
	}
}

// rest ends the turn of the link's reader if nothing is awaited.
func (l *link) rest() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socket == nil || len(l.pending) > 0 {
		return false
	}
	l.reading = false
	return true
}

// take gives a caller the turn if it is free and no more than so many answers are
// awaited.
func (l *link) take(awaited int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.socket == nil || l.reading || l.err != nil:
		return false
	case len(l.pending) > awaited:
		l.wake()
		return false
	}
	l.reading = true
	return true
}

// pass ends a caller's turn.
func (l *link) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = false
	if len(l.pending) > 0 {
		l.wake()
	}
}

// wait waits for the answer, and returns false if ctx ends before.
func (l *link) wait(ctx context.Context, w waiter) (a answer, ok bool) {
	if l.take(1) {
		l.readFor(ctx, w)
		l.pass()
	}
	select {
	case a = <-w.answer:
		return a, true
	case <-ctx.Done():
		return answer{}, false
	}
}

// readFor reads until w has its answer, ctx ends, or an answer has come that is the
// link's reader's.
func (l *link) readFor(ctx context.Context, w waiter) {
	if ctx.Done() != nil {
		defer interruptible(ctx, l.nc.SetReadDeadline, 0)()
	}
	for len(w.answer) == 0 && l.receive(false) == nil {
	}
}

// ended reports whether the link has failed, or has to: while nothing is awaited
// nothing comes but the connection's end. It waits until the host's last word is
// heard, or ctx ends.
func (l *link) ended(ctx context.Context) bool {
	if l.take(0) {
		ready, err := l.socket.AwaitReadable(0)
		l.mu.Lock()
		// What comes may be the answer to a request that was made meanwhile.
		over := (ready || err != nil || l.r.Buffered() > 0) && len(l.pending) == 0
		l.mu.Unlock()
		l.pass()
		if over {
			l.wake()
			select {
			case <-l.lost:
			case <-ctx.Done():
			}
		}
	}
	return l.failed()
}

// interruptible has reads or writes, whose deadline set sets, end when ctx does, or
// some time after, until the function that it returns is called.
func interruptible(ctx context.Context, set func(time.Time) error, after time.Duration) func() {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		set(time.Now().Add(after))
		close(interrupted)
	})
	return func() {
		if !stop() {
			<-interrupted // the deadline is not for whoever is next
			set(time.Time{})
		}
	}
}

// errLeft says that an answer is the link's reader's.
var errLeft = errors.New("blocks follow the answer")

// receive takes in one answer, for whoever has the turn: own says that it is the
// link's reader. If that fails the link has failed, but for a caller who was
// interrupted, or leaves an answer's blocks.
func (l *link) receive(own bool) error {
	reply := l.begun
	if reply == nil {
		body, err := ReadFrame(l.r, MaxResponse)
		if !own && errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err != nil {
			return l.broken("the connection to the host ended", err)
		}
		if reply, err = ParseReply(body); err != nil {
			return l.broken("the host broke the protocol", err)
		}
		if reply.Blocks && !own {
			l.begun = reply
			return errLeft
		}
	}
	l.begun = nil
	l.mu.Lock()
	w, known := l.pending[reply.ID]
	delete(l.pending, reply.ID)
	l.mu.Unlock()
	if !known {
		if failure := reply.Failure(); reply.ID == 0 && failure != nil { // it does not let us in, or ends the connection
			l.fail(failure)
			return failure
		}
		return l.broken(fmt.Sprintf("the host broke the protocol: it answered request %d, which was not asked", reply.ID), nil)
	}
	a := answer{reply: reply}
	var err error
	if reply.Blocks {
		if err = takeBlocks(l.r, w.with); err != nil {
			err = l.broken("what the host changed could not be received", err)
			a = answer{err: err}
		}
	}
	if w.answer != nil {
		w.answer <- a
	}
	return err
}

// broken ends the link, because of the host, and returns why.
func (l *link) broken(message string, err error) error {
	lost := &Error{Code: ErrPeerLost, Message: message, Err: err}
	l.fail(lost)
	return lost
}

// takeBlocks reads the blocks that follow an answer.
func takeBlocks(r io.Reader, with *attachment) error {
	size := int64(-1)
	if with != nil && with.put != nil {
		size = with.size
	}
	records := blocks.NewReader(r, size)
	for {
		i, block, err := records.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case size >= 0:
			if err := with.put(i, block); err != nil {
				return err
			}
		}
	}
}
