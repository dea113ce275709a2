// SPDX-License-Identifier: Apache-2.0

package fdpass

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/memspan/memspan/internal/sockopt"
)

// A peer that is gone raises no signal, over either kind of socket, and what is
// written before arrives whole.
func TestQuietWrites(t *testing.T) {
	raised := make(chan os.Signal, 16)
	signal.Notify(raised, syscall.SIGPIPE)
	defer signal.Stop(raised)
	for name, pair := range map[string]func(t *testing.T) (near, far net.Conn){
		"unix": func(t *testing.T) (net.Conn, net.Conn) {
			near, file, err := Pair()
			if err != nil {
				t.Fatal(err)
			}
			far, err := UnixConn(file)
			file.Close()
			if err != nil {
				t.Fatal(err)
			}
			return New(plain(t, near).(Socket)), far
		},
		"tcp": func(t *testing.T) (net.Conn, net.Conn) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			near, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			far, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return plain(t, near), far
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pair(t)
			defer near.Close()
			big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			got := make(chan []byte)
			go func() {
				b := make([]byte, 3*len(big)+5)
				io.ReadFull(far, b)
				got <- b
			}()
			v := net.Buffers{[]byte("he"), nil, big, []byte("llo"), big}
			n, err := near.(interface {
				WriteBuffers(*net.Buffers) (int64, error)
			}).WriteBuffers(&v)
			if err != nil || n != int64(2*len(big)+5) {
				t.Errorf("%d bytes, %v", n, err)
			}
			if _, err := near.Write(big); err != nil {
				t.Error(err)
			}
			if want := bytes.Join([][]byte{[]byte("he"), big, []byte("llo"), big, big}, nil); !bytes.Equal(<-got, want) {
				t.Error("other bytes arrived")
			}
			if c, ok := near.(*Conn); ok {
				passFile(t, c, far.(*net.UnixConn))
			}
			far.Close()
			for err = nil; err == nil; {
				_, err = near.Write(big)
			}
			if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
			if _, err := near.Write(big); !errors.Is(err, syscall.EPIPE) {
				t.Error(err)
			}
			select {
			case <-raised:
				t.Error("SIGPIPE")
			default:
			}
		})
	}
}

func plain(t *testing.T, c net.Conn) net.Conn {
	t.Helper()
	p, err := sockopt.PlainOf(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// passFile sends a file and takes it.
func passFile(t *testing.T, near *Conn, far *net.UnixConn) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := near.WriteWithFiles([]byte("file"), f); n != 4 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	to := New(far)
	b := make([]byte, 4)
	if _, err := io.ReadFull(to, b); err != nil || string(b) != "file" {
		t.Fatalf("%q, %v", b, err)
	}
	got, err := to.Take()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}
