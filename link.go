// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A link sends requests over a connection and brings each its answer.
//
// One goroutine reads at a time. It never waits for anything but the
// connection: answers are received into the memory that the request named, so
// that nobody who is slow to take his can hold up another's. Who reads is in
// turn.go.
type link struct {
	wire      *wire.Conn
	fds       *fdpass.Conn // of a unix socket, else nil
	backlog   sendQueue
	ioTimeout time.Duration
	onEvent   func(control.Event) // called by the reading goroutine
	work      sync.WaitGroup
	calls     sync.Pool // *call
	lost      chan struct{}
	wanted    chan struct{} // has an element when the link's own reader shall read

	mu      sync.Mutex // guards what follows
	err     error      // set when lost is closed, never changed
	lastID  uint64
	pending map[uint64]*call // nil values: nobody waits for the answer any more
	given   int              // of pending, how many are nil
	reading bool             // somebody has the turn to read
	turns   uint64           // that callers have had
}

// A call is a request that is under way. After the answer it belongs to the
// caller, who gives it back by release.
type call struct {
	id   uint64
	kind wire.Kind
	out  [32]byte // room for the request's prefix
	in   [32]byte // room for the answer's

	data []byte // of a Read: where the answer's data goes; else what came
	// received, if set, is called by the reading goroutine with the data of an
	// answer that is no error.
	received func(data []byte) error

	prefix []byte // of the answer
	err    error
	done   chan struct{} // has an element when the answer is complete
}

func newLink(conn *wire.Conn, fds *fdpass.Conn, queue sendQueue, ioTimeout time.Duration, onEvent func(control.Event)) *link {
	l := &link{
		wire: conn, fds: fds, backlog: queue, ioTimeout: ioTimeout, onEvent: onEvent,
		lost:    make(chan struct{}),
		wanted:  make(chan struct{}, 1),
		pending: make(map[uint64]*call),
	}
	l.calls.New = func() any { return &call{done: make(chan struct{}, 1)} }
	return l
}

// start begins to read.
func (l *link) start() {
	l.reading = true
	l.work.Go(l.read)
	l.work.Go(l.watch)
}

// close ends the link with the given reason, unless it had ended before, and
// waits for its goroutines.
func (l *link) close(reason error) {
	l.fail(reason)
	l.work.Wait()
}

// fail ends the link: all calls, those to come too, fail with err.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
		close(l.lost)
		for _, c := range l.pending {
			if c != nil {
				c.err = err
				c.done <- struct{}{}
			}
		}
		l.pending = nil
	}
	l.mu.Unlock()
	l.wire.Close()
}

// lostErr returns why the link has ended, or nil.
func (l *link) lostErr() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// peerLost is the reason of a link that broke.
func peerLost(cause error) error {
	if errors.Is(cause, io.EOF) {
		cause = fmt.Errorf("the server closed the connection: %w", io.EOF)
	}
	return &Error{Code: ErrPeerLost, Message: "the connection is gone; dial again", Err: cause}
}

func (l *link) newCall(kind wire.Kind) *call {
	c := l.calls.Get().(*call)
	c.kind = kind
	return c
}

// release takes a call back that is answered or abandoned.
func (l *link) release(c *call) {
	c.data, c.received, c.prefix, c.err = nil, nil, nil, nil
	l.calls.Put(c)
}

// send sends a request. If it returns nil the call must be awaited or
// abandoned.
func (l *link) send(c *call, flags wire.Flags, prefix []byte, data ...[]byte) error {
	return l.sendBy(l.wire.WriteFrame, c, flags, prefix, data...)
}

// queue is send for one of many small requests: it may leave later, but not
// later than what is sent next. Who queues pushes before he waits.
func (l *link) queue(c *call, flags wire.Flags, prefix []byte, data ...[]byte) error {
	return l.sendBy(l.wire.QueueFrame, c, flags, prefix, data...)
}

// push sends what is queued.
func (l *link) push() {
	if err := l.wire.Push(); err != nil {
		l.unsent(err)
	}
}

// lastWordTime bounds how long what the server sent is received once it takes
// nothing any more.
const lastWordTime = time.Second

// unsent ends the link because nothing can be sent, once all has been read that
// the server sent before it hung up: answers are among it, and why it did.
func (l *link) unsent(err error) {
	l.mu.Lock()
	l.wake()
	l.mu.Unlock()
	late := time.NewTimer(lastWordTime)
	defer late.Stop()
	select {
	case <-l.lost:
	case <-late.C:
		l.fail(peerLost(err))
	}
}

func (l *link) sendBy(write func(h wire.Header, prefix []byte, data ...[]byte) error, c *call, flags wire.Flags, prefix []byte, data ...[]byte) error {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return l.err
	}
	l.lastID++
	c.id = l.lastID
	l.pending[c.id] = c
	l.mu.Unlock()
	err := write(wire.Header{Kind: c.kind, Flags: flags, ID: c.id}, prefix, data...)
	if err == nil {
		return nil
	}
	if errors.Is(err, wire.ErrTooLarge) { // nothing was written
		l.abandon(c)
		l.take(c.id)
		return err
	}
	l.unsent(err)
	<-c.done
	return c.err
}

// await waits for the answer. If ctx ends first it abandons the call.
func (l *link) await(ctx context.Context, c *call) error {
	if !l.wait(ctx, c) && l.abandon(c) {
		return canceled(ctx)
	}
	return c.err
}

// abandon gives a call up: when it returns, the call's memory is not written
// any more. It returns false if the answer came all the same.
func (l *link) abandon(c *call) bool {
	l.mu.Lock()
	waiting := l.pending[c.id] == c
	if waiting {
		l.pending[c.id] = nil
		l.given++
	}
	l.mu.Unlock()
	if !waiting { // it is being received, or has been
		<-c.done
	}
	return waiting
}

// take finds the call that an answer belongs to: nil if it was given up.
func (l *link) take(id uint64) (c *call, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, known = l.pending[id]
	if known && c == nil {
		l.given--
	}
	delete(l.pending, id)
	return c, known
}

// protocolError says how a server broke the protocol's rules.
func protocolError(format string, args ...any) error {
	return fmt.Errorf("the server broke the protocol: %w", fmt.Errorf(format, args...))
}

// receive takes in one frame. An error ends the connection.
func (l *link) receive(h wire.Header) error {
	if h.Kind == wire.KindEvent {
		return l.event(h)
	}
	if !h.Has(wire.FlagReply) {
		return protocolError("a %v frame that answers nothing", h.Kind)
	}
	c, known := l.take(h.ID)
	if !known {
		return protocolError("an answer to request %d, which was not made", h.ID)
	}
	if c == nil {
		return l.wire.Discard()
	}
	err := l.answer(c, h)
	if err != nil {
		l.fail(peerLost(err))
		c.err = l.lostErr()
	}
	c.done <- struct{}{}
	return err
}

// answer receives the answer to c.
func (l *link) answer(c *call, h wire.Header) (err error) {
	if h.Kind != c.kind {
		return protocolError("request %d is a %v and was answered as a %v", c.id, c.kind, h.Kind)
	}
	if c.prefix, err = l.wire.ReadPrefix(c.in[:0]); err != nil {
		return err
	}
	if h.Has(wire.FlagError) {
		data := make([]byte, h.Raw)
		if err := l.wire.ReadData(data); err != nil {
			return err
		}
		e, err := wire.ParseError(data)
		if err != nil {
			return protocolError("error message: %w", err)
		}
		c.err = e
		return nil
	}
	switch {
	case c.kind == wire.KindControl:
		c.data = make([]byte, h.Raw)
	case len(c.data) != int(h.Raw):
		return protocolError("%d bytes of data answer a %v of %d", h.Raw, c.kind, len(c.data))
	}
	if len(c.data) > 0 {
		if err := l.wire.ReadData(c.data); err != nil {
			return err
		}
	}
	if c.received != nil {
		return c.received(c.data)
	}
	return nil
}

func (l *link) event(h wire.Header) error {
	data := make([]byte, h.Raw)
	if err := l.wire.ReadData(data); err != nil {
		return err
	}
	var e control.Event
	if err := json.Unmarshal(data, &e); err != nil {
		return protocolError("event: %w", err)
	}
	l.onEvent(e)
	return nil
}

// control sends a control request and returns the answer's payload. If ctx
// ends, the server is asked to give the request up, and what it then answers
// counts: a request that was carried out all the same has succeeded, so that
// nothing it made is left without an owner.
func (l *link) control(ctx context.Context, op control.Op, args any, received func([]byte) error) ([]byte, error) {
	return l.controlWith(ctx, l.wire.WriteFrame, op, args, received)
}

// controlFile is control for a request that a file goes with. The file stays
// the caller's.
func (l *link) controlFile(ctx context.Context, f *os.File, op control.Op, args any, received func([]byte) error) ([]byte, error) {
	return l.controlWith(ctx, func(h wire.Header, _ []byte, data ...[]byte) error {
		return l.wire.WriteFrameFiles(h, data[0], f)
	}, op, args, received)
}

func (l *link) controlWith(ctx context.Context, write func(h wire.Header, prefix []byte, data ...[]byte) error, op control.Op, args any, received func([]byte) error) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, canceled(ctx)
	}
	payload, err := control.Encode(op, args)
	if err != nil {
		return nil, err
	}
	c := l.newCall(wire.KindControl)
	defer l.release(c)
	c.received = received
	if err := l.sendBy(write, c, 0, nil, payload); err != nil {
		return nil, err
	}
	if !l.wait(ctx, c) {
		l.cancel(c)
		if errors.Is(c.err, ErrCanceled) {
			return nil, canceled(ctx)
		}
	}
	return c.data, c.err
}

// cancel asks the server to give c up and waits for its answer. A server that
// does not give one within the timeout is as good as gone.
func (l *link) cancel(c *call) {
	l.notify(control.OpCancel, control.Cancel{Request: c.id})
	t := time.NewTimer(l.ioTimeout)
	defer t.Stop()
	select {
	case <-c.done:
	case <-t.C:
		l.fail(peerLost(&Error{Code: ErrStalled, Message: fmt.Sprintf("the server did not answer a cancellation within %v", l.ioTimeout)}))
		<-c.done
	}
}

// notify sends a control request whose answer does not matter.
func (l *link) notify(op control.Op, args any) {
	payload, err := control.Encode(op, args)
	if err != nil {
		return
	}
	c := l.newCall(wire.KindControl)
	defer l.release(c)
	if l.send(c, 0, nil, payload) == nil {
		l.abandon(c)
	}
}

// watch ends the link when something is waited for and nothing moves. A
// request may take its time: so a silent server is first asked for a sign of
// life.
func (l *link) watch() {
	tick := time.NewTicker(max(l.ioTimeout/2, time.Millisecond))
	defer tick.Stop()
	var last movement
	for quiet := 0; ; {
		select {
		case <-l.lost:
			return
		case <-tick.C:
		}
		now := l.moved(last)
		switch {
		case now != last || !l.waiting():
			quiet = 0
		case quiet == 0:
			quiet++
			l.notify(control.OpCancel, control.Cancel{}) // there is no request 0: answered at once
		case quiet == 1:
			quiet++
		default:
			l.fail(peerLost(&Error{Code: ErrStalled, Message: fmt.Sprintf("nothing came from the server for %v", l.ioTimeout)}))
			return
		}
		last = now
	}
}

func (l *link) waiting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) > 0
}

// A movement tells whether bytes have moved since the last.
type movement struct{ received, taken uint64 }

// moved counts the bytes received, and while some wait to be sent those that
// went: on a slow link much can wait in the socket. Once none wait, sending
// proves nothing: the kernel of a machine whose server hangs takes bytes too.
func (l *link) moved(last movement) movement {
	stats := l.wire.Stats()
	now := movement{stats.Received.Bytes, last.taken}
	if waiting := l.backlog.len(); waiting > 0 {
		now.taken = stats.Sent.Bytes - uint64(waiting)
	}
	return now
}
