// SPDX-License-Identifier: Apache-2.0

package unixsock

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Listener accepts connections.
type Listener struct {
	*net.UnixListener
	file   *os.File // a duplicate, by which one waits and accepts
	raw    syscall.RawConn
	closed atomic.Bool
}

// Listen returns a Listener in place of ln, which it owns from now on.
func Listen(ln *net.UnixListener) (*Listener, error) {
	file, err := ln.File()
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Listener{UnixListener: ln, file: file, raw: raw}, nil
}

// Accept implements [net.Listener]: it returns a *Conn.
func (l *Listener) Accept() (net.Conn, error) { return l.AcceptConn(nil) }

// AcceptConn waits for the next connection. Waits, if it is not nil, is called once:
// before operations on the connection wait for its peer, but for a tenth of a millisecond
// in all.
func (l *Listener) AcceptConn(waits func()) (*Conn, error) {
	fd := -1
	var failed error
	err := l.raw.Read(func(ln uintptr) bool {
		failed = ignoringEINTR(func() (err error) {
			fd, _, err = unix.Accept4(int(ln), unix.SOCK_CLOEXEC)
			return err
		})
		return failed != unix.EAGAIN
	})
	switch {
	case err != nil && l.closed.Load(): // package os has no name for it here
		err = net.ErrClosed
	case err == nil:
		err = os.NewSyscallError("accept4", failed)
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "unix", Source: l.Addr(), Err: err}
	}
	return newConn(fd, l.Addr(), &net.UnixAddr{Net: "unix"}, waits), nil
}

// Close implements [net.Listener].
func (l *Listener) Close() error {
	l.closed.Store(true)
	return errors.Join(l.UnixListener.Close(), l.file.Close())
}
