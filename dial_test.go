// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

func TestDefaultAddress(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("MEMSPAN_SOCKET", "")
	if a := memspan.DefaultAddress(); filepath.Base(a) != "memspan.sock" || !strings.Contains(a, "memspan-") {
		t.Errorf("without a runtime directory: %s", a)
	}
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	if a := memspan.DefaultAddress(); a != "/run/user/7/memspan.sock" {
		t.Errorf("with a runtime directory: %s", a)
	}
	t.Setenv("MEMSPAN_SOCKET", "/x/y")
	if a := memspan.DefaultAddress(); a != "/x/y" {
		t.Errorf("with MEMSPAN_SOCKET: %s", a)
	}
	srv := serve(t, server.Config{})
	t.Setenv("MEMSPAN_SOCKET", strings.TrimPrefix(srv.unix, "unix:"))
	dial(t, "", nil)
	dial(t, memspan.DefaultAddress(), nil)
}

func TestBadAddress(t *testing.T) {
	for _, address := range []string{
		"memspan.sock", "unix:", "host:1", "http://host:1", "tcp://host", "tcp://:1", "tls://host:", "tcp://", "tls://[::1",
		"tcp://127.0.0.1:1#" + strings.Repeat("0", 64), "tls://host:1#", "tls://host:1#12", "tls://host:1#" + strings.Repeat("x", 64),
	} {
		if _, err := memspan.Dial(t.Context(), address, nil); !errors.Is(err, memspan.ErrInvalid) {
			t.Errorf("Dial(%q) = %v", address, err)
		}
	}
	for _, long := range []string{"unix:/run/" + strings.Repeat("x", 200), "/run/" + strings.Repeat("x", 200)} {
		_, err := memspan.Dial(t.Context(), long, nil)
		if !errors.Is(err, memspan.ErrInvalid) || !strings.Contains(err.Error(), "has 205 bytes") {
			t.Errorf("Dial(%q) = %v", long, err)
		}
	}
	if _, err := memspan.Dial(t.Context(), "tcp://192.0.2.1:1", nil); !errors.Is(err, memspan.ErrInvalid) || !strings.Contains(err.Error(), "tls://") {
		t.Errorf("plain TCP off loopback: %v", err)
	}
	for _, opts := range []memspan.Options{{IOTimeout: -1}, {Tracking: 77}} {
		if _, err := memspan.Dial(t.Context(), "unix:x", &opts); !errors.Is(err, memspan.ErrInvalid) {
			t.Errorf("Dial with %+v = %v", opts, err)
		}
	}
}

func TestNoServer(t *testing.T) {
	_, err := memspan.Dial(t.Context(), filepath.Join(t.TempDir(), "s"), nil)
	if !errors.Is(err, memspan.ErrPeerLost) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "memspan serve") {
		t.Errorf("Dial = %v", err)
	}
}

func TestTokenAndCertificate(t *testing.T) {
	srv := serve(t, server.Config{})
	for _, test := range []struct {
		name, address, token string
		tls                  *tls.Config
		want                 error
	}{
		{"tcp, no token", srv.tcp, "", nil, memspan.ErrUnauthenticated},
		{"tcp, wrong token", srv.tcp, "guess", nil, memspan.ErrUnauthenticated},
		{"tls, unknown authority", srv.tls, secret, nil, memspan.ErrUnauthenticated},
		{"tls, wrong fingerprint", srv.tls + "#" + strings.Repeat("00", 32), secret, nil, memspan.ErrUnauthenticated},
		{"tls, wrong name", srv.tls, secret, &tls.Config{RootCAs: srv.roots, ServerName: "other"}, memspan.ErrUnauthenticated},
		{"tls, wrong token", srv.tls + "#" + srv.fingerprint, "guess", nil, memspan.ErrUnauthenticated},
		{"tls, fingerprint", srv.tls + "#" + srv.fingerprint, secret, nil, nil},
		{"tcp to a port with TLS", "tcp://" + strings.TrimPrefix(srv.tls, "tls://"), secret, nil, memspan.ErrInvalid},
		{"tls to a port without", "tls://" + strings.TrimPrefix(srv.tcp, "tcp://"), secret, nil, memspan.ErrInvalid},
		{"tls, authority", srv.tls, secret, &tls.Config{RootCAs: srv.roots, ServerName: "memspan"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := memspan.Dial(t.Context(), test.address, &memspan.Options{Token: test.token, TLS: test.tls})
			if !errors.Is(err, test.want) {
				t.Fatalf("Dial = %v, want %v", err, test.want)
			}
			if c != nil {
				c.Close()
				return
			}
			var e *memspan.Error
			if !errors.As(err, &e) || strings.Count(err.Error(), e.Code.String()) != 1 {
				t.Errorf("Dial = %v, want its code once", err)
			}
			if other, ok := map[string]string{"tcp to a port with TLS": "use tls://", "tls to a port without": "use tcp://"}[test.name]; ok && !strings.Contains(err.Error(), other) {
				t.Errorf("Dial = %v, which does not say: %s", err, other)
			}
		})
	}
}

// A server may want certificates instead of a token.
func TestClientCertificate(t *testing.T) {
	srv := serve(t, server.Config{})
	theirs, _, err := server.SelfSigned(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ours := x509.NewCertPool()
	ours.AddCert(theirs.Leaf)
	address := srv.listen(t, "tls://", "tcp", "127.0.0.1:0", func(ln net.Listener) net.Listener {
		return server.TLSListener(ln, &tls.Config{
			Certificates: []tls.Certificate{srv.cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours,
		})
	}) + "#" + srv.fingerprint
	if _, err := memspan.Dial(t.Context(), address, nil); !errors.Is(err, memspan.ErrUnauthenticated) || !strings.Contains(err.Error(), "Options.TLS") {
		t.Errorf("Dial without a certificate = %v", err)
	}
}

// What a server answers to the greeting.
func TestGreeting(t *testing.T) {
	for name, test := range map[string]struct {
		answer func(p *peer, f frame)
		want   error
	}{
		"refusal":     {func(p *peer, f frame) { p.refuse(f, &wire.Error{Code: wire.Limit, Message: "full"}) }, memspan.ErrLimit},
		"version":     {func(p *peer, f frame) { w := welcome; w.Protocol = 2; p.reply(f, w) }, memspan.ErrBadVersion},
		"header":      {func(p *peer, f frame) { b := f.Append(nil); b[4] = 9; p.raw.Write(b) }, memspan.ErrBadVersion},
		"garbage":     {func(p *peer, f frame) { p.raw.Write(make([]byte, 32)) }, memspan.ErrInvalid},
		"not JSON":    {func(p *peer, f frame) { p.answer(f, nil, []byte("?")) }, memspan.ErrPeerLost},
		"block size":  {func(p *peer, f frame) { w := welcome; w.BlockSize = 3 << 20; p.reply(f, w) }, memspan.ErrPeerLost},
		"other frame": {func(p *peer, f frame) { f.Kind = wire.KindControl; p.reply(f, welcome) }, memspan.ErrPeerLost},
		"nothing":     {func(p *peer, f frame) {}, memspan.ErrPeerLost},
	} {
		t.Run(name, func(t *testing.T) {
			address := listen(t, func(p *peer) {
				f, _ := p.next()
				test.answer(p, f)
			})
			if _, err := memspan.Dial(t.Context(), address, nil); !errors.Is(err, test.want) {
				t.Errorf("Dial = %v, want %v", err, test.want)
			}
		})
	}
}

func TestHello(t *testing.T) {
	hello := make(chan control.Hello, 1)
	address := listen(t, func(p *peer) {
		f, _ := p.next()
		var h control.Hello
		p.decode(f.data, &h)
		hello <- h
		p.reply(f, welcome)
	})
	c, err := memspan.Dial(t.Context(), address, &memspan.Options{Token: "secret", Name: "me"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Tiers() != welcome.Tiers {
		t.Errorf("Tiers = %v", c.Tiers())
	}
	// A unix socket needs neither token nor compression.
	if h, want := <-hello, (control.Hello{Protocol: wire.Version, Client: "me"}); h != want {
		t.Errorf("the client says %+v, want %+v", h, want)
	}
}

func TestDialCanceled(t *testing.T) {
	greeted := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-greeted
		cancel()
	}()
	address := listen(t, func(p *peer) {
		p.next()
		close(greeted)
		p.next() // until the client leaves
	})
	if _, err := memspan.Dial(ctx, address, nil); !errors.Is(err, context.Canceled) || !errors.Is(err, memspan.ErrCanceled) {
		t.Errorf("Dial = %v", err)
	}
}
