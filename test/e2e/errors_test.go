// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// refusal checks that an error is of a kind, says what it is about, and is one
// of package memspan.
func refusal(t testing.TB, what string, err error, kind memspan.Code, says ...string) {
	t.Helper()
	var e *memspan.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Errorf("%s: %v, want %v", what, err, kind)
		return
	}
	for _, word := range says {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %q does not say %q", what, err, word)
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	const budget = 64 << 20
	d := start(t, settings{HostBudget: budget})
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			ctx := t.Context()
			c := d.dial(t, transport)
			_, err := c.Open(ctx, "nobody")
			refusal(t, "unknown name", err, memspan.ErrNotFound, "open", `"nobody"`)
			_, err = c.Open(ctx, strings.Repeat("0", 32))
			refusal(t, "unknown id", err, memspan.ErrNotFound)
			_, err = c.Open(ctx, "")
			refusal(t, "no name", err, memspan.ErrNotFound)

			for name, cfg := range map[string]struct {
				memspan.SpanConfig
				kind memspan.Code
			}{
				"zero size":      {memspan.SpanConfig{}, memspan.ErrInvalid},
				"negative size":  {memspan.SpanConfig{Size: -1}, memspan.ErrInvalid},
				"absurd size":    {memspan.SpanConfig{Size: 1 << 62}, memspan.ErrInvalid},
				"over budget":    {memspan.SpanConfig{Size: budget + 1}, memspan.ErrBudget},
				"far over it":    {memspan.SpanConfig{Size: 1 << 39}, memspan.ErrBudget},
				"no VRAM":        {memspan.SpanConfig{Size: 1, Tier: memspan.On(memspan.VRAM)}, memspan.ErrTierAbsent},
				"no VRAM home":   {memspan.SpanConfig{Size: 1, Home: memspan.On(memspan.VRAM)}, memspan.ErrTierAbsent},
				"no disk":        {memspan.SpanConfig{Size: 1, Home: memspan.On(memspan.Disk)}, memspan.ErrTierAbsent},
				"long name":      {memspan.SpanConfig{Size: 1, Name: strings.Repeat("x", 300)}, memspan.ErrInvalid},
				"unprintable":    {memspan.SpanConfig{Size: 1, Name: "a\nb"}, memspan.ErrInvalid},
				"odd placement":  {memspan.SpanConfig{Size: 1, Placement: "attic"}, memspan.ErrInvalid},
				"unknown policy": {memspan.SpanConfig{Size: 1, Policy: 77}, memspan.ErrInvalid},
			} {
				_, err := c.Alloc(ctx, cfg.SpanConfig)
				refusal(t, name, err, cfg.kind, "alloc")
			}

			const size = 10000
			s := alloc(t, c, memspan.SpanConfig{Name: "s-" + transport, Size: size})
			_, err = c.Alloc(ctx, memspan.SpanConfig{Name: s.Name(), Size: 1})
			refusal(t, "name taken", err, memspan.ErrExists, s.Name())

			p := make([]byte, 100)
			for _, off := range []int64{-1, size - 99, size, size + 1, 1 << 62, -1 << 63, 1<<63 - 1} {
				n, err := s.WriteAt(ctx, p, off)
				refusal(t, "write out of range", err, memspan.ErrOutOfRange, s.Name())
				n2, err := s.ReadAt(ctx, p, off)
				refusal(t, "read out of range", err, memspan.ErrOutOfRange, s.Name())
				if n != 0 || n2 != 0 {
					t.Errorf("at %d: %d bytes written, %d read beside the error", off, n, n2)
				}
				_, err = s.Map(ctx, off, 100, memspan.ReadOnly)
				refusal(t, "map out of range", err, memspan.ErrOutOfRange)
				_, err = s.Fill(ctx, off, 100, 0)
				refusal(t, "fill out of range", err, memspan.ErrOutOfRange)
				_, err = s.Copy(ctx, off, s, 0, 100)
				refusal(t, "copy out of range", err, memspan.ErrOutOfRange)
				_, err = s.Copy(ctx, 0, s, off, 100)
				refusal(t, "copy from out of range", err, memspan.ErrOutOfRange)
			}
			_, err = s.Map(ctx, 0, 0, memspan.ReadOnly)
			refusal(t, "map of nothing", err, memspan.ErrInvalid)
			_, err = s.Map(ctx, 0, -5, memspan.ReadOnly)
			refusal(t, "map of less than nothing", err, memspan.ErrInvalid)
			_, err = s.Map(ctx, 0, 10, 4)
			refusal(t, "unknown mode", err, memspan.ErrWrongMode)
			_, err = s.Copy(ctx, 0, s, 50, 100)
			refusal(t, "overlapping copy", err, memspan.ErrInvalid)
			_, err = s.Upload(ctx)
			refusal(t, "upload without a GPU", err, memspan.ErrTierAbsent)

			m := mapped(t, s, 0, size, memspan.ReadOnly)
			_, err = m.Flush(ctx)
			refusal(t, "flush of a read-only mapping", err, memspan.ErrWrongMode, s.Name())
			unmap(t, m)
			refusal(t, "double unmap", m.Unmap(ctx), memspan.ErrNotMapped, "unmap", s.Name())
			refusal(t, "discard of unmapped", m.Discard(ctx), memspan.ErrNotMapped)
			refusal(t, "invalidate of unmapped", m.Invalidate(ctx), memspan.ErrNotMapped)
			_, err = m.Flush(ctx)
			refusal(t, "flush of unmapped", err, memspan.ErrNotMapped)
			want(t, "an unmapped mapping", m.Err(), memspan.ErrNotMapped)

			afterFree(t, d, c, s)
			ended, cancel := context.WithCancel(ctx)
			cancel()
			_, err = c.Alloc(ended, memspan.SpanConfig{Size: 1})
			refusal(t, "with a context that has ended", err, memspan.ErrCanceled)
			want(t, "with a context that has ended", err, context.Canceled)
			afterClose(t, d, transport)
		})
	}
	c := d.dial(t, "unix")
	eventually(t, "no span is left", func() bool { // the server has yet to learn of the last connection's end
		st, err := c.Stats(t.Context())
		check(t, err)
		return st.Coherency.Total == 0
	})
}

// afterFree checks what becomes of a span that was freed by its user, and of
// other handles to it.
func afterFree(t *testing.T, d *daemon, c *memspan.Client, s *memspan.Span) {
	ctx := t.Context()
	other := open(t, d.dial(t, "unix"), s)
	closed := open(t, c, s)
	check(t, closed.Close())
	check(t, closed.Close())
	_, err := closed.ReadAt(ctx, make([]byte, 1), 0)
	refusal(t, "read of a closed span", err, memspan.ErrClosed, s.Name())
	check(t, s.Free(ctx))
	for _, o := range []*memspan.Span{s, other} {
		refusal(t, "second free", o.Free(ctx), memspan.ErrFreed, s.Name())
		_, err = o.WriteAt(ctx, make([]byte, 1), 0)
		refusal(t, "write of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.ReadAt(ctx, make([]byte, 1), 0)
		refusal(t, "read of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.Map(ctx, 0, 1, memspan.ReadWrite)
		refusal(t, "map of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.Map(ctx, 0, 1, memspan.ReadWrite|memspan.Shadow)
		refusal(t, "shadow map of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.Stat(ctx)
		refusal(t, "stat of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.State(ctx)
		refusal(t, "state of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.Fill(ctx, 0, 1, 0)
		refusal(t, "fill of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.Sync(ctx)
		refusal(t, "sync of a freed span", err, memspan.ErrFreed, s.Name())
		_, err = o.Lock(ctx, 0, 1, memspan.Shared)
		refusal(t, "lock of a freed span", err, memspan.ErrFreed, s.Name())
	}
	_, err = c.Open(ctx, s.Name())
	refusal(t, "open of a freed span", err, memspan.ErrNotFound, s.Name())
}

// afterClose checks what becomes of a client that was closed with memory
// mapped.
func afterClose(t *testing.T, d *daemon, transport string) {
	ctx := t.Context()
	c := d.dial(t, transport)
	s := alloc(t, c, memspan.SpanConfig{Size: 8192})
	m := mapped(t, s, 1, 8000, memspan.ReadWrite)
	stamp(m.Bytes(), 1, 1)
	check(t, c.Close())
	check(t, c.Close())
	<-c.Done()
	want(t, "a closed client", c.Err(), memspan.ErrClosed)
	over(t, m)
	_, err := s.ReadAt(ctx, make([]byte, 1), 0)
	refusal(t, "read by a closed client", err, memspan.ErrClosed)
	_, err = c.Open(ctx, "x")
	refusal(t, "open by a closed client", err, memspan.ErrClosed)
	_, err = s.Lock(ctx, 0, 1, memspan.Shared)
	refusal(t, "lock by a closed client", err, memspan.ErrClosed)
	if i := wrong(m.Bytes(), 1, 1); i >= 0 && !m.Direct() {
		t.Errorf("mapped byte %d changed when the client was closed", i)
	}
	m.Bytes()[5] ^= 0xff // still memory
	refusal(t, "unmap after close", m.Unmap(ctx), memspan.ErrClosed)
	check(t, m.Discard(ctx))
}

// What keeps a client from being let in.
func TestDialRefusals(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	d := start(t, settings{})
	dial := func(address string, opts *memspan.Options) error {
		c, err := memspan.Dial(ctx, address, opts)
		if err == nil {
			c.Close()
		}
		return err
	}
	refusal(t, "no server", dial("unix:"+filepath.Join(t.TempDir(), "none"), nil), memspan.ErrPeerLost, "memspan serve")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	unused := ln.Addr().String()
	check(t, ln.Close())
	refusal(t, "no server on TCP", dial("tcp://"+unused, nil), memspan.ErrPeerLost, "memspan serve")
	refusal(t, "wrong token", dial(d.Addresses["tcp"], &memspan.Options{Token: "guess"}), memspan.ErrUnauthenticated, "token")
	refusal(t, "no token", dial(d.Addresses["tcp"], nil), memspan.ErrUnauthenticated, "token")
	refusal(t, "wrong token in TLS", dial(d.Addresses["tls"], &memspan.Options{Token: "guess"}), memspan.ErrUnauthenticated, "token")

	bare, fingerprint, _ := strings.Cut(d.Addresses["tls"], "#")
	turned := strings.Map(func(r rune) rune { return []rune("123456789abcdef0")[strings.IndexRune("0123456789abcdef", r)] }, fingerprint)
	refusal(t, "wrong fingerprint", dial(bare+"#"+turned, &memspan.Options{Token: token}), memspan.ErrUnauthenticated, "fingerprint", fingerprint)
	refusal(t, "unknown authority", dial(bare, &memspan.Options{Token: token}), memspan.ErrUnauthenticated, "certificate")
	refusal(t, "plain client, TLS server", dial(strings.Replace(bare, "tls:", "tcp:", 1), &memspan.Options{Token: token}), memspan.ErrInvalid, "use tls://")
	refusal(t, "TLS client, plain server", dial(strings.Replace(d.Addresses["tcp"], "tcp:", "tls:", 1), &memspan.Options{Token: token}), memspan.ErrInvalid, "use tcp://")

	for _, address := range []string{"nonsense", "http://localhost:1", "tcp://", "tcp://x", "unix:", "tls://h:1#12", "tcp://h:1#" + fingerprint, "tcp://192.0.2.1:7070"} {
		refusal(t, address, dial(address, nil), memspan.ErrInvalid, "dial")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = memspan.Dial(ended, d.Addresses["unix"], nil)
	refusal(t, "with a context that has ended", err, memspan.ErrCanceled)

	holds := d.dial(t, "unix") // the refused have cost nobody anything
	sessions(t, holds, 1)
}

// A server that wants client certificates lets in nobody without one of its
// authority's.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	cert, fingerprint, err := server.SelfSigned(t.TempDir())
	check(t, err)
	srv, err := server.New(t.Context(), server.Config{HostBudget: 1 << 20})
	check(t, err)
	ca := newAuthority(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	served := make(chan error, 1)
	go func() {
		served <- srv.Serve(context.Background(), server.TLSListener(ln, &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(),
		}))
	}()
	defer func() {
		check(t, srv.Shutdown(context.Background()))
		check(t, <-served)
	}()
	address := "tls://" + ln.Addr().String() + "#" + fingerprint
	dial := func(cfg *tls.Config) error {
		c, err := memspan.Dial(t.Context(), address, &memspan.Options{TLS: cfg})
		if err == nil {
			_, err = c.Alloc(t.Context(), memspan.SpanConfig{Size: 1})
			c.Close()
		}
		return err
	}
	check(t, dial(&tls.Config{Certificates: []tls.Certificate{ca.issue(t)}}))
	refusal(t, "no client certificate", dial(nil), memspan.ErrUnauthenticated)
	refusal(t, "another authority's", dial(&tls.Config{Certificates: []tls.Certificate{newAuthority(t).issue(t)}}), memspan.ErrUnauthenticated)
}

// Servers that speak another version, or no sense, are told apart from those
// that are gone.
func TestForeignServers(t *testing.T) {
	t.Parallel()
	welcome := func(w control.Welcome) func(c *wire.Conn, h wire.Header, raw net.Conn) {
		return func(c *wire.Conn, h wire.Header, _ net.Conn) {
			data, _ := json.Marshal(w)
			c.WriteFrame(wire.Header{Kind: wire.KindHello, Flags: wire.FlagReply, ID: h.ID}, nil, data)
		}
	}
	for name, f := range map[string]struct {
		answer func(c *wire.Conn, h wire.Header, raw net.Conn)
		kind   memspan.Code
	}{
		"version in the welcome": {welcome(control.Welcome{Protocol: 99, BlockSize: block}), memspan.ErrBadVersion},
		"version in the header": {func(_ *wire.Conn, _ wire.Header, raw net.Conn) {
			h := wire.Header{Kind: wire.KindHello, Flags: wire.FlagReply}.Append(nil)
			h[4] = 77
			raw.Write(h)
		}, memspan.ErrBadVersion},
		"no blocks":  {welcome(control.Welcome{Protocol: wire.Version}), memspan.ErrPeerLost},
		"odd blocks": {welcome(control.Welcome{Protocol: wire.Version, BlockSize: 12345}), memspan.ErrPeerLost},
		"text": {func(_ *wire.Conn, _ wire.Header, raw net.Conn) {
			raw.Write([]byte(strings.Repeat("HTTP/1.1 400 Bad Request\r\n", 9)))
		}, memspan.ErrInvalid},
		"nothing": {func(*wire.Conn, wire.Header, net.Conn) {}, memspan.ErrPeerLost},
	} {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", path)
		check(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			defer raw.Close()
			c := wire.NewConn(fdpass.New(raw.(*net.UnixConn)), wire.Config{})
			h, err := c.ReadHeader()
			if err == nil && c.ReadData(make([]byte, h.Raw)) == nil {
				f.answer(c, h, raw)
			}
		}()
		c, err := memspan.Dial(t.Context(), "unix:"+path, nil)
		if err == nil {
			c.Close()
		}
		refusal(t, name, err, f.kind)
		ln.Close()
		<-done
	}
}
