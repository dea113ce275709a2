// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
)

// A link is one connection to the host. Its reader goroutine ends with it.
type link struct {
	nc    net.Conn
	files *fdpass.Conn // of a unix socket; else nil

	write chan struct{} // holds a token while nobody writes
	out   []byte        // a frame, reused under the token

	mu      sync.Mutex
	next    int64
	pending map[int64]chan answer // nil once the link has failed
	err     error                 // why it failed

	done chan struct{} // closed when the reader has ended
}

type answer struct {
	reply *Reply
	err   error
}

// network tells what address means.
func network(address string) (network, addr string, err error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path, nil
	}
	if strings.Contains(address, "://") {
		rest, ok := strings.CutPrefix(address, "tcp://")
		if !ok {
			return "", "", &Error{Code: ErrInvalid, Op: "dial", Path: address, Message: "want unix:PATH, HOST:PORT or tcp://HOST:PORT"}
		}
		return "tcp", rest, nil
	}
	if strings.Contains(address, "/") {
		return "unix", address, nil
	}
	return "tcp", address, nil
}

func dialLink(ctx context.Context, address string) (*link, error) {
	family, addr, err := network(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6}}
	nc, err := d.DialContext(ctx, family, addr)
	if err != nil {
		code := ErrPeerLost
		if ctx.Err() != nil {
			code = ErrCanceled
		}
		return nil, &Error{Code: code, Op: "dial", Path: address, Message: "no host answers; start one with: memspan host --dir DIRECTORY", Err: err}
	}
	l := &link{write: make(chan struct{}, 1), pending: make(map[int64]chan answer), done: make(chan struct{})}
	if u, ok := nc.(*net.UnixConn); ok {
		uid, _, pid, err := fdpass.PeerCred(u)
		if me := os.Getuid(); err == nil && uid != me && uid != 0 && me != 0 {
			nc.Close()
			return nil, &Error{Code: ErrDenied, Op: "dial", Path: address,
				Message: fmt.Sprintf("the host, process %d, belongs to user %d, not to you (%d) or root", pid, uid, me)}
		}
		l.files = fdpass.New(u)
		l.nc = l.files
	} else {
		l.nc = nc // replies come in one piece: there is nothing to acknowledge early
	}
	l.write <- struct{}{}
	go l.read()
	return l, nil
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
		waiter := l.pending[reply.ID]
		delete(l.pending, reply.ID)
		known := waiter != nil || reply.ID > 0 && reply.ID <= l.next
		l.mu.Unlock()
		switch {
		case waiter != nil:
			waiter <- answer{reply: reply} // it has room for one
		case reply.ID == 0 && reply.Failure() != nil: // it does not let us in, or ends the connection
			l.fail(reply.Failure())
			return
		case !known: // of those that were asked somebody may have given up waiting
			l.fail(&Error{Code: ErrPeerLost, Message: fmt.Sprintf("the host broke the protocol: it answered request %d, which was not asked", reply.ID)})
			return
		}
	}
}

// fail ends the link: all who wait get err.
func (l *link) fail(err error) {
	l.nc.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	for _, waiter := range l.pending {
		waiter <- answer{err: err}
	}
	l.pending = nil
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

// call sends one request, with a file if that is not nil, and waits for its
// result. When ctx ends first the host is asked to give the request up.
func (l *link) call(ctx context.Context, request Request, file *os.File) (json.RawMessage, error) {
	waiter := make(chan answer, 1)
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return nil, l.err
	}
	l.next++
	request.ID, request.Version = l.next, 1
	l.pending[request.ID] = waiter
	l.mu.Unlock()

	if err := l.send(ctx, &request, file); err != nil {
		l.forget(request.ID)
		return nil, err
	}
	select {
	case a := <-waiter:
		if a.err != nil {
			return nil, a.err
		}
		if err := a.reply.Failure(); err != nil {
			return nil, err
		}
		return a.reply.Result, nil
	case <-ctx.Done():
		l.forget(request.ID)
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

// send writes one frame. A frame that was not sent whole ends the link.
func (l *link) send(ctx context.Context, request *Request, file *os.File) error {
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
	if file != nil && l.files == nil {
		return &Error{Code: ErrUnsupported, Message: "a buffer without a name needs a unix socket: dial one, or give Options.Dir"}
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.nc.SetWriteDeadline(time.Now())
		close(interrupted)
	})
	var n int
	if file != nil {
		n, err = l.files.WriteWithFiles(l.out, file)
	} else {
		n, err = l.nc.Write(l.out)
	}
	if !stop() {
		<-interrupted // the deadline is not for the next writer
		l.nc.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && n == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
	l.fail(&Error{Code: ErrPeerLost, Message: "a request could not be sent whole", Err: err})
	if ctx.Err() != nil {
		return &Error{Code: ErrCanceled, Err: errors.Join(context.Cause(ctx), err)}
	}
	return &Error{Code: ErrPeerLost, Message: "the request could not be sent", Err: err}
}
