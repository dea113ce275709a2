// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	mu      sync.Mutex
	next    int64
	pending map[int64]waiter // nil once the link has failed
	err     error            // why it failed

	done chan struct{} // closed when the reader has ended
}

type answer struct {
	reply *Reply
	err   error
}

// A waiter is who waits for an answer.
type waiter struct {
	answer chan answer // has room for one
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

// read hands answers to those who wait for them, until the connection ends.
func (l *link) read() {
	defer close(l.done)
	r := bufio.NewReaderSize(l.nc, headerSize+MaxResponse)
	var buf []byte
	for {
		body, err := ReadFrame(r, buf, MaxResponse)
		if err != nil {
			l.fail(&Error{Code: ErrPeerLost, Message: "the connection to the host ended", Err: err})
			return
		}
		buf = body
		reply, err := ParseReply(body)
		if err != nil {
			l.fail(&Error{Code: ErrPeerLost, Message: "the host broke the protocol", Err: err})
			return
		}
		l.mu.Lock()
		w, waiting := l.pending[reply.ID]
		delete(l.pending, reply.ID)
		known := waiting || reply.ID > 0 && reply.ID <= l.next
		l.mu.Unlock()
		if failure := reply.Failure(); !waiting && reply.ID == 0 && failure != nil { // it does not let us in, or ends the connection
			l.fail(failure)
			return
		}
		if !known { // of those that were asked somebody may have given up waiting
			l.fail(&Error{Code: ErrPeerLost, Message: fmt.Sprintf("the host broke the protocol: it answered request %d, which was not asked", reply.ID)})
			return
		}
		if reply.Blocks {
			if err := takeBlocks(r, w.with); err != nil {
				lost := &Error{Code: ErrPeerLost, Message: "what the host changed could not be received", Err: err}
				l.fail(lost)
				if waiting {
					w.answer <- answer{err: lost}
				}
				return
			}
		}
		if waiting {
			w.answer <- answer{reply: reply}
		}
	}
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
	for _, w := range l.pending {
		w.answer <- answer{err: err}
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
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return nil, l.err
	}
	l.next++
	request.ID, request.Version = l.next, 1
	l.pending[request.ID] = w
	l.mu.Unlock()

	if err := l.send(ctx, &request, with); err != nil {
		l.forget(request.ID)
		return nil, err
	}
	select {
	case a := <-w.answer:
		if a.err != nil {
			return nil, a.err
		}
		if with != nil {
			with.reply = a.reply
		}
		if err := a.reply.Failure(); err != nil {
			return nil, err
		}
		return a.reply.Result, nil
	case <-ctx.Done():
		if with == nil || !with.late {
			l.forget(request.ID)
		}
		l.giveUp(request.ID)
		return nil, &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
}

func (l *link) forget(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, id)
}

// giveUpTime bounds how long a caller whose context has ended stays to tell the
// host so.
const giveUpTime = time.Second

func (l *link) giveUp(id int64) {
	ctx, cancel := context.WithTimeout(context.Background(), giveUpTime)
	defer cancel()
	l.mu.Lock()
	l.next++
	own := l.next
	l.mu.Unlock()
	// If it cannot be told the link has failed, which the host sees.
	_ = l.send(ctx, &Request{API: APICancel, ID: own, Version: 1, Cancel: id}, nil)
}

// send writes one request, with what goes with it. One that was not sent whole
// ends the link.
func (l *link) send(ctx context.Context, request *Request, with *attachment) error {
	if with == nil {
		with = new(attachment)
	}
	body, err := marshal(request)
	if err != nil {
		return &Error{Code: ErrInvalid, Message: "the arguments are no JSON", Err: err}
	}
	select {
	case <-l.write:
	case <-ctx.Done():
		return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
	defer func() { l.write <- struct{}{} }()
	if l.out, err = AppendFrame(l.out[:0], body, MaxRequest); err != nil {
		return err
	}
	if with.file != nil && l.files == nil {
		return &Error{Code: ErrUnsupported, Message: "a buffer without a name needs a unix socket: dial one, or give Options.Dir"}
	}
	defer l.interruptible(ctx, with)()
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
	case err == nil:
		return tookBack
	case ctx.Err() != nil && n == 0 && !l.tls && errors.Is(err, os.ErrDeadlineExceeded):
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

// lastWordTime bounds how long a sender whose write failed waits for the reader.
const lastWordTime = time.Second

// lastWord waits until the reader has read what the host said before it hung up:
// that is why a write failed.
func (l *link) lastWord() {
	late := time.NewTimer(lastWordTime)
	defer late.Stop()
	select {
	case <-l.done:
	case <-late.C:
	}
}

// interruptible has writes end when ctx does, until the function that it returns
// is called. Between blocks whoever sends them looks himself; the peer is still
// to be told.
func (l *link) interruptible(ctx context.Context, with *attachment) func() {
	after := time.Duration(0)
	if with.send != nil {
		after = giveUpTime
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.nc.SetWriteDeadline(time.Now().Add(after))
		close(interrupted)
	})
	return func() {
		if !stop() {
			<-interrupted // the deadline is not for the next writer
			l.nc.SetWriteDeadline(time.Time{})
		}
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
