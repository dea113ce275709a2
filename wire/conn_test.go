// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

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
	for _, cfg := range []wire.Config{{}, {Sums: true}, {Compress: true}} {
		t.Run(fmt.Sprintf("%+v", cfg), func(t *testing.T) {
			f := frame{kind: wire.KindFlush, id: 7, prefix: random(50), data: text(100_000)}
			c := wire.NewConn(newMemConn(encode(t, cfg, f, f, f, f, f)), cfg)
			for i, read := range []func() error{
				func() error { return nil },
				func() error { _, err := c.ReadPrefix(nil); return err },
				func() error { return c.ReadData(make([]byte, len(f.data))) },
				c.Discard,
			} {
				if _, err := c.ReadHeader(); err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				if err := read(); err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
			}
			if got, err := readFrame(c); err != nil || !got.equal(f) {
				t.Fatalf("the last frame: %v", err)
			}
		})
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

// Reading and writing small frames in steady state takes no memory.
func TestSmallFramesDoNotAllocate(t *testing.T) {
	for _, cfg := range []wire.Config{{IOTimeout: ioTimeout}, {IOTimeout: ioTimeout, Sums: true, Compress: true}} {
		data, prefix := text(512), random(28)
		one := encode(t, cfg, frame{kind: wire.KindTransfer, prefix: prefix, data: data})
		mc := newMemConn(nil)
		c := wire.NewConn(mc, cfg)
		dst, buf := make([]byte, len(data)), make([]byte, 0, 64)
		got := testing.AllocsPerRun(100, func() {
			mc.out.Reset()
			if err := c.WriteFrame(wire.Header{Kind: wire.KindTransfer}, prefix, data); err != nil {
				t.Fatal(err)
			}
			mc.in.Reset(one)
			h, err := c.ReadHeader()
			if err != nil || int(h.Raw) != len(dst) {
				t.Fatal(h, err)
			}
			if _, err := c.ReadPrefix(buf); err != nil {
				t.Fatal(err)
			}
			if err := c.ReadData(dst); err != nil {
				t.Fatal(err)
			}
		})
		if got != 0 {
			t.Errorf("%+v: %v allocations per frame written and read", cfg, got)
		}
	}
}
