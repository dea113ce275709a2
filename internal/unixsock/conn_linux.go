// SPDX-License-Identifier: Apache-2.0

package unixsock

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Conn is a unix stream connection. It implements [net.Conn] and [syscall.Conn];
// its methods may be called concurrently, and those that it shares with
// [net.UnixConn] do what they do there.
type Conn struct {
	local, remote net.Addr
	patience      atomic.Int64 // for which readers still wait by themselves, a time.Duration
	waits         func()       // called before somebody waits for more than a moment, once; or nil
	announced     sync.Once    // that

	settled atomic.Pointer[polled] // nil: the poller does not know of the socket

	mu     sync.Mutex // guards what follows
	fd     int        // bare; -1: closed
	users  int        // calls that use fd
	closed bool
	read   time.Time // deadlines
	write  time.Time
}

// polled is a connection of package net.
type polled struct {
	*net.UnixConn
	raw syscall.RawConn
}

// errWait says that an operation would have to wait.
var errWait = errors.New("the socket is not ready")

// patience is for how long, in all, who reads waits in the system by himself before the
// poller is told: what comes by then wakes the thread that waits for it, and no other.
// It is long for who answers at once, and short for a thread that does nothing else.
const patience = time.Millisecond

// courtesy is how much of it goes by before that is announced: a peer that has just
// connected, and runs on this very processor, has yet to say why.
const courtesy = 100 * time.Microsecond

func newConn(fd int, local, remote net.Addr, waits func()) *Conn {
	c := &Conn{fd: fd, local: local, remote: remote, waits: waits}
	c.patience.Store(int64(patience))
	return c
}

// Dial connects to the socket at path. A full queue there is an error, as it is of
// [net.Dial].
func Dial(path string) (*Conn, error) {
	to := &net.UnixAddr{Name: path, Net: "unix"}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "unix", Addr: to, Err: os.NewSyscallError("socket", err)}
	}
	if err := ignoringEINTR(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) }); err != nil {
		unix.Close(fd)
		return nil, &net.OpError{Op: "dial", Net: "unix", Addr: to, Err: os.NewSyscallError("connect", err)}
	}
	return newConn(fd, &net.UnixAddr{Net: "unix"}, to, nil), nil
}

// ignoringEINTR repeats what the Go scheduler's signals interrupt.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// acquire returns the bare descriptor, which stays open until release, or -1 if the
// socket is settled.
func (c *Conn) acquire(deadline *time.Time) (fd int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return -1, net.ErrClosed
	case c.settled.Load() != nil:
		return -1, nil
	case deadline != nil && !deadline.IsZero() && !time.Now().Before(*deadline):
		return -1, os.ErrDeadlineExceeded
	}
	c.users++
	return c.fd, nil
}

func (c *Conn) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users--
	c.dropLocked()
}

// dropLocked closes the bare descriptor if it is not wanted any more.
func (c *Conn) dropLocked() error {
	if c.users > 0 || c.fd < 0 || !c.closed && c.settled.Load() == nil {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// settle tells the poller of the socket.
func (c *Conn) settle() (*polled, error) {
	if p := c.settled.Load(); p != nil {
		return p, nil
	}
	c.announce()
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.settled.Load(); p != nil || c.closed {
		if c.closed {
			return nil, net.ErrClosed
		}
		return p, nil
	}
	// The descriptor may be in use: it is closed when it is not. What package os is
	// given must block, or it would tell the poller too.
	if err := unix.SetNonblock(c.fd, false); err != nil {
		return nil, os.NewSyscallError("fcntl(F_SETFL)", err)
	}
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	nc, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	p := &polled{UnixConn: nc.(*net.UnixConn)}
	if p.raw, err = p.SyscallConn(); err == nil {
		err = errors.Join(p.SetReadDeadline(c.read), p.SetWriteDeadline(c.write))
	}
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	c.settled.Store(p)
	c.dropLocked()
	return p, nil
}

// failed places an error of the bare descriptor as package net does.
func (c *Conn) failed(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "unix", Source: c.local, Addr: c.remote, Err: err}
}

// Read implements [net.Conn]. Descriptors that come are closed.
func (c *Conn) Read(b []byte) (int, error) {
	if c.settled.Load() == nil {
		if n, _, _, err := c.receive(b, nil); err != errWait {
			return n, c.failed("read", err)
		}
	}
	p, err := c.settle()
	if err != nil {
		return 0, c.failed("read", err)
	}
	return p.Read(b)
}

// ReadMsgUnix receives bytes and control data. There is no address.
func (c *Conn) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	if c.settled.Load() == nil {
		if n, oobn, flags, err = c.receive(b, oob); err != errWait {
			return n, oobn, flags, nil, c.failed("read", err)
		}
	}
	p, err := c.settle()
	if err != nil {
		return 0, 0, 0, nil, c.failed("read", err)
	}
	n, oobn, flags, _, err = p.ReadMsgUnix(b, oob)
	return n, oobn, flags, nil, err
}

// receive receives by the bare descriptor, within the reader's patience.
func (c *Conn) receive(b, oob []byte) (n, oobn, flags int, err error) {
	fd, err := c.acquire(&c.read)
	if err != nil {
		return 0, 0, 0, err
	}
	if fd < 0 {
		return 0, 0, 0, errWait
	}
	defer c.release()
	for {
		err = ignoringEINTR(func() (err error) {
			n, oobn, flags, _, err = unix.Recvmsg(fd, b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			return err
		})
		switch {
		case err == unix.EAGAIN:
			if !c.await(fd) {
				return 0, 0, 0, errWait
			}
		case err != nil:
			return 0, 0, 0, os.NewSyscallError("recvmsg", err)
		case n == 0 && len(b) > 0:
			if c.isClosed() { // which has shut the socket down, to end await
				return 0, oobn, flags, net.ErrClosed
			}
			return 0, oobn, flags, io.EOF
		default:
			return n, oobn, flags, nil
		}
	}
}

// await waits until the socket can be read, or until it is time to announce that, and
// reports false when patience is at its end. A deadline that comes earlier is met by the
// poller, a little late.
func (c *Conn) await(fd int) bool {
	left := time.Duration(c.patience.Load())
	if left <= 0 {
		return false
	}
	wait := left
	if unannounced := left - (patience - courtesy); c.waits != nil && unannounced > 0 {
		wait = unannounced
	}
	start := time.Now()
	timeout := unix.NsecToTimespec(int64(wait))
	// Whatever it says, reading is tried again.
	_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &timeout, nil)
	if left = time.Duration(c.patience.Add(-int64(time.Since(start)))); left <= patience-courtesy {
		c.announce()
	}
	return true
}

// announce says, once, that somebody will wait.
func (c *Conn) announce() {
	if c.waits != nil {
		c.announced.Do(c.waits)
	}
}

func (c *Conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Write implements [net.Conn].
func (c *Conn) Write(b []byte) (int, error) {
	done := 0
	for c.settled.Load() == nil {
		n, err := c.send(b[done:], nil)
		done += n
		switch {
		case err == errWait:
		case err != nil || done >= len(b):
			return done, c.failed("write", err)
		default:
			continue
		}
		break
	}
	p, err := c.settle()
	if err != nil {
		return done, c.failed("write", err)
	}
	n, err := p.Write(b[done:])
	return done + n, err
}

// WriteMsgUnix sends bytes with control data. There must be no address.
func (c *Conn) WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error) {
	if c.settled.Load() == nil && addr == nil {
		if n, err = c.send(b, oob); err == nil {
			return n, len(oob), nil
		} else if err != errWait {
			return n, 0, c.failed("write", err)
		}
	}
	p, err := c.settle()
	if err != nil {
		return 0, 0, c.failed("write", err)
	}
	return p.WriteMsgUnix(b, oob, addr)
}

// send sends what the socket takes at once.
func (c *Conn) send(b, oob []byte) (n int, err error) {
	fd, err := c.acquire(&c.write)
	if err != nil {
		return 0, err
	}
	if fd < 0 {
		return 0, errWait
	}
	defer c.release()
	err = ignoringEINTR(func() (err error) {
		n, err = unix.SendmsgN(fd, b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return err
	})
	switch {
	case err == unix.EAGAIN:
		return 0, errWait
	case err != nil:
		return 0, os.NewSyscallError("sendmsg", err)
	}
	return n, nil
}

// WriteBuffers writes all of v by as few system calls as it takes.
func (c *Conn) WriteBuffers(v *net.Buffers) (int64, error) {
	p, err := c.settle()
	if err != nil {
		return 0, c.failed("write", err)
	}
	return v.WriteTo(p.UnixConn)
}

// Close implements [net.Conn].
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.settled.Load()
	switch {
	case p != nil:
		c.closed = true
		return p.Close()
	case c.closed:
		return c.failed("close", net.ErrClosed)
	}
	c.closed = true
	if c.users > 0 { // wake who waits: he closes it
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // fails if the peer is gone: then nobody waits
		return nil
	}
	return c.failed("close", c.dropLocked())
}

// CloseWrite ends the bytes that the peer reads.
func (c *Conn) CloseWrite() error {
	p, err := c.settle()
	if err != nil {
		return c.failed("close", err)
	}
	return p.CloseWrite()
}

// File returns a duplicate of the descriptor.
func (c *Conn) File() (*os.File, error) {
	p, err := c.settle()
	if err != nil {
		return nil, c.failed("file", err)
	}
	return p.File()
}

// LocalAddr implements [net.Conn].
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements [net.Conn].
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements [net.Conn]. Who waits by himself may look at it as late
// as his patience is long.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(&c.read, t, func(p *polled) error { return p.SetReadDeadline(t) })
}

// SetWriteDeadline implements [net.Conn].
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.write, t, func(p *polled) error { return p.SetWriteDeadline(t) })
}

func (c *Conn) setDeadline(bare *time.Time, t time.Time, set func(*polled) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.settled.Load()
	switch {
	case p != nil:
		return set(p)
	case c.closed:
		return c.failed("set", net.ErrClosed)
	}
	*bare = t
	return nil
}

// SyscallConn implements [syscall.Conn]: Read and Write tell the poller.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return rawConn{c}, nil }

type rawConn struct{ c *Conn }

func (r rawConn) Control(f func(fd uintptr)) error {
	if p := r.c.settled.Load(); p != nil {
		return p.raw.Control(f)
	}
	fd, err := r.c.acquire(nil)
	if err != nil {
		return r.c.failed("raw-control", err)
	}
	if fd < 0 {
		return r.c.settled.Load().raw.Control(f)
	}
	defer r.c.release()
	f(uintptr(fd))
	return nil
}

func (r rawConn) Read(f func(fd uintptr) bool) error {
	p, err := r.c.settle()
	if err != nil {
		return r.c.failed("raw-read", err)
	}
	return p.raw.Read(f)
}

func (r rawConn) Write(f func(fd uintptr) bool) error {
	p, err := r.c.settle()
	if err != nil {
		return r.c.failed("raw-write", err)
	}
	return p.raw.Write(f)
}
