// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/memspan/memspan/internal/confine"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/tier"
)

// A link is one worker process and the calls under way in it. It ends once:
// when the process is gone and waited for, and every call has its error.
type link struct {
	log   *slog.Logger
	stall time.Duration // a worker that owes answers and sends none for so long is killed; to end, it has a quarter
	count *counters

	process *confine.Process
	conn    *fdpass.Conn
	dead    chan struct{} // closed when the link has ended

	mu      sync.Mutex
	pending map[uint64]*call
	nextID  uint64
	since   time.Time // of the last answer, or of the first call of those under way
	ended   error     // set for good when the link ends: why
	reason  error     // why this side killed the worker

	submits, flushes int64 // of the worker's life, from its replies; the reader's own
}

// counters are a tier's Stats as they are counted.
type counters struct {
	mapped, staged, device, submits, flushes, workers atomic.Int64
}

type call struct {
	done   chan struct{} // receives one value
	status status
	text   []byte
	dead   bool // instead of an answer
}

var errStalled = errors.New("it stopped answering")

// startLink starts a worker. The link's goroutines end when dead is closed.
func startLink(command []string, stall time.Duration, count *counters, log *slog.Logger) (*link, error) {
	l := &link{
		log: log, stall: stall, count: count,
		dead: make(chan struct{}), pending: make(map[uint64]*call),
	}
	process, conn, err := confine.Start(command, log, "MEMSPAN_WORKER=1")
	if err != nil {
		return nil, fmt.Errorf("vram: %w", err)
	}
	l.process, l.conn = process, fdpass.New(conn)
	count.workers.Add(1)
	log.Debug("vram worker started", "pid", l.pid())
	go func() {
		err := l.read()
		l.conn.Close() // without it, a worker that still runs has no reason to end
		if broken := (*net.OpError)(nil); !errors.Is(err, io.EOF) && !errors.As(err, &broken) {
			l.kill(err) // it lives, but not as it should
		}
		// The end of a process frees all it had: only now is it certain that
		// it does not touch the callers' memory any more.
		l.await(process.Gone())
		l.end(process.LastWords())
	}()
	return l, nil
}

func (l *link) pid() int { return l.process.PID() }

// kill ends the worker by force. The first reason is the one that is told.
func (l *link) kill(reason error) {
	l.mu.Lock()
	if l.reason == nil {
		l.reason = reason
	}
	l.mu.Unlock()
	l.process.Kill()
}

// close asks the worker to end, and waits until it has.
func (l *link) close() {
	l.conn.CloseWrite() // an error means that it has ended
	l.await(l.dead)
}

// await waits for a worker that has been asked to end, and has it end if it
// takes too long.
func (l *link) await(ended <-chan struct{}) {
	patience := time.AfterFunc(l.stall/4, func() { l.kill(errors.New("it did not end")) })
	defer patience.Stop()
	<-ended
}

// end fails the calls under way and all later ones.
func (l *link) end(lastWords string) {
	l.mu.Lock()
	state := l.process.State()
	if l.reason != nil {
		state = l.reason.Error() + " and was killed"
	}
	l.ended = fmt.Errorf("worker %d ended: %s", l.pid(), state)
	if lastWords != "" {
		l.ended = fmt.Errorf("%w: %s", l.ended, lastWords)
	}
	pending := l.pending
	l.pending = nil
	l.mu.Unlock()
	for _, c := range pending {
		c.dead = true
		c.done <- struct{}{}
	}
	close(l.dead)
}

// lost returns what a call of an ended link returns. Of a worker that could not
// even be opened, nothing is lost: there is no such tier.
func (l *link) lost(op op) error {
	if op == opOpen || op == opProbe {
		return fmt.Errorf("%w: %w", tier.ErrAbsent, l.ended)
	}
	return fmt.Errorf("%w: %w", tier.ErrLost, l.ended)
}

// do sends a request, with a payload or a file if not nil, and waits for its
// reply. It returns when the worker no longer touches what the request names:
// it has answered, or it is dead. That is why it takes no context.
func (l *link) do(r request, payload []byte, file *os.File) ([]byte, error) {
	c := &call{done: make(chan struct{}, 1)}
	l.mu.Lock()
	if l.ended != nil {
		l.mu.Unlock()
		return nil, l.lost(r.op)
	}
	l.nextID++
	r.id = l.nextID
	r.payload = uint32(len(payload))
	if len(l.pending) == 0 {
		l.since = time.Now()
	}
	l.pending[r.id] = c
	l.mu.Unlock()

	message := append(r.append(make([]byte, 0, requestSize+len(payload))), payload...)
	var err error
	if file != nil {
		_, err = l.conn.WriteWithFiles(message, file)
	} else {
		_, err = l.conn.Write(message)
	}
	if err != nil {
		// The stream may have ended in the middle of a request. If it was the
		// worker that ended it, its exit tells why.
		l.process.Kill()
	}
	<-c.done
	switch {
	case c.dead:
		return nil, l.lost(r.op)
	case c.status == statusAbsent:
		return nil, fmt.Errorf("%w: %s", tier.ErrAbsent, c.text)
	case c.status == statusFull:
		return nil, fmt.Errorf("%w: %s", tier.ErrBudget, c.text)
	case c.status == statusFailed:
		return nil, fmt.Errorf("worker: %s", c.text)
	}
	return c.text, nil
}

// ask is do for requests of JSON and replies in JSON. When ctx ends first, the
// worker is killed: it has done nothing yet that could be lost.
func (l *link) ask(ctx context.Context, op op, question, answer any) error {
	stop := context.AfterFunc(ctx, func() { l.kill(context.Cause(ctx)) })
	defer stop()
	payload, err := json.Marshal(question)
	if err != nil {
		return err
	}
	text, err := l.do(request{op: op}, payload, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

// read hands replies to their calls until the connection ends.
func (l *link) read() error {
	br := bufio.NewReader(l.conn)
	for {
		head, err := l.peek(br)
		if err != nil {
			return err
		}
		var r reply
		if err := r.parse(head); err != nil {
			return err
		}
		br.Discard(replySize)
		var text []byte
		if r.payload > 0 {
			text = make([]byte, r.payload)
			if _, err := io.ReadFull(br, text); err != nil {
				return err
			}
		}
		l.count.submits.Add(r.submits - l.submits)
		l.count.flushes.Add(r.flushes - l.flushes)
		l.submits, l.flushes = r.submits, r.flushes

		l.mu.Lock()
		c := l.pending[r.id]
		delete(l.pending, r.id)
		l.since = time.Now()
		l.mu.Unlock()
		if c == nil {
			return fmt.Errorf("reply to request %d, which is not under way", r.id)
		}
		c.status, c.text = r.status, text
		c.done <- struct{}{}
	}
}

// peek waits for the head of a reply; for ever while no call is under way.
func (l *link) peek(br *bufio.Reader) ([]byte, error) {
	for {
		l.conn.SetReadDeadline(time.Now().Add(l.stall / 4))
		head, err := br.Peek(replySize)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			l.conn.SetReadDeadline(time.Time{})
			return head, err
		}
		l.mu.Lock()
		stalled := len(l.pending) > 0 && time.Since(l.since) >= l.stall
		l.mu.Unlock()
		if stalled {
			return nil, errStalled
		}
	}
}
