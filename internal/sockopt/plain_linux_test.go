// SPDX-License-Identifier: Apache-2.0

package sockopt_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/sockopt"
)

func dialUnix(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func plainOf(t *testing.T, c net.Conn) net.Conn {
	t.Helper()
	p, err := sockopt.PlainOf(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := p.(*sockopt.Plain); !ok {
		t.Fatalf("%T", p)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// eachPlain runs a test over both kinds of sockets: p is plain, far the other
// end.
func eachPlain(t *testing.T, f func(t *testing.T, p, far net.Conn)) {
	for name, pair := range map[string]func(*testing.T) (a, b net.Conn){"tcp": dial, "unix": dialUnix} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			p := plainOf(t, a)
			if a.SetDeadline(time.Time{}) == nil {
				t.Error("what it was made of is still open")
			}
			f(t, p, b)
		})
	}
}

// Any bytes in any pieces arrive as they were sent, in both directions at once,
// also where the sockets are full.
func TestPlainCarries(t *testing.T) {
	eachPlain(t, func(t *testing.T, p, far net.Conn) {
		rapid.Check(t, func(t *rapid.T) {
			sizes := rapid.SliceOfN(rapid.IntRange(0, 300<<10), 0, 8)
			there, back := sizes.Draw(t, "there"), sizes.Draw(t, "back")
			var all sync.WaitGroup
			carry := func(to, from net.Conn, sizes []int, salt byte) {
				var pieces net.Buffers
				var want []byte
				for i, n := range sizes {
					piece := bytes.Repeat([]byte{byte(i) ^ salt, byte(n)}, n)[:n]
					pieces, want = append(pieces, piece), append(want, piece...)
				}
				all.Go(func() {
					for i, b := range pieces {
						if g, ok := to.(interface {
							WriteBuffers(*net.Buffers) (int64, error)
						}); ok && i == 0 {
							if n, err := g.WriteBuffers(&pieces); n != int64(len(want)) || err != nil {
								t.Errorf("wrote %d, %v", n, err)
							}
							return
						}
						if n, err := to.Write(b); n != len(b) || err != nil {
							t.Errorf("wrote %d of %d, %v", n, len(b), err)
						}
					}
				})
				all.Go(func() {
					got := make([]byte, len(want))
					if _, err := io.ReadFull(from, got); err != nil || !bytes.Equal(got, want) {
						t.Errorf("other bytes arrived, %v", err)
					}
				})
			}
			carry(p, far, there, 1)
			carry(far, p, back, 2)
			all.Wait()
		})
	})
}

// What may wait ends when it should, and says why.
func TestPlainWaitsEnd(t *testing.T) {
	eachPlain(t, func(t *testing.T, p, far net.Conn) {
		full := make([]byte, 64<<20)
		for name, wait := range map[string]func() error{
			"read":  func() error { _, err := p.Read(make([]byte, 1)); return err },
			"write": func() error { _, err := p.Write(full); return err },
		} {
			done := make(chan error)
			begin := func() { go func() { done <- wait() }() }
			begin()
			if err := p.SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s at its deadline: %v", name, err)
			}
			if err := wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s after its deadline: %v", name, err)
			}
			if err := p.SetDeadline(time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			begin()
			if err := p.SetDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s whose deadline came nearer: %v", name, err)
			}
			if err := p.SetDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error)
		go func() { _, err := p.Read(make([]byte, 1)); done <- err }()
		go func() { _, err := p.Write(full); done <- err }()
		p.Close()
		for range 2 {
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed: %v", err)
			}
		}
		if err := errors.Join(p.SetDeadline(time.Time{})); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a deadline of what is closed: %v", err)
		}
		if err := p.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
		far.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, far); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the other end goes on: %v", err)
		}
	})
}

// The end of the other side's bytes is io.EOF, and ending one's own leaves
// reading.
func TestPlainEnds(t *testing.T) {
	eachPlain(t, func(t *testing.T, p, far net.Conn) {
		if err := p.(*sockopt.Plain).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := far.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
		if _, err := far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		far.Close()
		b := make([]byte, 2)
		if n, err := p.Read(b); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if n, err := p.Read(b); n != 0 || err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
	})
}

// Descriptors arrive with their bytes.
func TestPlainPassesFiles(t *testing.T) {
	a, b := dialUnix(t)
	from, to := plainOf(t, a).(*sockopt.Plain), plainOf(t, b).(*sockopt.Plain)
	n, _, err := from.WriteMsgUnix([]byte("abc"), unix.UnixRights(0), nil)
	if n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	got, oob := make([]byte, 10), make([]byte, 100)
	n, oobn, _, _, err := to.ReadMsgUnix(got, oob)
	if err != nil || string(got[:n]) != "abc" {
		t.Fatalf("%q, %v", got[:n], err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%v, %v", messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%v, %v", fds, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v: children inherit it", flags, err)
	}
	unix.Close(fds[0])
	from.Close()
	if n, _, _, _, err := to.ReadMsgUnix(got, oob); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

// A descriptor that is being used is not given back, lest another's take its
// number.
func TestPlainStaysWhileUsed(t *testing.T) {
	a, b := dial(t)
	p := plainOf(t, a)
	raw, err := p.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		p.Close()
		if _, err := unix.Write(int(fd), []byte("x")); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); string(got) != "x" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := raw.Control(func(uintptr) { t.Error("used after it was closed") }); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// What is neither kind of socket stays what it is.
func TestPlainOfOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if c, err := sockopt.PlainOf(a); c != a || err != nil {
		t.Errorf("%v, %v", c, err)
	}
}
