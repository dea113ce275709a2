// SPDX-License-Identifier: Apache-2.0

package sockopt

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxVector is how many pieces a system call takes.
const maxVector = 1024

// WriteQuietly writes all of v to a stream socket, as v.WriteTo does, but a peer
// that is gone raises no SIGPIPE. The Go runtime catches that in programs of its
// own; where it is a guest, its host may have taken the signal back, and dies.
func WriteQuietly(c syscall.RawConn, v *net.Buffers) (int64, error) {
	var written int64
	var failed error
	err := c.Write(func(fd uintptr) bool {
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

// SendQuietly sends what a unix socket takes of p at once, with descriptors
// attached, as WriteQuietly does.
func SendQuietly(c syscall.RawConn, p []byte, fds []int) (n int, err error) {
	var failed error
	err = c.Write(func(fd uintptr) bool {
		for {
			n, failed = unix.SendmsgN(int(fd), p, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
			if failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	})
	if err == nil && failed != nil {
		err = os.NewSyscallError("sendmsg", failed)
	}
	return n, err
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

// A Quiet is a TCP connection whose writes raise no SIGPIPE: see WriteQuietly.
type Quiet struct {
	*net.TCPConn
	raw syscall.RawConn
}

// QuietOf returns c as one, or c itself if it is no TCP connection.
func QuietOf(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return c
	}
	return &Quiet{t, raw}
}

// Write writes p, whole unless it fails.
func (c *Quiet) Write(p []byte) (int, error) {
	n, err := WriteQuietly(c.raw, &net.Buffers{p})
	return int(n), err
}

// WriteBuffers writes all of v as one gathering write.
func (c *Quiet) WriteBuffers(v *net.Buffers) (int64, error) { return WriteQuietly(c.raw, v) }
