// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/loopback"
	"github.com/memspan/memspan/internal/unixsock"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/dial"
)

// network tells what address means.
func network(address string) (network, addr string, err error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path, nil
	}
	scheme, rest, ok := strings.Cut(address, "://")
	switch {
	case ok && (scheme == "tcp" || scheme == "tls"):
		return scheme, rest, nil
	case ok:
		return "", "", &Error{Code: ErrInvalid, Op: "dial", Path: address, Message: "want unix:PATH, HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT"}
	case strings.Contains(address, "/"):
		return "unix", address, nil
	}
	return "tcp", address, nil
}

// dialLink connects to the host and tells it who the client is.
func (c *Client) dialLink(ctx context.Context) (*link, error) {
	family, addr, err := network(c.address)
	if err != nil {
		return nil, err
	}
	if family == "unix" {
		if err := unixsock.CheckPath(addr); err != nil {
			return nil, &Error{Code: ErrInvalid, Op: "dial", Message: "no host can be there", Err: err}
		}
	}
	l := &link{write: make(chan struct{}, 1), pending: make(map[int64]waiter)}
	if family == "tls" {
		err = l.dialTLS(ctx, c.address, c.tls)
	} else {
		err = l.dialPlain(ctx, family, addr, c.address)
	}
	if err != nil {
		return nil, err
	}
	l.write <- struct{}{}
	l.turn = newTurn(l.nc, l.tls)
	go l.read()
	if l.tls {
		if err := l.hello(ctx, c.token); err != nil {
			l.close()
			return nil, placed(err, "dial", c.address)
		}
	}
	return l, nil
}

// hello has the host let this client in, or say why not.
func (l *link) hello(ctx context.Context, token Secret) error {
	_, err := l.call(ctx, Request{API: APIHello, Token: token}, nil)
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" { // TLS: certificates are looked at after the handshake
		return &Error{Code: ErrDenied, Message: "the host wants another client certificate; give it in Options.TLS", Err: err}
	}
	return err
}

func (l *link) dialPlain(ctx context.Context, family, addr, address string) error {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6}}
	nc, err := d.DialContext(ctx, family, addr)
	if err != nil {
		code := ErrPeerLost
		if ctx.Err() != nil {
			code = ErrCanceled
		}
		return &Error{Code: code, Op: "dial", Path: address, Message: noHost, Err: err}
	}
	u, ok := nc.(*net.UnixConn)
	if !ok {
		l.nc = nc // replies come in one piece: there is nothing to acknowledge early
		l.secure = sync.OnceValue(func() bool {
			uid, err := loopback.PeerUser(nc)
			return err == nil && (uid == os.Getuid() || uid == 0)
		})
		return nil
	}
	uid, _, pid, err := fdpass.PeerCred(u)
	if me := os.Getuid(); err == nil && uid != me && uid != 0 && me != 0 {
		nc.Close()
		return &Error{Code: ErrDenied, Op: "dial", Path: address,
			Message: fmt.Sprintf("the host, process %d, belongs to user %d, not to you (%d) or root", pid, uid, me)}
	}
	l.files = fdpass.New(u)
	l.nc = l.files
	l.secure = func() bool { return true }
	return nil
}

const noHost = "no host answers; start one with: memspan host --dir DIRECTORY"

func (l *link) dialTLS(ctx context.Context, address string, base *tls.Config) error {
	tc, err := dial.DialTLS(ctx, address, base)
	if err == nil {
		l.nc, l.tls = tc, true
		l.secure = func() bool { return true }
		return nil
	}
	e := &Error{Code: ErrPeerLost, Op: "dial", Path: address, Err: err}
	if known := (*wire.Error)(nil); errors.As(err, &known) {
		// The address is said already.
		e.Message, e.Err = strings.TrimPrefix(strings.TrimPrefix(known.Message, address), ": "), known.Err
	}
	switch {
	case errors.Is(err, wire.Canceled):
		e.Code = ErrCanceled
	case errors.Is(err, wire.Invalid):
		e.Code = ErrInvalid
	case errors.Is(err, wire.Unauthenticated):
		e.Code = ErrDenied
	default:
		e.Message = noHost
	}
	return e
}
