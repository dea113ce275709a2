// SPDX-License-Identifier: Apache-2.0

// Package tlslisten accepts connections that whoever serves them makes TLS: below
// the encryption there is something to be done first, like taking care that bytes
// move, and a listener that shook hands itself would hold up all others.
package tlslisten

import (
	"crypto/tls"
	"net"
)

// A Listener accepts *Conn.
type Listener struct {
	net.Listener
	Config *tls.Config // not to be changed; TLS 1.3 at least
}

// A Conn is a connection that is yet to be made TLS, as Config says.
type Conn struct {
	net.Conn
	Config *tls.Config
}

// New returns a Listener that accepts from ln. It copies config, and requires
// TLS 1.3.
func New(ln net.Listener, config *tls.Config) *Listener {
	config = config.Clone()
	config.MinVersion = tls.VersionTLS13
	return &Listener{ln, config}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Conn{nc, l.Config}, nil
}
