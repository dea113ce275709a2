// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"encoding/binary"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/sockopt"
	"github.com/memspan/memspan/wire"
)

// region is larger than any cache: what a transfer reads is cold, what it
// writes has been touched before.
const region = 256 << 20

func benchRegions(b *testing.B) (src, dst []byte) {
	src, dst = make([]byte, region), make([]byte, region)
	for i := 0; i < region; i += 4096 {
		src[i], dst[i] = byte(i>>12), 1
	}
	return src, dst
}

// BenchmarkTransfer moves 1 MiB per operation from one region to another:
// "wire" as frames, "raw" by Write and Read on a connection of the same kind
// that is tuned in the same way.
func BenchmarkTransfer(b *testing.B) {
	src, dst := benchRegions(b)
	for _, tr := range transports() {
		if !tr.benchmarked() {
			continue
		}
		b.Run(tr.name+"/wire", func(b *testing.B) { benchWire(b, tr, src, dst) })
		if !tr.cfg.Sums {
			b.Run(tr.name+"/raw", func(b *testing.B) { benchRaw(b, tr, src, dst) })
		}
	}
}

// benchmarked reports whether the transport is one that is used for speed.
func (tr transport) benchmarked() bool {
	return !tr.cfg.Compress && tr.cfg.IOTimeout > 0 && !strings.HasPrefix(tr.name, "pipe")
}

func at(region []byte, i int) []byte {
	off := i * wire.MaxData % len(region)
	return region[off : off+wire.MaxData]
}

func benchWire(b *testing.B, tr transport, src, dst []byte) {
	client, server := tr.conns(b)
	prefix := make([]byte, 28)
	b.SetBytes(wire.MaxData)
	b.ReportAllocs()
	done := in(func() error {
		for i := range b.N {
			if err := client.WriteFrame(wire.Header{Kind: wire.KindTransfer}, prefix, at(src, i)); err != nil {
				return err
			}
		}
		return nil
	})
	buf := make([]byte, 0, 64)
	for i := range b.N {
		if _, err := server.ReadHeader(); err != nil {
			b.Fatal(err)
		}
		if _, err := server.ReadPrefix(buf); err != nil {
			b.Fatal(err)
		}
		if err := server.ReadData(at(dst, i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func benchRaw(b *testing.B, tr transport, src, dst []byte) {
	client, server := tr.dial(b)
	defer client.Close()
	defer server.Close()
	var socket *sockopt.Socket // of the receiver
	if tr.name == "tcp" {
		tune(b, client)
		socket = tune(b, server)
	}
	b.SetBytes(wire.MaxData)
	b.ReportAllocs()
	done := in(func() error {
		for i := range b.N {
			if _, err := client.Write(at(src, i)); err != nil {
				return err
			}
		}
		return nil
	})
	for i := range b.N {
		if socket != nil && i == b.N-1 { // the last bytes need not come together
			_ = socket.SetReceiveLowWater(1)
		}
		if _, err := io.ReadFull(server, at(dst, i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func tune(b *testing.B, c net.Conn) *sockopt.Socket {
	s, err := sockopt.Of(c.(syscall.Conn))
	if err != nil {
		b.Skip(err)
	}
	_ = s.SetCongestion("cubic")
	_ = s.SetReceiveLowWater(256 << 10)
	return s
}

// BenchmarkRoundTrip is a request and a reply of 64 bytes: frames of 32 + 32
// bytes against plain 64.
func BenchmarkRoundTrip(b *testing.B) {
	for _, tr := range transports() {
		if !tr.benchmarked() {
			continue
		}
		b.Run(tr.name+"/wire", func(b *testing.B) {
			client, server := tr.conns(b)
			b.ReportAllocs()
			payload := make([]byte, 32)
			done := in(func() error {
				return pingPong(b.N, server.ReadHeader, server, payload, false)
			})
			if err := pingPong(b.N, client.ReadHeader, client, payload, true); err != nil {
				b.Fatal(err)
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
		if tr.cfg.Sums {
			continue
		}
		b.Run(tr.name+"/raw", func(b *testing.B) {
			client, server := tr.dial(b)
			defer client.Close()
			defer server.Close()
			done := in(func() error {
				_, err := io.CopyBuffer(struct{ io.Writer }{server}, io.LimitReader(server, int64(b.N)*64), make([]byte, 64))
				return err
			})
			buf := make([]byte, 64)
			for range b.N {
				if _, err := client.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(client, buf); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

func pingPong(n int, next func() (wire.Header, error), c *wire.Conn, payload []byte, first bool) error {
	buf := make([]byte, 0, 64)
	if first {
		if err := c.WriteFrame(wire.Header{Kind: wire.KindRead}, payload); err != nil {
			return err
		}
	}
	for i := range n {
		if _, err := next(); err != nil {
			return err
		}
		if _, err := c.ReadPrefix(buf); err != nil {
			return err
		}
		if first && i == n-1 {
			return nil
		}
		if err := c.WriteFrame(wire.Header{Kind: wire.KindRead}, payload); err != nil {
			return err
		}
	}
	return nil
}

// spin waits busily: timers are too coarse for what a megabyte takes.
func spin(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
	}
}

// BenchmarkCompression sends 1 MiB frames over links of 1 and 10 Gbit/s, and
// over one that costs nothing, to a receiver on the same processor: encoding, link and
// decoding follow each other, where they would overlap in a pipeline. It
// reports how many bytes travelled for each byte of data.
func BenchmarkCompression(b *testing.B) {
	for _, c := range []struct {
		name string
		make func(n int) []byte
	}{
		{"texture", texture}, {"uniforms", uniforms}, {"floats", floats}, {"random", random}, {"constant", pattern}, {"half-zero", halfZero},
	} {
		data := c.make(16 << 20)
		for _, link := range []struct {
			name      string
			perSecond float64
		}{{"1Gbit", 125e6}, {"10Gbit", 1250e6}, {"memory", math.Inf(1)}} {
			for _, encoding := range []string{"raw", "s2"} {
				b.Run(c.name+"/"+link.name+"/"+encoding, func(b *testing.B) {
					benchCompression(b, data, link.perSecond, encoding == "s2")
				})
			}
		}
	}
}

func benchCompression(b *testing.B, data []byte, perSecond float64, compress bool) {
	mc := newMemConn(nil)
	conn := wire.NewConn(linkConn{mc, perSecond, spin}, wire.Config{Compress: compress})
	dst := make([]byte, wire.MaxData)
	b.SetBytes(wire.MaxData)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		mc.out.Reset()
		if err := conn.WriteFrame(wire.Header{Kind: wire.KindTransfer}, nil, at(data, i)); err != nil {
			b.Fatal(err)
		}
		mc.in.Reset(mc.out.Bytes())
		if _, err := conn.ReadHeader(); err != nil {
			b.Fatal(err)
		}
		if err := conn.ReadData(dst); err != nil {
			b.Fatal(err)
		}
	}
	s := conn.Stats().Sent
	b.ReportMetric(float64(s.Encoded)/float64(s.Data), "wire/data")
}

// texture is like an uncompressed RGBA image: smooth colours, flat parts, a
// little noise, opaque.
func texture(n int) []byte {
	const width = 1024
	r := mathrand.New(mathrand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := 0; i+4 <= n; i += 4 {
		x, y := i/4%width, i/4/width
		shade := byte(0)
		if (x/128+y/128)%2 == 0 { // every other tile has detail
			shade = byte(r.IntN(4))
		}
		b[i], b[i+1], b[i+2], b[i+3] = byte(x/4)+shade, byte(y/4)+shade, byte((x+y)/8)&0xfc, 0xff
	}
	return b
}

// uniforms is like a uniform buffer of many objects: matrices that differ in
// their translation, colours, padding to 256 bytes.
func uniforms(n int) []byte {
	r := mathrand.New(mathrand.NewPCG(3, 4))
	b := make([]byte, n)
	put := func(off int, v float64) { binary.LittleEndian.PutUint32(b[off:], math.Float32bits(float32(v))) }
	for off := 0; off+256 <= n; off += 256 {
		for i := range 4 {
			put(off+i*20, 1)
		}
		for i := range 3 {
			put(off+48+i*4, r.Float64()*100)
			put(off+64+i*4, float64(r.IntN(256))/255)
		}
	}
	return b
}

// floats is like weights or particles: 32-bit floats without pattern.
func floats(n int) []byte {
	r := mathrand.New(mathrand.NewPCG(5, 6))
	b := make([]byte, n)
	for i := 0; i+4 <= n; i += 4 {
		binary.LittleEndian.PutUint32(b[i:], math.Float32bits(float32(r.NormFloat64())))
	}
	return b
}

// halfZero is like a buffer that is being filled: each half MiB of random
// bytes is followed by one of zeros.
func halfZero(n int) []byte {
	b := random(n)
	for off := 512 << 10; off < n; off += 1 << 20 {
		clear(b[off:min(off+512<<10, n)])
	}
	return b
}
