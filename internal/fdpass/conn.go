// SPDX-License-Identifier: Apache-2.0

package fdpass

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxFiles is how many files one write may carry.
	MaxFiles = 16
	// maxQueued bounds the files that a peer can make this process hold open
	// unasked.
	maxQueued = 64
)

var (
	// ErrNoFile is returned by Take when no received file is waiting.
	ErrNoFile = errors.New("fdpass: the peer sent no file")
	// ErrTooMany is returned by Read when the peer attached more files than
	// this side accepts, or when this process has no descriptors left for
	// them. The files are closed and the connection is of no more use.
	ErrTooMany = errors.New("fdpass: more files received than can be held")
)

// A Socket is a unix stream connection: a [*net.UnixConn], a unixsock.Conn, or a
// sockopt.Plain on such a socket.
type Socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
	WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
}

// A Conn is a unix stream connection that keeps the files it receives. It
// implements [net.Conn] and [syscall.Conn]; its methods may be called
// concurrently.
type Conn struct {
	unix Socket

	readMu  sync.Mutex
	oob     []byte // room for the control data of one message, reused
	readErr error  // set for good once files were refused
	read    int64  // bytes returned so far

	writeMu sync.Mutex // a message sent in two parts stays in one piece

	queueMu sync.Mutex
	queue   []arrival
	closed  bool
}

// An arrival is a file that nobody has taken.
type arrival struct {
	file *os.File
	at   int64 // how many bytes had been read, with those that it came with
}

var (
	_ net.Conn     = (*Conn)(nil)
	_ syscall.Conn = (*Conn)(nil)
)

// New returns a Conn that reads and writes c and owns it from now on. Reading c
// itself any further would lose files.
func New(c Socket) *Conn {
	return &Conn{unix: c, oob: make([]byte, controlSpace())}
}

// Read reads bytes as net.Conn's does. Files that came with them are queued
// for Take, close-on-exec. If they are too many, all files are closed and this
// and every later Read fails with ErrTooMany.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // recvmsg would read, and lose, a byte to carry control data
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.readErr != nil {
		return 0, c.readErr
	}
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(p, c.oob)
	n = max(n, 0) // -1 where it failed
	c.read += int64(n)
	if oobn > 0 || flags != 0 {
		if rerr := c.receive(c.oob[:oobn], flags); rerr != nil {
			c.readErr = rerr
			c.closeQueued(false)
			return 0, rerr
		}
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // ReadMsgUnix wraps it, and readers compare
	}
	return n, err
}

// receive queues the files of one message's control data.
func (c *Conn) receive(oob []byte, flags int) error {
	files, err := parseFiles(oob, flags)
	if err == nil {
		c.queueMu.Lock()
		defer c.queueMu.Unlock()
		switch {
		case c.closed:
			err = net.ErrClosed
		case len(c.queue)+len(files) > maxQueued:
			err = fmt.Errorf("%w: %d wait and %d more came, the limit is %d", ErrTooMany, len(c.queue), len(files), maxQueued)
		default:
			for _, f := range files {
				c.queue = append(c.queue, arrival{f, c.read})
			}
			return nil
		}
	}
	closeAll(files)
	return err
}

// Take returns the file that arrived first of those not yet taken. The caller
// closes it. It never waits: if there is none it returns ErrNoFile.
func (c *Conn) Take() (*os.File, error) { return c.take(math.MaxInt64) }

// TakeRead is Take of those files alone that came with what Read has returned, but
// for the last unread bytes of it, which its caller has yet to look at: one message's,
// if those of the messages before it were taken. Only the goroutine that reads may call
// it.
func (c *Conn) TakeRead(unread int) (*os.File, error) { return c.take(c.read - int64(unread)) }

// take is Take of files that came with the first n bytes.
func (c *Conn) take(n int64) (*os.File, error) {
	c.queueMu.Lock()
	defer c.queueMu.Unlock()
	if len(c.queue) == 0 || c.queue[0].at > n {
		return nil, ErrNoFile
	}
	f := c.queue[0].file
	c.queue[0] = arrival{}
	c.queue = c.queue[1:]
	return f, nil
}

// Write writes p, whole unless it fails.
func (c *Conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.unix.Write(p)
}

// WriteBuffers writes all of v as one gathering write, as v.WriteTo does for
// the connections of package net only.
func (c *Conn) WriteBuffers(v *net.Buffers) (int64, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if g, ok := c.unix.(interface {
		WriteBuffers(*net.Buffers) (int64, error)
	}); ok {
		return g.WriteBuffers(v)
	}
	return v.WriteTo(c.unix)
}

// WriteWithFiles writes p, which must not be empty, with up to MaxFiles files
// attached to its first byte. The files stay open and the caller's.
func (c *Conn) WriteWithFiles(p []byte, files ...*os.File) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return write(c.unix, p, files)
}

// Send writes data, which must not be empty, to conn with up to MaxFiles files
// attached to its first byte. The files stay open and the caller's.
func Send(conn *net.UnixConn, data []byte, files ...*os.File) error {
	_, err := write(conn, data, files)
	return err
}

func write(conn Socket, p []byte, files []*os.File) (n int, err error) {
	if len(files) == 0 {
		return conn.Write(p)
	}
	n, err = sendFirst(p, files, func(fds []int) (int, error) { return writeFirst(conn, p, fds) })
	if err == nil && n < len(p) {
		m, err := conn.Write(p[n:])
		return n + m, err
	}
	return n, err
}

// sendFirst has send send what the socket takes of p at once, with files.
func sendFirst(p []byte, files []*os.File, send func(fds []int) (int, error)) (n int, err error) {
	if len(files) > MaxFiles {
		return 0, fmt.Errorf("fdpass: send %d files: at most %d go with one write", len(files), MaxFiles)
	}
	if len(p) == 0 {
		return 0, errors.New("fdpass: send files: they need at least one byte to travel with")
	}
	if err := withDescriptors(files, nil, func(fds []int) error {
		n, err = send(fds)
		return err
	}); err != nil {
		return n, fmt.Errorf("fdpass: send %d files: %w", len(files), err)
	}
	return n, nil
}

// withDescriptors calls f with the descriptors of files, none of which can be
// closed, and its number reused, before f returns.
func withDescriptors(files []*os.File, fds []int, f func(fds []int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = withDescriptors(files[1:], append(fds, int(fd)), f)
	}); cerr != nil {
		return cerr
	}
	return err
}

// Close closes the connection and the files that nobody took.
func (c *Conn) Close() error {
	err := c.unix.Close()
	c.closeQueued(true)
	return err
}

func (c *Conn) closeQueued(last bool) {
	c.queueMu.Lock()
	defer c.queueMu.Unlock()
	c.closed = c.closed || last
	for _, a := range c.queue {
		a.file.Close()
	}
	c.queue = nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// CloseWrite ends the bytes that the peer reads; reading goes on.
func (c *Conn) CloseWrite() error { return c.unix.CloseWrite() }

// LocalAddr returns the socket's own address.
func (c *Conn) LocalAddr() net.Addr { return c.unix.LocalAddr() }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.unix.RemoteAddr() }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.unix.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.unix.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.unix.SetWriteDeadline(t) }

// SyscallConn returns the socket for socket options.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.unix.SyscallConn() }
