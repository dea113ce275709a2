// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/loopback"
	"github.com/memspan/memspan/internal/sockopt"
	"github.com/memspan/memspan/internal/tlslisten"
	"github.com/memspan/memspan/sharedbuf"
)

// TLSListener wraps a TCP listener so that Serve speaks TLS 1.3 on it. There it
// lets in clients whose certificates the configuration has had verified, and
// those that present Config.Token, from wherever they come.
func TLSListener(ln net.Listener, config *tls.Config) net.Listener { return tlslisten.New(ln, config) }

// A guest is who is at the other end of a connection.
type guest struct {
	uid     int  // -1: not known
	secure  bool // nobody else reads or writes the connection, nor is in his place
	unknown bool // he has yet to prove who he is, by the token
}

// admit serves a connection if it may be.
func (h *Host) admit(ctx context.Context, accepted net.Conn) {
	defer accepted.Close()
	stop := context.AfterFunc(ctx, func() { accepted.Close() })
	defer stop()
	// Those that are too many are told so, if they are not far too many.
	full := !h.conns.TryAcquire(1)
	if full && !h.refusals.TryAcquire(1) {
		return
	}
	nc, who, err := h.meet(ctx, accepted)
	if full {
		defer h.refusals.Release(1)
		err = &sharedbuf.Error{Code: sharedbuf.ErrLimit, Message: fmt.Sprintf("there are %d connections already", h.config.MaxConnections)}
	} else {
		defer h.conns.Release(1)
	}
	if err != nil {
		h.config.Logger.Warn("connection refused", "from", accepted.RemoteAddr(), "error", err)
		nc.SetWriteDeadline(time.Now().Add(h.config.IOTimeout))
		nc.Write(sharedbuf.AppendReply(nil, 0, nil, err)) // it may be gone
		linger(nc)
		return
	}
	newConn(h, nc, who).serve(ctx)
}

// meet finds out who is at the other end, or why he is not let in. It returns the
// connection to speak on.
func (h *Host) meet(ctx context.Context, nc net.Conn) (net.Conn, guest, error) {
	t, ok := nc.(*tlslisten.Conn)
	if !ok {
		who, err := h.peer(nc)
		if _, unix := nc.(*net.UnixConn); !unix {
			nc = sockopt.Acknowledging(nc)
		}
		return nc, who, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.config.IOTimeout)
	defer cancel()
	tc := tls.Server(sockopt.Acknowledging(t.Conn), t.Config)
	if err := tc.HandshakeContext(ctx); err != nil {
		linger(t.Conn) // what TLS has said is to arrive
		return tc, guest{}, &sharedbuf.Error{Code: sharedbuf.ErrDenied, Message: "no TLS could be spoken", Err: err}
	}
	return tc, guest{uid: -1, secure: true, unknown: len(tc.ConnectionState().VerifiedChains) == 0}, nil
}

// hello is the first request of a guest who is not known. Its error ends the
// connection.
func (c *conn) hello(r *sharedbuf.Request) error {
	if !c.guest.unknown {
		return nil
	}
	// Sums are of one length: how long the token is does not show.
	got, want := sha256.Sum256([]byte(r.Token)), sha256.Sum256([]byte(c.h.config.Token))
	switch {
	case r.API != sharedbuf.APIHello || r.Token == "":
		return &sharedbuf.Error{Code: sharedbuf.ErrDenied, Op: r.API, Message: "this host wants a token, or a client certificate"}
	case c.h.config.Token == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1:
		return &sharedbuf.Error{Code: sharedbuf.ErrDenied, Op: r.API, Message: "this host has another token"}
	}
	c.guest.unknown = false
	c.nc.SetReadDeadline(time.Time{}) // from now on he may take his time
	return nil
}

// peer returns who is at the other end of a connection without TLS, or why he is
// not let in.
func (h *Host) peer(nc net.Conn) (who guest, err error) {
	denied := func(cause error, format string, args ...any) (guest, error) {
		return guest{}, &sharedbuf.Error{Code: sharedbuf.ErrDenied, Message: fmt.Sprintf(format, args...), Err: cause}
	}
	from, uid := "the other end", -1
	if c, ok := nc.(*net.UnixConn); ok {
		uid, _, _, err = fdpass.PeerCred(c)
	} else {
		addr, ok := nc.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return denied(nil, "who connects can be told over unix sockets and TCP only")
		}
		from = addr.IP.String()
		ip := addr.AddrPort().Addr().Unmap()
		trusted := slices.ContainsFunc(h.config.Trust, func(p netip.Prefix) bool { return p.Contains(ip) })
		if !ip.IsLoopback() {
			if trusted {
				return guest{uid: -1}, nil
			}
			return denied(nil, "%s is not trusted: the host lets in its own machine, networks given with --trust, and over TLS whoever has the token", ip)
		}
		uid, err = loopback.PeerUser(nc)
		if trusted && (err != nil || uid != os.Getuid() && uid != 0) {
			if err != nil {
				uid = -1
			}
			return guest{uid: uid}, nil
		}
	}
	if err != nil {
		return denied(err, "whose process %s is cannot be told", from)
	}
	if uid != os.Getuid() && uid != 0 {
		return denied(nil, "this is user %d's host, and you are %d", os.Getuid(), uid)
	}
	return guest{uid: uid, secure: true}, nil
}
