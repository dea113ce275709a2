// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/fdpass"
)

// A link is one connection to the host. Its reader goroutine ends with it.
type link struct {
	nc    net.Conn
	files *fdpass.Conn // of a unix socket; else nil
	tls   bool

	secure func() bool // nobody but this user and root can be at the other end, or between

	write   chan struct{}  // holds a token while nobody writes
	out     []byte         // a frame, reused under the token
	records *blocks.Writer // to nc, made when needed, under the token

	turn

	mu      sync.Mutex
	next    int64
	pending map[int64]waiter // asked and not answered, whether somebody waits or not; nil once the link has failed
	err     error            // why it failed
}

type answer struct {
	reply *Reply
	err   error
}

// A waiter is who waits for an answer.
type waiter struct {
	answer chan answer // has room for one; nil: nobody waits any more
	with   *attachment // may be nil
}

// An attachment is what goes with a request and what comes with its answer,
// beside the JSON.
type attachment struct {
	file *os.File // goes with the request; nil: none
	// send writes the blocks that follow the request; nil: none do. An error
	// that is not the writer's takes the request back.
	send func(ctx context.Context, w *blocks.Writer) error
	// put takes a block that follows the answer of a buffer of size bytes; nil:
	// it is passed over. An error ends the link.
	put  func(i int, block []byte) error
	size int64
	// reply is set to what the host said.
	reply *Reply
	late  bool // put takes them even if nobody waits for the answer any more
}

// fail ends the link: all who wait get err. It returns why the link had ended
// before, if it had.
func (l *link) fail(err error) (before error) {
	defer l.nc.Close() // not before the reason stands: a sender whom it stops looks for it
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.err = err
	close(l.lost)
	for _, w := range l.pending {
		if w.answer != nil {
			w.answer <- answer{err: err}
		}
	}
	l.pending = nil
	return nil
}

func (l *link) failed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}

// close ends the link and waits for its reader.
func (l *link) close() {
	l.fail(&Error{Code: ErrClosed, Message: "the client was closed"})
	<-l.done
}

// call sends one request and waits for its result. When ctx ends first the host
// is asked to give the request up.
func (l *link) call(ctx context.Context, request Request, with *attachment) (json.RawMessage, error) {
	w := waiter{make(chan answer, 1), with}
	request.ID, request.Version = l.nextID(), 1
	if err := l.send(ctx, &request, w); err != nil {
		return nil, err
	}
	a, answered := l.wait(ctx, w)
	switch {
	case !answered:
		l.forget(request.ID)
		l.giveUp(request.ID)
		return nil, &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	case a.err != nil:
		return nil, a.err
	case with != nil:
		with.reply = a.reply
	}
	if err := a.reply.Failure(); err != nil {
		return nil, err
	}
	return a.reply.Result, nil
}

func (l *link) nextID() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next
}

// expect notes who waits for the answer to a request that is about to be sent. It
// returns why the link has failed, if it has.
func (l *link) expect(id int64, w waiter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.pending[id] = w
	if w.answer == nil || w.with != nil && w.with.send != nil { // who sends much listens meanwhile
		l.wake()
	}
	return nil
}

// unasked takes back what expect noted: the request was not sent.
func (l *link) unasked(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, id)
}

// forget has nobody wait for an answer that is still to come. Its blocks are passed
// over, unless they shall be put late.
func (l *link) forget(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, awaited := l.pending[id]
	if !awaited {
		return
	}
	w.answer = nil
	if w.with != nil && !w.with.late {
		w.with = nil
	}
	l.pending[id] = w
	l.wake()
}

// giveUpTime bounds how long a caller whose context has ended stays to tell the
// host so.
const giveUpTime = time.Second

func (l *link) giveUp(id int64) {
	ctx, cancel := context.WithTimeout(context.Background(), giveUpTime)
	defer cancel()
	// If it cannot be told the link has failed, which the host sees.
	_ = l.send(ctx, &Request{API: APICancel, ID: l.nextID(), Version: 1, Cancel: id}, waiter{})
}

// send writes one request, with what goes with it, for whose answer w waits. One that
// was not sent whole ends the link.
func (l *link) send(ctx context.Context, request *Request, w waiter) error {
	with := w.with
	if with == nil {
		with = new(attachment)
	}
	if with.file != nil && l.files == nil {
		return &Error{Code: ErrUnsupported, Message: "a buffer without a name needs a unix socket: dial one, or give Options.Dir"}
	}
	select {
	case <-l.write:
	case <-ctx.Done():
		return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
	defer func() { l.write <- struct{}{} }()
	frame, err := AppendFrame(l.out[:0], request, MaxRequest)
	if err != nil {
		return err
	}
	l.out = frame
	if err := l.expect(request.ID, w); err != nil {
		return err
	}
	after := time.Duration(0)
	if with.send != nil || l.tls {
		// Between blocks whoever sends them looks himself, and the peer is still to be
		// told; TLS does not go on after a record that was cut short.
		after = giveUpTime
	}
	defer interruptible(ctx, l.nc.SetWriteDeadline, after)()
	var n int
	if with.file != nil {
		n, err = l.files.WriteWithFiles(l.out, with.file)
	} else {
		n, err = l.nc.Write(l.out)
	}
	var tookBack error
	if err == nil && with.send != nil {
		tookBack, err = l.sendBlocks(ctx, with)
	}
	switch {
	case tookBack != nil && err == nil:
		l.forget(request.ID)
		return tookBack
	case err == nil:
		return nil
	case ctx.Err() != nil && n == 0 && !l.tls && errors.Is(err, os.ErrDeadlineExceeded):
		l.unasked(request.ID)
		return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
	if ctx.Err() == nil {
		l.lastWord()
	}
	if first := l.fail(&Error{Code: ErrPeerLost, Message: "a request could not be sent whole", Err: err}); first != nil {
		err = first // the connection was closed for that
	}
	if ctx.Err() != nil {
		return &Error{Code: ErrCanceled, Err: errors.Join(context.Cause(ctx), err)}
	}
	return &Error{Code: ErrPeerLost, Message: "the request could not be sent", Err: err}
}

// lastWordTime bounds how long a sender whose write failed waits for who reads.
const lastWordTime = time.Second

// lastWord waits until what the host said before it hung up has been read: that is
// why a write failed.
func (l *link) lastWord() {
	l.wake()
	late := time.NewTimer(lastWordTime)
	defer late.Stop()
	select {
	case <-l.done:
	case <-late.C:
	}
}

// sendBlocks writes the blocks that follow a request. It returns why the request
// was taken back, and what failed on the connection.
func (l *link) sendBlocks(ctx context.Context, with *attachment) (tookBack, failed error) {
	out := &noting{w: l.nc}
	if l.records == nil {
		l.records = new(blocks.Writer)
	}
	l.records.Reset(out)
	tookBack = with.send(ctx, l.records)
	if out.err == nil {
		_ = l.records.End(tookBack != nil) // noted
	}
	return tookBack, out.err
}

// noting notes that writing failed.
type noting struct {
	w   io.Writer
	err error
}

func (n *noting) Write(p []byte) (int, error) {
	m, err := n.w.Write(p)
	if err != nil {
		n.err = err
	}
	return m, err
}
