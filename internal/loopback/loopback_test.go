// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package loopback_test

import (
	"errors"
	"net"
	"os"
	"runtime"
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
