// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/memspan/memspan/internal/sockopt"
)

const (
	// maxLowWater is how many bytes a reader of bulk data lets come together
	// before it wakes up.
	maxLowWater = 512 << 10
	// coalesce is how much of what TLS writes record by record leaves in one
	// write.
	coalesce = 128 << 10
)

// A ProgressConn is a connection whose timeout measures progress: a read or a
// write fails with an error that matches Stalled once no byte has moved for
// the timeout, and goes on for as long as bytes do move. It counts the bytes
// on the wire. Put under TLS, it does so for TLS too:
//
//	tls.Client(wire.Progress(nc, timeout), config)
//
// Read and Write may be called concurrently with each other and with
// themselves.
type ProgressConn struct {
	net.Conn
	timeout time.Duration   // 0: none
	socket  *sockopt.Socket // nil if the connection does not show it

	idle    atomic.Bool       // reads may take for ever
	stop    atomic.Bool       // the next idle read, or the one under way, shall end
	direct  *sockopt.Receiver // nil: not TCP, or not on this system
	reading deadline
	bytesIn atomic.Uint64

	writeMu  sync.Mutex
	writing  deadline
	vec      [8][]byte   // memory for bufs
	bufs     net.Buffers // being written
	held     *[]byte     // nil: nothing is held
	heldLen  int
	bytesOut atomic.Uint64
}

// Progress returns nc with timeouts that measure progress; 0 is no timeout.
// If nc is a TCP connection to this machine, its congestion control is set to
// cubic: others pace what needs no pacing.
func Progress(nc net.Conn, ioTimeout time.Duration) *ProgressConn {
	p := &ProgressConn{Conn: nc, timeout: ioTimeout}
	p.reading.set, p.writing.set = nc.SetReadDeadline, nc.SetWriteDeadline
	if sc, ok := nc.(syscall.Conn); ok {
		p.socket, _ = sockopt.Of(sc) // without, it is slower, no more
	}
	if addr, ok := nc.RemoteAddr().(*net.TCPAddr); ok && p.socket != nil {
		if sc, ok := nc.(syscall.Conn); ok {
			p.direct, _ = sockopt.ReceiverOf(sc)
		}
		if addr.IP.IsLoopback() {
			_ = p.socket.SetCongestion("cubic") // where there is no cubic: as before
		}
	}
	return p
}

// BytesRead returns how many bytes have been received.
func (p *ProgressConn) BytesRead() uint64 { return p.bytesIn.Load() }

// BytesWritten returns how many bytes have been sent.
func (p *ProgressConn) BytesWritten() uint64 { return p.bytesOut.Load() }

// SetDeadline sets both deadlines.
func (p *ProgressConn) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

// SetReadDeadline bounds reads by a point in time, beside the timeout.
func (p *ProgressConn) SetReadDeadline(t time.Time) error { return p.reading.limitTo(t) }

// SetWriteDeadline bounds writes by a point in time, beside the timeout.
func (p *ProgressConn) SetWriteDeadline(t time.Time) error { return p.writing.limitTo(t) }

// A deadline keeps one direction's deadline of a connection: the caller's and
// the one that measures progress, whichever comes first.
type deadline struct {
	set func(time.Time) error

	mu    sync.Mutex
	limit time.Time // the caller's; zero: none
	armed time.Time // the connection's now; zero: none
	cut   bool      // interrupted: the connection's is in the past
}

func (d *deadline) limitTo(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit, d.armed = t, t
	if d.cut {
		return nil // resume sets it
	}
	return d.set(t)
}

// interrupt ends waiting, now and until resume.
func (d *deadline) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = true
	_ = d.set(time.Unix(1, 0)) // fails if the connection is closed: nobody waits then
}

// resume undoes interrupt.
func (d *deadline) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut {
		d.cut, d.armed = false, d.limit
		_ = d.set(d.limit)
	}
}

func (d *deadline) interrupted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut
}

// arm makes the connection's deadline t, or the caller's if that is earlier.
// A zero t is no deadline. If the deadline is between least and t already it
// stays: setting one costs more than a small frame should pay each time.
func (d *deadline) arm(least, t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut {
		return
	}
	if !d.limit.IsZero() && (t.IsZero() || d.limit.Before(t)) {
		t, least = d.limit, d.limit
	}
	if d.armed.Equal(t) || !t.IsZero() && !d.armed.IsZero() && !d.armed.Before(least) && d.armed.Before(t) {
		return
	}
	if d.set(t) == nil { // else the connection is closed: reads and writes will say so
		d.armed = t
	}
}

// passed reports whether the caller's deadline has passed.
func (d *deadline) passed(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.limit.IsZero() && !now.Before(d.limit)
}

// A watch follows one read or write while it waits. A quarter of the timeout
// is the longest wait between two looks at whether something moved.
type watch struct {
	d       *deadline
	timeout time.Duration // 0: none
	since   time.Time     // of the last progress
	looks   int           // since then
}

// minLooks is how often a watch looks before it gives up. A process that did
// not run for all of the timeout has looked once, and what came meanwhile is
// there to be read.
const minLooks = 4

func (d *deadline) watch(timeout time.Duration) watch {
	w := watch{d: d, timeout: timeout}
	if timeout > 0 {
		w.since = time.Now()
		d.arm(w.since.Add(timeout/8), w.since.Add(timeout/4))
	}
	return w
}

// tick is called when an attempt has failed with err. It returns nil if the
// attempt shall be repeated. moved says whether any byte has moved since the
// last tick.
func (w *watch) tick(err error, moved bool) error {
	now := time.Now()
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded) || w.d.passed(now):
		return err
	case w.timeout <= 0: // the deadline was left over from an earlier call
		w.d.arm(time.Time{}, time.Time{})
		return nil
	case moved:
		w.since, w.looks = now, 0
	case w.looks+1 >= minLooks && now.Sub(w.since) >= w.timeout:
		return fmt.Errorf("no byte moved for %v: %w", w.timeout, Stalled)
	}
	w.looks++
	next := now.Add(w.timeout / 4)
	w.d.arm(next, next)
	return nil
}

// setIdle lets reads wait without limit, or not.
func (p *ProgressConn) setIdle(idle bool) { p.idle.Store(idle) }

// interrupt ends an idle read that is under way, or the next.
func (p *ProgressConn) interrupt() {
	p.stop.Store(true) // first: a read that ends early looks for it
	p.reading.expire()
}

// expire makes the deadline pass, once: whoever meets it sets the next.
func (d *deadline) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	past := time.Unix(1, 0)
	if d.set(past) == nil {
		d.armed = past
	}
}

// stopped reports whether an idle read shall end. It takes the request back.
func (p *ProgressConn) stopped() bool {
	if !p.idle.Load() || !p.stop.CompareAndSwap(true, false) {
		return false
	}
	p.reading.arm(time.Time{}, time.Time{})
	return true
}

// Read reads what has come, waiting for it as long as the timeout allows.
func (p *ProgressConn) Read(b []byte) (int, error) { return p.receive(b, nil, 1) }

// receive is Read into b and, if the socket can be read directly, on into after
// once b is full. Sure is how many bytes come, one after the other, before the
// peer waits for an answer: the socket need not wake the reader for each of
// them. It must be 1 under TLS, where it would have to count what TLS holds.
func (p *ProgressConn) receive(b, after []byte, sure int) (n int, err error) {
	timeout := p.timeout
	if p.idle.Load() {
		timeout = 0
	}
	if p.stopped() {
		return 0, ErrInterrupted
	}
	w := p.reading.watch(timeout)
	for {
		if p.direct != nil {
			n, err = p.direct.Receive(b, after, min(sure, maxLowWater))
		} else {
			n, err = p.Conn.Read(b)
		}
		if n > 0 {
			p.bytesIn.Add(uint64(n))
			return n, nil // an error, if there was one, comes again
		}
		if err == nil {
			return 0, nil
		}
		if p.stopped() {
			return 0, ErrInterrupted
		}
		if err := w.tick(err, false); err != nil {
			return 0, err
		}
		// Again: fewer bytes than the low-water mark may have come. They did
		// not wake the reader, but reading does not mind the mark.
	}
}

// Write writes all of b.
func (p *ProgressConn) Write(b []byte) (int, error) {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	if p.held == nil {
		return p.repeat(len(b), func(done int) (int, error) { return p.Conn.Write(b[done:]) })
	}
	// TLS does not keep b: what is held is a copy.
	for rest := b; len(rest) > 0; {
		n := copy((*p.held)[p.heldLen:coalesce], rest)
		p.heldLen, rest = p.heldLen+n, rest[n:]
		if p.heldLen == coalesce {
			if err := p.flushHeld(); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// repeat calls write until n bytes are written.
func (p *ProgressConn) repeat(n int, write func(done int) (int, error)) (done int, err error) {
	w := p.writing.watch(p.timeout)
	queue := 0
	for {
		m, err := write(done)
		done += m
		p.bytesOut.Add(uint64(m))
		if err == nil || done >= n {
			return done, nil
		}
		if p.writing.interrupted() {
			return done, errRecalled
		}
		before := queue
		queue = p.sendQueue()
		// A full socket takes no byte until much of it has gone out: look
		// whether any has.
		if err := w.tick(err, m > 0 || queue < before); err != nil {
			return done, err
		}
	}
}

// sendQueue returns how many bytes wait in the socket for the peer, 0 if that
// cannot be known.
func (p *ProgressConn) sendQueue() int {
	if p.socket == nil {
		return 0
	}
	n, err := p.socket.SendQueue()
	if err != nil {
		return 0
	}
	return n
}

// writeBuffers writes head, then data, then tail, by as few system calls as
// the connection allows.
func (p *ProgressConn) writeBuffers(head []byte, data [][]byte, tail []byte) error {
	_, err := p.writeVector(head, data, tail)
	return err
}

// writeVector is writeBuffers; it returns how many bytes are written.
func (p *ProgressConn) writeVector(head []byte, data [][]byte, tail []byte) (int, error) {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	n := 0
	p.bufs = p.vec[:0]
	add := func(b []byte) {
		if len(b) > 0 { // an empty write waits for a reader on net.Pipe
			p.bufs = append(p.bufs, b)
			n += len(b)
		}
	}
	add(head)
	for _, d := range data {
		add(d)
	}
	add(tail)
	n, err := p.repeat(n, p.writeRest)
	p.bufs = nil
	clear(p.vec[:]) // the caller's memory is not kept
	return n, err
}

// writeRest writes what is left of p.bufs.
func (p *ProgressConn) writeRest(int) (int, error) {
	var n int64
	var err error
	if g, ok := p.Conn.(interface {
		WriteBuffers(*net.Buffers) (int64, error)
	}); ok {
		n, err = g.WriteBuffers(&p.bufs)
	} else {
		n, err = p.bufs.WriteTo(p.Conn)
	}
	return int(n), err
}

// hold keeps what is written from now on until release, so that TLS's records
// go out many at a time.
func (p *ProgressConn) hold() {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	p.held = getScratch()
}

// release writes what was held.
func (p *ProgressConn) release() error {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	err := p.flushHeld()
	putScratch(p.held)
	p.held = nil
	return err
}

func (p *ProgressConn) flushHeld() error {
	b := (*p.held)[:p.heldLen]
	p.heldLen = 0
	_, err := p.repeat(len(b), func(done int) (int, error) { return p.Conn.Write(b[done:]) })
	return err
}

// A fileWriter can send files with bytes: fdpass.Conn.
type fileWriter interface {
	WriteWithFiles(p []byte, files ...*os.File) (int, error)
}

// writeFiles writes b with files attached to its first byte.
func (p *ProgressConn) writeFiles(to fileWriter, b []byte, files []*os.File) error {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	_, err := p.repeat(len(b), func(done int) (int, error) {
		if done > 0 {
			return p.Conn.Write(b[done:])
		}
		return to.WriteWithFiles(b, files...)
	})
	return err
}
