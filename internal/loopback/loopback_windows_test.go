// SPDX-License-Identifier: Apache-2.0

package loopback_test

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/memspan/memspan/internal/loopback"
)

func TestPeerUser(t *testing.T) {
	// Wine 8 knows the processes of IPv4 sockets that dialed, and of no others.
	wine := windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err) // no IPv6 here
			continue
		}
		near, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{near, far} {
			uid, err := loopback.PeerUser(c)
			if wine && (c == near || address == "[::1]:0") && errors.Is(err, loopback.ErrUnknown) {
				continue
			}
			if err != nil || uid != os.Getuid() {
				t.Errorf("%s: user %d, %v, want %d", address, uid, err, os.Getuid())
			}
		}
		near.Close()
		if uid, err := loopback.PeerUser(far); !errors.Is(err, loopback.ErrUnknown) {
			t.Errorf("%s: the other end has closed: user %d, %v", address, uid, err)
		}
		far.Close()
		ln.Close()
	}
	if _, err := loopback.PeerUser(new(net.UnixConn)); err == nil {
		t.Error("whose unix socket was told")
	}
}
