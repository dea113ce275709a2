// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package unixsock

import "net"

// A Conn is a unix stream connection.
type Conn = net.UnixConn

// Dial connects to the socket at path.
func Dial(path string) (*Conn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
}

// A Listener accepts connections.
type Listener struct{ *net.UnixListener }

// Listen returns a Listener in place of ln, which it owns from now on.
func Listen(ln *net.UnixListener) (*Listener, error) { return &Listener{ln}, nil }

// AcceptConn waits for the next connection, and calls waits, if it is not nil, at once.
func (l *Listener) AcceptConn(waits func()) (*Conn, error) {
	c, err := l.AcceptUnix()
	if err == nil && waits != nil {
		waits()
	}
	return c, err
}
