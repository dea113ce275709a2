// SPDX-License-Identifier: Apache-2.0

package sockopt_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/sockopt"
)

func receiver(t *testing.T, c net.Conn) *sockopt.Receiver {
	t.Helper()
	r, err := sockopt.ReceiverOf(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Bytes go into the first buffer and on into the second; a receiver that waits
// is not woken for less than it wants, but finds it when it tries again.
func TestReceive(t *testing.T) {
	a, b := dial(t)
	r := receiver(t, b)
	send := func(s string) {
		t.Helper()
		if _, err := a.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	p, after := make([]byte, 4), make([]byte, 4)
	want := func(what, first, second string, n int, err error) {
		t.Helper()
		if err != nil || n != len(first)+len(second) || !bytes.HasPrefix(p, []byte(first)) || !bytes.HasPrefix(after, []byte(second)) {
			t.Errorf("%s: %d bytes, %q and %q, %v", what, n, p, after, err)
		}
	}
	send("abcdef")
	n, err := r.Receive(p, after, 1)
	want("more than the first holds", "abcd", "ef", n, err)
	send("ghi")
	n, err = r.Receive(p, after, 100)
	want("less than wanted, but there", "ghi", "", n, err)

	done := make(chan string, 1)
	go func() {
		var all []byte
		for len(all) < 3 { // it may try while there is less than it wants
			p := make([]byte, 3)
			n, err := r.Receive(p, nil, 3-len(all))
			if err != nil {
				t.Error(err)
				break
			}
			all = append(all, p[:n]...)
		}
		done <- string(all)
	}()
	send("jk")
	send("l")
	if got := <-done; got != "jkl" {
		t.Errorf("three bytes wanted: %q", got)
	}

	p, after = make([]byte, 4), nil
	if err := b.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Receive(p, after, 4); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing came: %d, %v", n, err)
	}
	if err := b.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	send("m")
	a.Close()
	if n, err := r.Receive(p, after, 4); n != 1 || err != nil || p[0] != 'm' {
		t.Errorf("the last byte: %d, %v", n, err)
	}
	if n, err := r.Receive(p, after, 4); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	b.Close()
	if _, err := r.Receive(p, after, 1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// One byte wakes those who wait for the socket and not in Receive, whatever a
// Receive wanted before.
func TestWatch(t *testing.T) {
	a, b := dial(t)
	r := receiver(t, b)
	s, err := sockopt.Of(b.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if i > 0 {
			r.Watch() // at once the second time, and for good
		}
		// It wants more than comes, and so has the mark set.
		if err := b.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Receive(make([]byte, 4), nil, 1000); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d, %v", n, err)
		}
		if i == 0 {
			continue
		}
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if ready, err := s.AwaitReadable(10 * time.Second); err != nil || !ready {
			t.Errorf("round %d: one byte has come: %v, %v", i, ready, err)
		}
		if err := b.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Receive(make([]byte, 4), nil, 1); n != 1 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
}
