// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
)

const secret = "open sesame"

// A service is a server in this process, with an address of each kind.
type service struct {
	*server.Server
	unix, tcp, tls string
	cert           tls.Certificate
	fingerprint    string
	roots          *x509.CertPool

	listeners sync.WaitGroup
	once      sync.Once
}

// serve starts a server of RAM alone that ends with the test.
func serve(t testing.TB, cfg server.Config) *service {
	t.Helper()
	cfg.Token = secret
	if cfg.HostBudget == 0 {
		cfg.HostBudget = 1 << 30
	}
	srv, err := server.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{Server: srv, roots: x509.NewCertPool()}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.stop(ctx); err != nil {
			t.Error(err)
		}
		s.listeners.Wait()
	})
	s.cert, s.fingerprint, err = server.SelfSigned(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AddCert(s.cert.Leaf)
	plain := func(ln net.Listener) net.Listener { return ln }
	s.unix = s.listen(t, "unix:", "unix", filepath.Join(t.TempDir(), "s"), plain)
	s.tcp = s.listen(t, "tcp://", "tcp", "127.0.0.1:0", plain)
	s.tls = s.listen(t, "tls://", "tcp", "127.0.0.1:0", func(ln net.Listener) net.Listener {
		return server.TLSListener(ln, &tls.Config{Certificates: []tls.Certificate{s.cert}})
	})
	return s
}

// listen serves at one more address and returns it with the prefix.
func (s *service) listen(t testing.TB, prefix, network, addr string, wrap func(net.Listener) net.Listener) string {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	s.listeners.Go(func() {
		if err := s.Serve(context.Background(), wrap(ln)); err != nil {
			t.Error(err)
		}
	})
	return prefix + ln.Addr().String()
}

// stop shuts the server down, once.
func (s *service) stop(ctx context.Context) (err error) {
	s.once.Do(func() { err = s.Shutdown(ctx) })
	return err
}

// dial connects with the service's token; the client ends with the test.
func dial(t testing.TB, address string, opts *memspan.Options) *memspan.Client {
	t.Helper()
	if opts == nil {
		opts = new(memspan.Options)
	}
	opts.Token = secret
	c, err := memspan.Dial(t.Context(), address, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// each runs a test over every kind of connection.
func each(t *testing.T, f func(t *testing.T, c, other *memspan.Client)) {
	srv := serve(t, server.Config{})
	for _, transport := range []struct {
		name, address string
	}{
		{"unix", srv.unix},
		{"tcp", srv.tcp},
		{"tls", srv.tls + "#" + srv.fingerprint},
	} {
		t.Run(transport.name, func(t *testing.T) {
			f(t, dial(t, transport.address, nil), dial(t, srv.unix, nil))
		})
	}
}

func alloc(t testing.TB, c *memspan.Client, size int64) *memspan.Span {
	t.Helper()
	s, err := c.Alloc(t.Context(), memspan.SpanConfig{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// pattern fills b with bytes that depend on the seed and their place.
func pattern(b []byte, seed uint64) {
	for i := range b[:len(b)&7] { // what is no whole word
		b[i] = byte(seed) + byte(i)
	}
	for i, b := uint64(0), b[len(b)&7:]; len(b) > 0; i, b = i+1, b[8:] {
		binary.LittleEndian.PutUint64(b, (i+seed)*0x9e3779b97f4a7c15)
	}
}
