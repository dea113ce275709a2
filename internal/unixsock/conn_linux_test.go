// SPDX-License-Identifier: Apache-2.0

package unixsock_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/unixsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t testing.TB) (*unixsock.Listener, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "unixsock-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := unixsock.Listen(ln)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		os.RemoveAll(dir)
	})
	return l, path
}

// ends returns both ends of a connection; waits is the accepted one's.
func ends(t testing.TB, waits func()) (dialed, accepted *unixsock.Conn) {
	t.Helper()
	l, path := listen(t)
	dialed, err := unixsock.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.AcceptConn(waits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dialed.Close()
		accepted.Close()
	})
	return dialed, accepted
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What has come is read, and answered, without anybody having to wait; the end of it is
// waited for.
func TestWaitsAreAnnounced(t *testing.T) {
	var waits atomic.Int32
	c, s := ends(t, func() { waits.Add(1) })
	for range 3 {
		_, err := c.Write([]byte("question"))
		check(t, err)
		b := make([]byte, 100)
		n, err := s.Read(b)
		check(t, err)
		_, err = s.Write(b[:n])
		check(t, err)
		if n, err = c.Read(b); err != nil || string(b[:n]) != "question" {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
	if n := waits.Load(); n != 0 {
		t.Errorf("announced %d times that somebody waits for what was there", n)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for range 2 {
			if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
				t.Error(err)
			}
			if _, err := s.Write([]byte("ok")); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		_, err := c.Write([]byte("more"))
		check(t, err)
		_, err = io.ReadFull(c, make([]byte, 2))
		check(t, err)
	}
	work.Wait()
	check(t, c.Close())
	if _, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
	if n := waits.Load(); n > 1 {
		t.Errorf("announced %d times that somebody waits", n)
	}
}

// Whatever is written in whatever pieces, with readers that wait and that do not, and with
// deadlines and raw access in between, comes out as it went in.
func TestBytesAndFiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rt := &helper{t}
		c, s := rt.ends()
		defer c.Close()
		defer s.Close()
		near, far := fdpass.New(c), fdpass.New(s)
		if rapid.Bool().Draw(t, "swapped") {
			near, far = far, near
		}
		file, err := os.Open(os.DevNull)
		rt.check(err)
		defer file.Close()
		files := 0
		var sent []byte
		var work sync.WaitGroup
		var got bytes.Buffer
		work.Go(func() { io.Copy(&got, far) })
		for range rapid.IntRange(0, 20).Draw(t, "writes") {
			p := rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "piece")
			switch rapid.IntRange(0, 5).Draw(t, "how") {
			case 0:
				_, err = near.WriteWithFiles(p, file)
				files++
			case 1:
				p = bytes.Repeat(p, 2000)
				_, err = near.Write(p)
			case 2:
				v := net.Buffers{p[:len(p)/2], p[len(p)/2:]}
				p = bytes.Clone(p)
				_, err = near.WriteBuffers(&v)
			case 3:
				rt.check(far.SetReadDeadline(time.Now().Add(time.Hour)))
				rt.check(near.SetDeadline(time.Time{}))
				p = nil
			case 4:
				_, _, _, err = fdpass.PeerCred(far)
				p = nil
			default:
				_, err = near.Write(p)
			}
			rt.check(err)
			sent = append(sent, p...)
		}
		rt.check(near.CloseWrite())
		work.Wait()
		if !bytes.Equal(got.Bytes(), sent) {
			t.Fatalf("%d bytes came of %d, or others", got.Len(), len(sent))
		}
		for range files {
			f, err := far.Take()
			rt.check(err)
			rt.check(f.Close())
		}
	})
}

type helper struct{ *rapid.T }

func (h *helper) check(err error) {
	if err != nil {
		h.Fatal(err)
	}
}

func (h *helper) ends() (dialed, accepted *unixsock.Conn) {
	dir, err := os.MkdirTemp("", "unixsock-")
	h.check(err)
	defer os.RemoveAll(dir)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	h.check(err)
	l, err := unixsock.Listen(ln)
	h.check(err)
	defer l.Close()
	dialed, err = unixsock.Dial(filepath.Join(dir, "s"))
	h.check(err)
	accepted, err = l.AcceptConn(nil)
	h.check(err)
	return dialed, accepted
}

// A deadline ends reads and writes that wait, whenever it was set.
func TestDeadlines(t *testing.T) {
	c, s := ends(t, nil)
	check(t, c.SetDeadline(time.Now()))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write after the deadline: %v", err)
	}
	check(t, c.SetDeadline(time.Time{}))
	_, err := c.Write([]byte("x"))
	check(t, err)
	_, err = s.Read(make([]byte, 1))
	check(t, err)
	check(t, c.SetReadDeadline(time.Now().Add(5*time.Millisecond)))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read until the deadline: %v", err)
	}
	check(t, s.SetWriteDeadline(time.Now().Add(5*time.Millisecond)))
	if _, err := s.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write of what nobody reads: %v", err)
	}
}

// Close ends who waits, by himself or by the poller, and closes the descriptor once.
func TestCloseWakesReaders(t *testing.T) {
	for _, pause := range []time.Duration{0, 100 * time.Microsecond, 5 * time.Millisecond} {
		for range 20 {
			c, s := ends(t, nil)
			var work sync.WaitGroup
			for _, end := range []*unixsock.Conn{c, s} {
				work.Go(func() {
					if _, err := end.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) && err != io.EOF {
						t.Error(err)
					}
				})
			}
			time.Sleep(pause) // so that all kinds of waiting are met; none is counted on
			check(t, c.Close())
			work.Wait()
			if err := c.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed again: %v", err)
			}
			_, err := c.Write([]byte("x"))
			_, rerr := c.Read(make([]byte, 1))
			derr := c.SetDeadline(time.Time{})
			if !errors.Is(err, net.ErrClosed) || !errors.Is(rerr, net.ErrClosed) || !errors.Is(derr, net.ErrClosed) {
				t.Errorf("after it was closed: %v, %v, %v", err, rerr, derr)
			}
			check(t, s.Close())
		}
	}
}

// No descriptor is left of connections that have ended, whatever became of them.
func TestNoDescriptorIsLeft(t *testing.T) {
	l, path := listen(t)
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return len(names)
	}
	round := func(wait bool) {
		c, err := unixsock.Dial(path)
		check(t, err)
		s, err := l.Accept()
		check(t, err)
		if wait {
			check(t, s.SetReadDeadline(time.Now().Add(2*time.Millisecond)))
			s.Read(make([]byte, 1))
			f, err := s.(*unixsock.Conn).File()
			check(t, err)
			check(t, f.Close())
		}
		check(t, c.Close())
		check(t, s.Close())
	}
	round(true) // the poller's own
	before := count()
	for i := range 20 {
		round(i%2 == 0)
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// A listener that is closed ends who waits there, and nobody can connect.
func TestListenerCloses(t *testing.T) {
	l, path := listen(t)
	var work sync.WaitGroup
	work.Go(func() {
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	check(t, l.Close())
	work.Wait()
	var op *net.OpError
	if _, err := unixsock.Dial(path); !errors.As(err, &op) || op.Op != "dial" || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("dialed: %v", err)
	}
}
