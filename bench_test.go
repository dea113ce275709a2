// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
)

// BenchmarkRoundTrip is a read of 8 bytes, beside a ping-pong of as many bytes
// as its frames have over a bare socket.
func BenchmarkRoundTrip(b *testing.B) {
	srv := serve(b, server.Config{})
	for _, transport := range []struct{ name, address string }{{"unix", srv.unix}, {"tcp", srv.tcp}} {
		b.Run(transport.name, func(b *testing.B) {
			s := alloc(b, dial(b, transport.address, nil), 4096)
			p := make([]byte, 8)
			if _, err := s.WriteAt(b.Context(), p, 0); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.ReadAt(b.Context(), p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("bare", func(b *testing.B) {
		const request, reply = 60, 44
		ln, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			for p := make([]byte, request); ; {
				if _, err := io.ReadFull(nc, p); err != nil {
					return
				}
				if _, err := nc.Write(p[:reply]); err != nil {
					return
				}
			}
		}()
		nc, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		p := make([]byte, request)
		for b.Loop() {
			if _, err := nc.Write(p); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(nc, p[:reply]); err != nil {
				b.Fatal(err)
			}
		}
		nc.Close()
		<-done
	})
}

// BenchmarkMap is a mapping and its end, of spans of two sizes: where mappings
// are direct, both take the same time.
func BenchmarkMap(b *testing.B) {
	srv := serve(b, server.Config{HostBudget: 2 << 30})
	for _, size := range []struct {
		name string
		n    int64
	}{{"4KiB", 4096}, {"1GiB", 1 << 30}} {
		b.Run(size.name, func(b *testing.B) {
			s := alloc(b, dial(b, srv.unix, nil), size.n)
			b.ReportAllocs()
			for b.Loop() {
				m, err := s.Map(b.Context(), 0, s.Size(), memspan.ReadOnly)
				if err != nil {
					b.Fatal(err)
				}
				if err := m.Unmap(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
