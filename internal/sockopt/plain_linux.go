// SPDX-License-Identifier: Apache-2.0

package sockopt

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxVector is how many pieces a system call takes.
const maxVector = 1024

// A Plain is a stream socket that the runtime's poller does not know: who reads
// or writes it waits in the system, in a thread of his own. A socket of package
// net has two of this process' threads woken for each message, one of them the
// poller's, who finds that nobody asked him; and a goroutine that waits for one
// is woken by way of that thread. For many connections threads are too dear.
//
// Its writes raise no SIGPIPE where the peer is gone. The Go runtime catches
// that in programs of its own; where it is a guest, its host may have taken the
// signal back, and dies.
//
// Its methods may be called concurrently, as a net.Conn's.
type Plain struct {
	fd            int
	local, remote net.Addr
	reads, writes direction

	mu     sync.Mutex
	users  int // calls that use the descriptors
	closed bool
}

// A direction is what reads have for themselves, and writes.
type direction struct {
	turn  sync.Mutex // one call at a time
	alarm int        // an eventfd, readable when whoever waits should look around

	mu       sync.Mutex
	deadline time.Time // zero: none
}

var (
	_ net.Conn     = (*Plain)(nil)
	_ syscall.Conn = (*Plain)(nil)
)

// PlainOf returns a Plain on c's socket, and closes c; or c itself, if it is
// neither a TCP nor a unix connection. If it fails, c is as it was.
func PlainOf(c net.Conn) (net.Conn, error) {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	p := &Plain{fd: -1, local: c.LocalAddr(), remote: c.RemoteAddr()}
	p.reads.alarm, p.writes.alarm = -1, -1
	if err := p.open(raw); err != nil {
		p.free()
		return nil, err
	}
	_ = c.Close() // the socket stays, by our descriptor
	return p, nil
}

// open gets the descriptors. The socket stays non-blocking, as Go has made it.
func (p *Plain) open(from syscall.RawConn) error {
	for _, d := range []*direction{&p.reads, &p.writes} {
		var err error
		if d.alarm, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return os.NewSyscallError("eventfd", err)
		}
	}
	var failed error
	if err := from.Control(func(fd uintptr) { p.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	return os.NewSyscallError("fcntl", failed)
}

// free gives the descriptors back.
func (p *Plain) free() {
	for _, fd := range []int{p.fd, p.reads.alarm, p.writes.alarm} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// enter keeps the descriptors until leave. It fails once the socket is closed.
func (p *Plain) enter() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	p.users++
	return nil
}

func (p *Plain) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users == 0 && p.closed {
		p.free()
	}
}

func (p *Plain) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// Close closes the socket. Reads and writes under way end with net.ErrClosed;
// what waits for it in the system otherwise, such as Socket.AwaitReadable, does
// not, and the descriptor stays until it has.
func (p *Plain) Close() error {
	if err := p.enter(); err != nil {
		return err
	}
	defer p.leave()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.reads.ring()
	p.writes.ring()
	return nil
}

// ring has whoever waits look around.
func (d *direction) ring() { _, _ = unix.Write(d.alarm, []byte{1, 0, 0, 0, 0, 0, 0, 0}) } // it fails if it rings already

// do calls try until it returns true, waiting for one of the events between two
// attempts.
func (p *Plain) do(d *direction, events int16, try func(fd uintptr) bool) error {
	if err := p.enter(); err != nil {
		return err
	}
	defer p.leave()
	d.turn.Lock()
	defer d.turn.Unlock()
	for {
		left, err := d.left()
		switch {
		case err != nil:
			return err
		case p.isClosed():
			return net.ErrClosed
		case try(uintptr(p.fd)):
			return nil
		}
		if err := p.wait(d, events, left); err != nil {
			return err
		}
	}
}

// left returns how long the deadline is off, nil if there is none.
func (d *direction) left() (*unix.Timespec, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deadline.IsZero() {
		return nil, nil
	}
	left := time.Until(d.deadline)
	if left <= 0 {
		return nil, os.ErrDeadlineExceeded
	}
	ts := unix.NsecToTimespec(int64(left))
	return &ts, nil
}

// wait waits for an event, the alarm or the end of the time.
func (p *Plain) wait(d *direction, events int16, left *unix.Timespec) error {
	fds := [...]unix.PollFd{{Fd: int32(p.fd), Events: events}, {Fd: int32(d.alarm), Events: unix.POLLIN}}
	if _, err := unix.Ppoll(fds[:], left, nil); err != nil && err != unix.EINTR { // the runtime interrupts threads by signals
		return os.NewSyscallError("ppoll", err)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(d.alarm, count[:])
	}
	return nil
}

// Read reads what has come, waiting for it.
func (p *Plain) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	var failed error
	if err := p.do(&p.reads, unix.POLLIN, func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), b)
		return failed != unix.EAGAIN && failed != unix.EINTR
	}); err != nil {
		return 0, err
	}
	return received("read", n, failed)
}

// received is what a read returns whose system call returned n and err.
func received(call string, n int, err error) (int, error) {
	switch {
	case err != nil:
		return 0, os.NewSyscallError(call, err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// ReadMsgUnix reads as Read does, with control data into oob, as a
// net.UnixConn's method.
func (p *Plain) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	var failed error
	if err := p.do(&p.reads, unix.POLLIN, func(fd uintptr) bool {
		n, oobn, flags, _, failed = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
		return failed != unix.EAGAIN && failed != unix.EINTR
	}); err != nil {
		return 0, 0, 0, nil, err
	}
	n, err = received("recvmsg", n, failed)
	return n, oobn, flags, nil, err
}

// Write writes b, whole unless it fails.
func (p *Plain) Write(b []byte) (int, error) {
	n, err := p.WriteBuffers(&net.Buffers{b})
	return int(n), err
}

// WriteBuffers writes all of v as one gathering write, and removes from it what
// is written.
func (p *Plain) WriteBuffers(v *net.Buffers) (written int64, err error) {
	var failed error
	err = p.do(&p.writes, unix.POLLOUT, func(fd uintptr) bool {
		for len(*v) > 0 {
			n, err := unix.SendmsgBuffers(int(fd), (*v)[:min(len(*v), maxVector)], nil, nil, unix.MSG_NOSIGNAL)
			switch err {
			case nil:
				written += int64(n)
				consume(v, n)
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				failed = os.NewSyscallError("sendmsg", err)
				return true
			}
		}
		return true
	})
	if err == nil {
		err = failed
	}
	return written, err
}

// consume removes n bytes, and what is empty behind them.
func consume(v *net.Buffers, n int) {
	for len(*v) > 0 && n >= len((*v)[0]) {
		n -= len((*v)[0])
		(*v)[0] = nil
		*v = (*v)[1:]
	}
	if n > 0 {
		(*v)[0] = (*v)[0][n:]
	}
}

// WriteMsgUnix sends what the socket takes of b at once, with control data, as a
// net.UnixConn's method; addr is nil.
func (p *Plain) WriteMsgUnix(b, oob []byte, _ *net.UnixAddr) (n, oobn int, err error) {
	var failed error
	if err := p.do(&p.writes, unix.POLLOUT, func(fd uintptr) bool {
		n, failed = unix.SendmsgN(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
		return failed != unix.EAGAIN && failed != unix.EINTR
	}); err != nil {
		return 0, 0, err
	}
	if failed != nil {
		return 0, 0, os.NewSyscallError("sendmsg", failed)
	}
	return n, len(oob), nil
}

// CloseWrite ends the bytes that the peer reads; reading goes on.
func (p *Plain) CloseWrite() error {
	if err := p.enter(); err != nil {
		return err
	}
	defer p.leave()
	return os.NewSyscallError("shutdown", unix.Shutdown(p.fd, unix.SHUT_WR))
}

// LocalAddr returns the socket's own address.
func (p *Plain) LocalAddr() net.Addr { return p.local }

// RemoteAddr returns the peer's address.
func (p *Plain) RemoteAddr() net.Addr { return p.remote }

// SetDeadline sets both deadlines.
func (p *Plain) SetDeadline(t time.Time) error {
	if err := p.SetReadDeadline(t); err != nil {
		return err
	}
	return p.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn: it holds for a read under way too.
func (p *Plain) SetReadDeadline(t time.Time) error { return p.limit(&p.reads, t) }

// SetWriteDeadline implements net.Conn: it holds for a write under way too.
func (p *Plain) SetWriteDeadline(t time.Time) error { return p.limit(&p.writes, t) }

func (p *Plain) limit(d *direction, t time.Time) error {
	if err := p.enter(); err != nil {
		return err
	}
	defer p.leave()
	d.mu.Lock()
	d.deadline = t
	d.mu.Unlock()
	d.ring()
	return nil
}

// SyscallConn returns the socket for options, and for reads and writes of the
// caller's own.
func (p *Plain) SyscallConn() (syscall.RawConn, error) { return rawPlain{p}, nil }

// A rawPlain is a Plain's socket: a syscall.RawConn.
type rawPlain struct{ *Plain }

func (r rawPlain) Control(f func(fd uintptr)) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	f(uintptr(r.fd))
	return nil
}

func (r rawPlain) Read(try func(fd uintptr) bool) error { return r.do(&r.reads, unix.POLLIN, try) }

func (r rawPlain) Write(try func(fd uintptr) bool) error { return r.do(&r.writes, unix.POLLOUT, try) }
