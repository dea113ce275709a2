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

	type received struct {
		n   int
		err error
	}
	done := make(chan received, 1)
	receive := func(want int) {
		n, err := r.Receive(p, after, want)
		done <- received{n, err}
	}
	go receive(3)
	send("jk")
	send("l")
	got := <-done
	for got.n < 3 && got.err == nil { // it may have tried while there was less
		p, after = p[got.n:], append(after, 0)
		go receive(3 - got.n)
		more := <-done
		got.n, got.err = got.n+more.n, more.err
	}
	if got.n != 3 || got.err != nil {
		t.Errorf("three bytes wanted: %d, %v", got.n, got.err)
	}

	p, after = make([]byte, 4), nil
	if err := b.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	go receive(4)
	if got := <-done; !errors.Is(got.err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing came: %d, %v", got.n, got.err)
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
