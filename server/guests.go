// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/memspan/memspan/wire"
)

// guests counts connections that may pull surfaces alone; the server's mu guards it.
type guests struct {
	all  int
	from map[string]int // by address, as guestAddress tells
}

// guestAddress returns what counts as one address: of IPv6 what one network has, 64
// bits, of which a machine takes as many addresses as it likes. It is empty for who
// comes over a unix socket: this server's own user, who may do anything else too.
func guestAddress(peer string) string {
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if ip = ip.Unmap().WithZone(""); ip.Is6() && !ip.IsLoopback() {
		return netip.PrefixFrom(ip, 64).Masked().String()
	}
	return ip.String()
}

// admitGuest counts a guest from an address, or returns the error to tell him.
// The caller holds mu.
func (srv *Server) admitGuest(from string) error {
	most := max(srv.limits.Guests/4, 1)
	switch {
	case srv.guests.all >= srv.limits.Guests:
		return &wire.Error{Code: wire.Limit, Op: "dial", Message: fmt.Sprintf("the server has %d guests", srv.guests.all)}
	case from != "" && srv.guests.from[from] >= most:
		return &wire.Error{Code: wire.Limit, Op: "dial", Message: fmt.Sprintf("the server has %d guests from %s", most, from)}
	}
	srv.guests.all++
	srv.guests.from[from]++
	return nil
}

// dismissGuest takes one from an address off the count. The caller holds mu.
func (srv *Server) dismissGuest(from string) {
	srv.guests.all--
	if srv.guests.from[from]--; srv.guests.from[from] == 0 {
		delete(srv.guests.from, from)
	}
}

// GuestListener returns a listener whose connections count as guests, for what serves
// [Server.Handler]: those beyond [Limits].Guests are closed as they come.
func (srv *Server) GuestListener(ln net.Listener) net.Listener {
	return &guestListener{Listener: ln, srv: srv}
}

type guestListener struct {
	net.Listener
	srv *Server
}

// Accept implements net.Listener.
func (l *guestListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &guestConn{Conn: nc, srv: l.srv, from: guestAddress(nc.RemoteAddr().String())}
		l.srv.mu.Lock()
		err = l.srv.admitGuest(c.from)
		l.srv.mu.Unlock()
		if err == nil {
			return c, nil
		}
		l.srv.log.Warn("connection refused", "peer", nc.RemoteAddr(), "error", err)
		nc.Close()
	}
}

// A guestConn counts as a guest until it is closed.
type guestConn struct {
	net.Conn
	srv  *Server
	from string
	once sync.Once
}

// Close implements net.Conn.
func (c *guestConn) Close() error {
	c.once.Do(func() {
		c.srv.mu.Lock()
		defer c.srv.mu.Unlock()
		c.srv.dismissGuest(c.from)
	})
	return c.Conn.Close()
}
