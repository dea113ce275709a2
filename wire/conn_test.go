// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/memspan/memspan/wire"
)

// frames of all sizes at which a connection does something different, and of
// data of all encodings.
func sampleFrames() []frame {
	fs := []frame{
		{kind: wire.KindHello, id: 1, data: []byte(`{"protocol":1}`)},
		{kind: wire.KindEvent},
		{kind: wire.KindFlush, id: 2, flags: wire.FlagMore, prefix: text(70_000), data: []byte("x")},
		{kind: wire.KindFlush, id: 3, prefix: random(wire.MaxPrefix), data: random(wire.MaxData)},
	}
	for _, n := range []int{0, 1, 3, 4, 4095, 4096, 4097, 16<<10 - 32, 16 << 10, 100_001, wire.MaxData - 1, wire.MaxData} {
		for i, data := range [][]byte{random(n), pattern(n), text(n)} {
			id := uint64(n)<<8 | uint64(i)
			fs = append(fs,
				frame{kind: wire.KindTransfer, id: id, prefix: wire.AppendTransfer(nil, wire.MemoryCommand{Memory: id, Size: uint64(n)}), data: data},
				frame{kind: wire.KindRead, id: id, flags: wire.FlagReply, data: data})
		}
	}
	return fs
}

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			client, server := tr.conns(t)
			frames := sampleFrames()
			done := make(chan error, 1)
			go func() {
				for _, f := range frames {
					if err := f.write(client); err != nil {
						done <- err
						return
					}
				}
				done <- client.Close()
			}()
			for i, want := range frames {
				got, err := readFrame(server)
				if err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				if !got.equal(want) {
					t.Fatalf("frame %d: got %v %#x id %d, %d and %d bytes; want %v %#x id %d, %d and %d bytes", i,
						got.kind, got.flags, got.id, len(got.prefix), len(got.data),
						want.kind, want.flags, want.id, len(want.prefix), len(want.data))
				}
			}
			if _, err := server.ReadHeader(); err != io.EOF {
				t.Errorf("after the last frame: %v, want io.EOF", err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			compareStats(t, client.Stats().Sent, server.Stats().Received, frames)
		})
	}
}

// Every frame arrives on its own, though nothing comes after it.
func TestRequestAndReply(t *testing.T) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			client, server := tr.conns(t)
			frames := sampleFrames()
			done := in(func() error {
				for range frames {
					f, err := readFrame(server)
					if err != nil {
						return err
					}
					f.flags |= wire.FlagReply
					if err := f.write(server); err != nil {
						return err
					}
				}
				return nil
			})
			for i, f := range frames {
				if err := f.write(client); err != nil {
					t.Fatal(err)
				}
				f.flags |= wire.FlagReply
				if got, err := readFrame(client); err != nil || !got.equal(f) {
					t.Fatalf("frame %d: %v", i, err)
				}
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}

func compareStats(t *testing.T, sent, received wire.Flow, frames []frame) {
	t.Helper()
	if sent.Data != received.Data || sent.Encoded != received.Encoded || sent.Frames != received.Frames {
		t.Errorf("sent %+v, received %+v", sent, received)
	}
	var data, transfers uint64
	for _, f := range frames {
		data += uint64(len(f.data))
		if f.kind == wire.KindTransfer {
			transfers++
		}
	}
	if sent.Data != data || sent.Frames[wire.KindTransfer] != transfers {
		t.Errorf("counted %d bytes of data, %d transfers; sent %d, %d", sent.Data, sent.Frames[wire.KindTransfer], data, transfers)
	}
	if sent.Bytes < sent.Encoded {
		t.Errorf("%d bytes on the wire for %d of data", sent.Bytes, sent.Encoded)
	}
}

// Frames that several goroutines write do not mix, whatever the transport.
func TestConcurrentWriters(t *testing.T) {
	const writers, each = 4, 20
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			client, server := tr.conns(t)
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for i := range each {
						data := bytes.Repeat([]byte{byte(w), byte(i), 3}, 1+i*1000)
						if err := client.WriteFrame(wire.Header{Kind: wire.KindTransfer, ID: uint64(w)<<8 | uint64(i)}, nil, data); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			next := [writers]int{}
			for range writers * each {
				f, err := readFrame(server)
				if err != nil {
					t.Fatal(err)
				}
				w, i := int(f.id>>8), int(f.id&0xff)
				if i != next[w] {
					t.Fatalf("writer %d: frame %d came when %d was due", w, i, next[w])
				}
				next[w]++
				if !bytes.Equal(f.data, bytes.Repeat([]byte{byte(w), byte(i), 3}, 1+i*1000)) {
					t.Fatalf("writer %d, frame %d: wrong bytes", w, i)
				}
			}
			wg.Wait()
		})
	}
}

// A reader may leave any part of a frame unread.
func TestSkippedParts(t *testing.T) {
	f := frame{kind: wire.KindFlush, id: 7, prefix: random(50), data: text(100_000)}
	for _, sum := range []bool{false, true} {
		for _, encoding := range []wire.Encoding{wire.EncodingRaw, wire.EncodingS2} {
			c := wire.NewConn(newMemConn(bytes.Repeat(f.bytes(encoding, sum), 5)), wire.Config{Sums: sum, Compress: true})
			for i, read := range []func() error{
				func() error { return nil },
				func() error { _, err := c.ReadPrefix(nil); return err },
				func() error { return c.ReadData(make([]byte, len(f.data))) },
				c.Discard,
			} {
				if _, err := c.ReadHeader(); err != nil {
					t.Fatalf("%v, sum %v, frame %d: %v", encoding, sum, i, err)
				}
				if err := read(); err != nil {
					t.Fatalf("%v, sum %v, frame %d: %v", encoding, sum, i, err)
				}
			}
			if got, err := readFrame(c); err != nil || !got.equal(f) {
				t.Fatalf("%v, sum %v, the last frame: %v", encoding, sum, err)
			}
		}
	}
}

func TestReadPrefixUsesTheBufferGiven(t *testing.T) {
	f := frame{kind: wire.KindRead, id: 7, prefix: random(28)}
	c := wire.NewConn(newMemConn(encode(t, wire.Config{}, f)), wire.Config{})
	if _, err := c.ReadHeader(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, 64)
	got, err := c.ReadPrefix(buf)
	if err != nil || !bytes.Equal(got, f.prefix) {
		t.Fatalf("% x, %v; want % x", got, err, f.prefix)
	}
	if &got[0] != &buf[:1][0] {
		t.Error("the prefix is not in the buffer")
	}
}

func TestReadDataChecksTheLength(t *testing.T) {
	f := frame{kind: wire.KindTransfer, data: random(100)}
	c := wire.NewConn(newMemConn(encode(t, wire.Config{}, f)), wire.Config{})
	if _, err := c.ReadHeader(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 99, 101} {
		if err := c.ReadData(make([]byte, n)); !errors.Is(err, wire.Invalid) {
			t.Errorf("into %d bytes: %v, want Invalid", n, err)
		}
	}
	got := make([]byte, 100)
	if err := c.ReadData(got); err != nil || !bytes.Equal(got, f.data) {
		t.Errorf("the refusals did harm: %v", err)
	}
}

func TestFramesTooLargeAreNotWritten(t *testing.T) {
	mc := newMemConn(nil)
	c := wire.NewConn(mc, wire.Config{})
	half := make([]byte, wire.MaxData/2+1)
	if err := c.WriteFrame(wire.Header{Kind: wire.KindTransfer}, nil, half, half); !errors.Is(err, wire.ErrTooLarge) || !errors.Is(err, wire.Limit) {
		t.Errorf("data: %v", err)
	}
	if err := c.WriteFrame(wire.Header{Kind: wire.KindFlush}, make([]byte, wire.MaxPrefix+1)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("prefix: %v", err)
	}
	if mc.out.Len() != 0 {
		t.Errorf("%d bytes were written", mc.out.Len())
	}
	if err := c.WriteFrame(wire.Header{Kind: wire.KindTransfer}, nil, half); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestClosedConnection(t *testing.T) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			client, _ := tr.conns(t)
			started := make(chan struct{})
			done := make(chan error, 1)
			go func() {
				close(started)
				_, err := client.ReadHeader()
				done <- err
			}()
			<-started
			client.Close()
			if err := <-done; !errors.Is(err, net.ErrClosed) || errors.Is(err, wire.PeerLost) {
				t.Errorf("read: %v, want net.ErrClosed", err)
			}
			if err := client.WriteFrame(wire.Header{Kind: wire.KindEvent}, nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write: %v, want net.ErrClosed", err)
			}
		})
	}
}

// Reading and writing frames in steady state takes no memory, whatever their
// encoding.
func TestFramesDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	plain := wire.Config{IOTimeout: ioTimeout}
	all := wire.Config{IOTimeout: ioTimeout, Sums: true, Compress: true}
	for _, c := range []struct {
		name string
		cfg  wire.Config
		data []byte
	}{
		{"small", plain, random(512)},
		{"small with a sum", all, random(512)},
		{"4 KiB", plain, random(4096)},
		{"1 MiB", plain, random(wire.MaxData)},
		{"1 MiB with a sum", all, random(wire.MaxData)},
		{"fill", all, pattern(wire.MaxData)},
		{"s2", all, text(wire.MaxData)},
	} {
		prefix := random(28)
		one := encode(t, c.cfg, frame{kind: wire.KindTransfer, prefix: prefix, data: c.data})
		mc := newMemConn(nil)
		conn := wire.NewConn(mc, c.cfg)
		dst, buf := make([]byte, len(c.data)), make([]byte, 0, 64)
		got := testing.AllocsPerRun(50, func() {
			mc.out.Reset()
			if err := conn.WriteFrame(wire.Header{Kind: wire.KindTransfer}, prefix, c.data); err != nil {
				t.Fatal(err)
			}
			mc.in.Reset(one)
			h, err := conn.ReadHeader()
			if err != nil || int(h.Raw) != len(dst) {
				t.Fatal(h, err)
			}
			if _, err := conn.ReadPrefix(buf); err != nil {
				t.Fatal(err)
			}
			if err := conn.ReadData(dst); err != nil {
				t.Fatal(err)
			}
		})
		if got >= 1 {
			t.Errorf("%s: %v allocations per frame written and read", c.name, got)
		}
	}
}

// What a connection encodes it encodes because that is shorter, and only once
// it may. In the bubble the processor takes no time and the link does.
func TestEncodingIsChosenByWhatItSaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mc := newMemConn(nil)
		c := wire.NewConn(linkConn{mc, 50e6, time.Sleep}, wire.Config{})
		for _, s := range []struct {
			compress bool
			name     string
			data     []byte
			want     wire.Encoding
		}{
			{false, "pattern, before it is agreed on", pattern(wire.MaxData), wire.EncodingRaw},
			{false, "text, before it is agreed on", text(wire.MaxData), wire.EncodingRaw},
			{true, "pattern", pattern(wire.MaxData), wire.EncodingFill},
			{true, "zeros", make([]byte, 4096), wire.EncodingFill},
			{true, "text", text(wire.MaxData), wire.EncodingS2},
			{true, "random", random(wire.MaxData), wire.EncodingRaw},
			{true, "a short pattern", pattern(4095), wire.EncodingRaw},
			{true, "all but a pattern", append(pattern(4096), 0), wire.EncodingS2},
			{true, "all but a pattern, at its beginning", append([]byte{0}, pattern(4096)...), wire.EncodingS2},
			{true, "a pattern that the end cuts", pattern(4099), wire.EncodingFill},
		} {
			c.SetCompress(s.compress)
			mc.out.Reset()
			if err := c.WriteFrame(wire.Header{Kind: wire.KindTransfer}, nil, s.data); err != nil {
				t.Fatal(err)
			}
			h, err := wire.ParseHeader(mc.out.Bytes())
			if err != nil || h.Encoding != s.want {
				t.Errorf("%s: sent as %v, %v; want %v", s.name, h.Encoding, err, s.want)
			}
		}
	})
}

// On a link that is faster than the encoder, data is sent as it is; when the
// link turns slow, it is compressed, and when it is fast again, no more.
func TestEncodingFollowsTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mc := newMemConn(nil)
		link := &linkConn{mc, 10e9, time.Sleep}
		c := wire.NewConn(link, wire.Config{Compress: true})
		data := append(random(wire.MaxData/2), text(wire.MaxData/2)...)
		for _, s := range []struct {
			perSecond float64
			want      wire.Encoding
		}{{10e9, wire.EncodingRaw}, {20e6, wire.EncodingS2}, {10e9, wire.EncodingRaw}} {
			link.perSecond = s.perSecond
			var got wire.Encoding
			for range 100 { // until the averages have followed
				mc.out.Reset()
				if err := c.WriteFrame(wire.Header{Kind: wire.KindTransfer}, nil, data); err != nil {
					t.Fatal(err)
				}
				h, err := wire.ParseHeader(mc.out.Bytes())
				if err != nil {
					t.Fatal(err)
				}
				got = h.Encoding
			}
			if got != s.want {
				t.Errorf("at %g bytes/s: sent as %v, want %v", s.perSecond, got, s.want)
			}
		}
	})
}

// Data that somebody else changes while it is encoded arrives as a mixture, in
// a frame that is in order, and bytes that nobody changed arrive as they are.
func TestDataThatChangesWhileItIsSent(t *testing.T) {
	if raceEnabled {
		t.Skip("the race is the test")
	}
	for _, cfg := range []wire.Config{{Compress: true}} {
		mc := newMemConn(nil)
		c := wire.NewConn(linkConn{mc, 100e6, spin}, cfg)
		data, want := text(256<<10), text(256<<10)
		var stop atomic.Bool
		var wg sync.WaitGroup
		defer func() { stop.Store(true); wg.Wait() }()
		wg.Go(func() { // scribbles on every other KiB
			for i := byte(0); !stop.Load(); i++ {
				for off := 0; off < len(data); off += 2 << 10 {
					copy(data[off:off+1<<10], want[i:])
				}
			}
		})
		for range 50 {
			mc.out.Reset()
			if err := c.WriteFrame(wire.Header{Kind: wire.KindRead}, nil, data); err != nil {
				t.Fatal(err)
			}
			got, err := readFrame(wire.NewConn(newMemConn(mc.out.Bytes()), cfg))
			if err != nil {
				t.Fatalf("%+v: %v", cfg, err)
			}
			for off := 1 << 10; off < len(data); off += 2 << 10 {
				if !bytes.Equal(got.data[off:off+1<<10], want[off:off+1<<10]) {
					t.Fatalf("%+v: bytes at %d were changed by nobody and arrived changed", cfg, off)
				}
			}
		}
	}
}
