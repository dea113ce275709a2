// SPDX-License-Identifier: Apache-2.0

//go:build unix

package fdpass_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/fdpass"
)

// pair returns a sending and a receiving end.
func pair(t testing.TB) (*net.UnixConn, *fdpass.Conn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c := fdpass.New(b)
	t.Cleanup(func() { a.Close(); c.Close() })
	return a, c
}

func tempFile(t testing.TB, content string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return string(b[:n])
}

// pipeHeldOpen returns a function that reports whether some descriptor of the
// pipe's write end is still open, and the write end.
func pipeHeldOpen(t *testing.T) (func() bool, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	raw, err := r.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return func() (open bool) {
		raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(p, 0); err != nil {
				t.Fatal(err)
			}
			open = p[0].Revents&unix.POLLHUP == 0
		})
		return open
	}, w
}

func TestFilesArriveInOrderWithTheirBytes(t *testing.T) {
	a, c := pair(t)
	f1, f2, f3 := tempFile(t, "one"), tempFile(t, "two"), tempFile(t, "three")
	sender := fdpass.New(a)
	if _, err := sender.Write([]byte("plain ")); err != nil {
		t.Fatal(err)
	}
	if n, err := sender.WriteWithFiles([]byte("with two "), f1, f2); err != nil || n != 9 {
		t.Fatalf("WriteWithFiles = %d, %v", n, err)
	}
	if err := fdpass.Send(a, []byte("with one"), f3); err != nil {
		t.Fatal(err)
	}
	if err := sender.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "plain with two with one" {
		t.Fatalf("read %q, %v", got, err)
	}
	for _, want := range []string{"one", "two", "three"} {
		f, err := c.Take()
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, f); got != want {
			t.Errorf("file holds %q, want %q", got, want)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("file %q is not close-on-exec (%#x, %v)", want, flags, err)
		}
		f.Close()
	}
	if _, err := c.Take(); !errors.Is(err, fdpass.ErrNoFile) {
		t.Errorf("Take of an empty queue: %v", err)
	}
}

// A file is there as soon as the first byte of its write has been read, and
// reading none does not lose one.
func TestFileComesWithFirstByte(t *testing.T) {
	a, c := pair(t)
	if err := fdpass.Send(a, []byte("xyz"), tempFile(t, "f")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Fatalf("Read(nil) = %d, %v", n, err)
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != 'x' {
		t.Fatalf("read %q, %v", b, err)
	}
	f, err := c.Take()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// A message far larger than the socket's buffer is sent in several parts and
// stays in one piece between concurrent writers.
func TestLargeWriteStaysWhole(t *testing.T) {
	a, c := pair(t)
	s := fdpass.New(a)
	f := tempFile(t, "f")
	const size, each = 1 << 20, 4
	done := make(chan error, 2*each)
	for i := range each {
		go func() {
			_, err := s.WriteWithFiles(bytes.Repeat([]byte{byte(i)}, size), f)
			done <- err
		}()
		go func() {
			_, err := s.Write(bytes.Repeat([]byte{byte(0x80 + i)}, size))
			done <- err
		}()
	}
	buf := make([]byte, size)
	for range 2 * each {
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, bytes.Repeat(buf[:1], size)) {
			t.Fatalf("writes were mixed")
		}
		if buf[0] < 0x80 {
			f, err := c.Take()
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}
	for range 2 * each {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestTooManyInOneMessage(t *testing.T) {
	a, c := pair(t)
	held, w := pipeHeldOpen(t)
	if err := fdpass.Send(a, []byte("q"), w); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for range fdpass.MaxFiles + 20 {
		fds = append(fds, int(w.Fd()))
	}
	if _, _, err := a.WriteMsgUnix([]byte("x"), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for range 2 { // the error stays
		if _, err := c.Read(make([]byte, 8)); !errors.Is(err, fdpass.ErrTooMany) {
			t.Fatalf("Read: %v, want ErrTooMany", err)
		}
	}
	if held() {
		t.Error("descriptors of the refused or an earlier message are still open")
	}
	if _, err := c.Take(); !errors.Is(err, fdpass.ErrNoFile) {
		t.Errorf("Take: %v", err)
	}
}

func TestQueueIsBounded(t *testing.T) {
	a, c := pair(t)
	held, w := pipeHeldOpen(t)
	var err error
	sent := 0
	for ; err == nil && sent < 1000; sent++ {
		if err := fdpass.Send(a, []byte("x"), w, w, w, w, w, w, w, w); err != nil {
			t.Fatal(err)
		}
		_, err = c.Read(make([]byte, 8))
	}
	if !errors.Is(err, fdpass.ErrTooMany) {
		t.Fatalf("after %d messages: %v, want ErrTooMany", sent, err)
	}
	w.Close()
	if held() {
		t.Error("descriptors of a flooding peer are still open")
	}
}

func TestCloseClosesQueued(t *testing.T) {
	a, c := pair(t)
	held, w := pipeHeldOpen(t)
	if err := fdpass.Send(a, []byte("x"), w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := c.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if !held() {
		t.Fatal("the file did not arrive")
	}
	c.Close()
	if held() {
		t.Error("Close left a queued file open")
	}
}

func TestRefusedSends(t *testing.T) {
	a, _ := pair(t)
	f := tempFile(t, "f")
	closed := tempFile(t, "f")
	closed.Close()
	many := make([]*os.File, fdpass.MaxFiles+1)
	for i := range many {
		many[i] = f
	}
	if err := fdpass.Send(a, nil, f); err == nil || !strings.Contains(err.Error(), "one byte") {
		t.Errorf("no data: %v", err)
	}
	if err := fdpass.Send(a, []byte("x"), many...); err == nil {
		t.Error("too many files: no error")
	}
	if err := fdpass.Send(a, []byte("x"), f, closed); err == nil {
		t.Error("closed file: no error")
	}
}

func TestEOFAndPeerCred(t *testing.T) {
	a, c := pair(t)
	uid, gid, pid, err := fdpass.PeerCred(c)
	if !errors.Is(err, errors.ErrUnsupported) {
		if err != nil || uid != os.Getuid() || gid != os.Getgid() || pid != os.Getpid() {
			t.Errorf("PeerCred = %d, %d, %d, %v", uid, gid, pid, err)
		}
	}
	a.Close()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read after the peer closed: %v", err)
	}
	c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, _, _, err := fdpass.PeerCred(c); err == nil {
		t.Error("PeerCred after Close: no error")
	}
}

// BenchmarkRead compares reading through Conn with reading the socket itself.
func BenchmarkRead(b *testing.B) {
	run := func(b *testing.B, w io.Writer, r io.Reader) {
		msg, buf := make([]byte, 64), make([]byte, 64)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.Write(msg); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(r, buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("conn", func(b *testing.B) {
		a, c := pair(b)
		run(b, a, c)
	})
	b.Run("plain", func(b *testing.B) {
		// The other way round: c's writer is the plain socket of a pair too.
		a, c := pair(b)
		run(b, c, a)
	})
}
