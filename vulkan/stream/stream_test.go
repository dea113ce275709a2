// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipe returns two ends that carry no files.
func pipe(t testing.TB, cfg wire.Config) (a, b *stream.Conn) {
	an, bn := net.Pipe()
	return open(t, an, bn, cfg)
}

func open(t testing.TB, an, bn net.Conn, cfg wire.Config) (a, b *stream.Conn) {
	a, b = stream.New(wire.NewConn(an, cfg)), stream.New(wire.NewConn(bn, cfg))
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// sockets returns two ends of a unix socket, which carries files.
func sockets(t testing.TB) (a, b *stream.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = fdpass.New(nc.(*net.UnixConn))
	}
	return open(t, ends[0], ends[1], wire.Config{})
}

// message is one that owns its body.
type message struct {
	op     stream.Op
	flags  stream.Flags
	serial uint64
	body   []byte
}

func read(t testing.TB, c *stream.Conn) message {
	t.Helper()
	m, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	return message{m.Op, m.Flags, m.Serial, bytes.Clone(m.Body)}
}

func (m message) equal(n message) bool {
	return m.op == n.op && m.flags == n.flags && m.serial == n.serial && bytes.Equal(m.body, n.body)
}

func (m message) String() string {
	if len(m.body) > 16 {
		m.body = m.body[:16]
	}
	return strings.TrimSpace(strings.Join([]string{string(rune('0' + m.op%10)), string(m.body)}, " "))
}

// Whatever the sizes, and however messages are written, they arrive whole and
// in order.
func TestMessagesArrive(t *testing.T) {
	for name, cfg := range map[string]wire.Config{"plain": {}, "sums": {Sums: true}, "compressed": {Compress: true}} {
		t.Run(name, func(t *testing.T) {
			a, b := pipe(t, cfg)
			random := rand.New(rand.NewPCG(1, 2))
			var want []message
			for i, n := range []int{0, 1, 100, stream.FlushAt, 3, 5 << 20, 0, 17 << 10, stream.MaxFrame, stream.MaxFrame - stream.HeaderSize, 7, 9 << 20, 1} {
				body := make([]byte, n)
				for i := range body {
					body[i] = byte(random.Uint32() % 7)
				}
				want = append(want, message{stream.Op(i), stream.FlagReply, uint64(i) << 40, body})
			}
			done := make(chan error, 1)
			go func() {
				for i, m := range want {
					var err error
					if i%2 == 0 {
						err = a.End(append(a.Begin(m.op, m.flags, m.serial), m.body...))
					} else {
						k := min(i, len(m.body))
						err = a.Write(m.op, m.flags, m.serial, m.body[:k], m.body[k:])
					}
					if err != nil {
						done <- err
						return
					}
				}
				done <- a.Flush()
			}()
			for i, w := range want {
				if got := read(t, b); !got.equal(w) {
					t.Fatalf("message %d: %v of %d bytes, want %v of %d", i, got, len(got.body), w, len(w.body))
				}
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if n := a.Waiting(); n != 0 {
				t.Errorf("%d bytes wait after Flush", n)
			}
		})
	}
}

// Small messages wait for Flush and leave in one frame.
func TestMessagesWait(t *testing.T) {
	a, b := pipe(t, wire.Config{})
	for i := range 100 {
		if err := a.End(append(a.Begin(5, 0, 0), byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.Waiting(); n != 100*(stream.HeaderSize+1) {
		t.Errorf("%d bytes wait", n)
	}
	done := make(chan error, 1)
	go func() { done <- a.Flush() }()
	for i := range 100 {
		if m := read(t, b); m.body[0] != byte(i) {
			t.Fatalf("message %d: %v", i, m)
		}
		if b.Buffered() != (i < 99) {
			t.Fatalf("message %d: Buffered is %v", i, b.Buffered())
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := a.Wire().Stats().Sent.Frames[wire.KindStream]; n != 1 {
		t.Errorf("%d frames", n)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	a, b := pipe(t, wire.Config{})
	_ = append(a.Begin(1, 0, 0), "dropped"...)
	a.Abort()
	if err := a.End(append(a.Begin(2, 0, 7), "kept"...)); err != nil {
		t.Fatal(err)
	}
	go a.Flush()
	if m := read(t, b); !m.equal(message{2, 0, 7, []byte("kept")}) {
		t.Errorf("%v", m)
	}
}

// A message over the limit is refused, and the stream goes on.
func TestTooLarge(t *testing.T) {
	a, b := pipe(t, wire.Config{})
	big := make([]byte, stream.MaxBody+1)
	if err := a.End(append(a.Begin(1, 0, 0), big...)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("End: %v", err)
	}
	if err := a.Write(1, 0, 0, nil, big); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("Write: %v", err)
	}
	if err := a.End(a.Begin(2, 0, 7)); err != nil {
		t.Fatal(err)
	}
	go a.Flush()
	if m := read(t, b); m.op != 2 {
		t.Errorf("%v", m)
	}
}

// Each file belongs to the message that says so.
func TestFiles(t *testing.T) {
	a, b := sockets(t)
	sent := make(chan error, 1)
	go func() {
		sent <- func() error {
			for i := range 3 {
				name := string(rune('a' + i))
				if err := a.End(append(a.Begin(1, 0, 0), name...)); err != nil {
					return err
				}
				f, err := os.CreateTemp(t.TempDir(), name)
				if err != nil {
					return err
				}
				if _, err := f.WriteString(name); err != nil {
					return err
				}
				body := bytes.Repeat([]byte(name), i*300<<10)
				if err := a.EndFile(append(a.Begin(stream.OpMemoryImport, stream.FlagReply, 9), body...), f); err != nil {
					return err
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	for i := range 3 {
		name := string(rune('a' + i))
		if m := read(t, b); m.flags != 0 || string(m.body) != name {
			t.Fatalf("%v", m)
		}
		m := read(t, b)
		if m.op != stream.OpMemoryImport || m.flags != stream.FlagReply|stream.FlagFile || len(m.body) != i*300<<10 {
			t.Fatalf("%v: flags %#x, %d bytes", m, m.flags, len(m.body))
		}
		f, err := b.TakeFile()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 2)
		if n, _ := f.ReadAt(got, 0); string(got[:n]) != name {
			t.Errorf("file %d: %q", i, got[:n])
		}
		f.Close()
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if _, err := b.TakeFile(); !errors.Is(err, stream.ErrMalformed) {
		t.Errorf("without a file: %v", err)
	}
}

// Where files cannot pass nothing of the message is sent.
func TestNoFiles(t *testing.T) {
	a, b := pipe(t, wire.Config{})
	if err := a.EndFile(append(a.Begin(1, 0, 0), 1), os.Stdout); !errors.Is(err, wire.Unsupported) {
		t.Errorf("EndFile: %v", err)
	}
	if _, err := b.TakeFile(); !errors.Is(err, wire.Unsupported) {
		t.Errorf("TakeFile: %v", err)
	}
	if err := a.End(a.Begin(2, 0, 0)); err != nil {
		t.Fatal(err)
	}
	go a.Flush()
	if m := read(t, b); m.op != 2 {
		t.Errorf("%v", m)
	}
}

// Writers do not mix, and each one's messages keep their order.
func TestConcurrentWriters(t *testing.T) {
	a, b := sockets(t)
	const writers, each = 4, 300
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				body := bytes.Repeat([]byte{byte(w)}, 1+(i*37)%9000)
				var err error
				switch i % 3 {
				case 0:
					err = a.Write(stream.Op(w), 0, uint64(i), body[:1], body[1:])
				case 1:
					err = a.End(append(a.Begin(stream.Op(w), 0, uint64(i)), body...))
				default:
					if err = a.End(append(a.Begin(stream.Op(w), 0, uint64(i)), body...)); err == nil {
						err = a.Flush()
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	next := make([]uint64, writers)
	for range writers * each {
		m := read(t, b)
		if m.serial != next[m.op] || len(m.body) != 1+int(m.serial*37)%9000 || slices.Max(m.body) != byte(m.op) || slices.Min(m.body) != byte(m.op) {
			t.Fatalf("message %d of writer %d: %d bytes; want number %d", m.serial, m.op, len(m.body), next[m.op])
		}
		next[m.op]++
	}
	wg.Wait()
}

// The end between two messages is an end, within one it is a loss.
func TestEnd(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"between": {header(0, 1, 0), io.EOF},
		"header":  {append(header(0, 1, 0), 1, 2, 3), wire.PeerLost},
		"body":    {append(header(0, 1, 0), header(5, 1, 0)...), wire.PeerLost},
	} {
		an, bn := net.Pipe()
		wa, b := wire.NewConn(an, wire.Config{}), stream.New(wire.NewConn(bn, wire.Config{}))
		go func() {
			wa.WriteFrame(wire.Header{Kind: wire.KindStream}, nil, c.bytes)
			wa.Close()
		}()
		read(t, b)
		for range 2 { // it stays
			if _, err := b.Read(); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		b.Close()
	}
}

func header(n uint32, op, flags uint16) []byte {
	return []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), byte(op), byte(op >> 8), byte(flags), byte(flags >> 8), 0, 0, 0, 0, 0, 0, 0, 0}
}

func TestRefused(t *testing.T) {
	data := header(0, 1, 0)
	for name, c := range map[string]struct {
		h      wire.Header
		prefix []byte
		data   []byte
	}{
		"other kind":    {wire.Header{Kind: wire.KindEvent}, nil, data},
		"wire's reply":  {wire.Header{Kind: wire.KindStream, Flags: wire.FlagReply}, nil, data},
		"a prefix":      {wire.Header{Kind: wire.KindStream}, []byte{1}, data},
		"nothing":       {wire.Header{Kind: wire.KindStream}, nil, nil},
		"a long frame":  {wire.Header{Kind: wire.KindStream}, nil, make([]byte, stream.MaxFrame+1)},
		"a long body":   {wire.Header{Kind: wire.KindStream}, nil, header(stream.MaxBody+1, 1, 0)},
		"unknown flags": {wire.Header{Kind: wire.KindStream}, nil, header(0, 1, 8)},
	} {
		an, bn := net.Pipe()
		wa, b := wire.NewConn(an, wire.Config{}), stream.New(wire.NewConn(bn, wire.Config{}))
		go wa.WriteFrame(c.h, c.prefix, c.data)
		if m, err := b.Read(); !errors.Is(err, stream.ErrMalformed) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
		b.Close()
		wa.Close()
	}
}

// After a failed write every other one fails too, and says why.
func TestBrokenStays(t *testing.T) {
	a, b := pipe(t, wire.Config{})
	b.Close()
	if err := a.End(a.Begin(1, 0, 0)); err != nil {
		t.Errorf("nothing was written yet: %v", err)
	}
	for range 2 {
		if err := a.Flush(); err == nil {
			t.Error("a broken connection took a message")
		}
		if err := a.End(a.Begin(1, 0, 0)); err == nil {
			t.Error("a message was taken after that")
		}
	}
}
