// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package loopback_test

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/memspan/memspan/internal/loopback"
)

func TestPeerUser(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the table is Linux's")
	}
	for listen, dial := range map[string]string{"127.0.0.1:0": "127.0.0.1", "[::1]:0": "::1", ":0": "127.0.0.1"} {
		ln, err := net.Listen("tcp", listen)
		if err != nil {
			t.Logf("%s: %v", listen, err) // no IPv6 here
			continue
		}
		_, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		near, err := net.Dial("tcp", net.JoinHostPort(dial, port))
		if err != nil {
			t.Fatal(err)
		}
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{near, far} {
			if uid, err := loopback.PeerUser(c); err != nil || uid != os.Getuid() {
				t.Errorf("%s: user %d, %v, want %d", listen, uid, err, os.Getuid())
			}
		}
		if err := near.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if uid, err := loopback.PeerUser(far); err != nil || uid != os.Getuid() {
			t.Errorf("%s: the other end still listens: user %d, %v, want %d", listen, uid, err, os.Getuid())
		}
		near.Close()
		if uid, err := loopback.PeerUser(far); !errors.Is(err, loopback.ErrUnknown) {
			t.Errorf("%s: the other end has closed: user %d, %v", listen, uid, err)
		}
		far.Close()
		ln.Close()
	}
	if _, err := loopback.PeerUser(new(net.UnixConn)); err == nil {
		t.Error("whose unix socket was told")
	}
}

// Others' connections come and go meanwhile. (Where the tables are read they move what
// is in there.)
func TestPeerUserAmongOthers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the table is Linux's")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pair := func() (near, far net.Conn, err error) {
		if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
			return nil, nil, err
		}
		if far, err = ln.Accept(); err != nil {
			near.Close()
		}
		return near, far, err
	}
	near, far, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for {
			select {
			case <-stop:
				return
			default:
			}
			a, b, err := pair()
			if err != nil {
				t.Error(err)
				return
			}
			open = append(open, a, b)
			if len(open) > 400 {
				for _, c := range open[:300] {
					c.(*net.TCPConn).SetLinger(0) // at once, and no port is kept
					c.Close()
				}
				open = append(open[:0], open[300:]...)
			}
		}
	})
	for range 300 {
		if uid, err := loopback.PeerUser(far); err != nil || uid != os.Getuid() {
			t.Errorf("user %d, %v, want %d", uid, err, os.Getuid())
			break
		}
	}
	close(stop)
	others.Wait()
}
