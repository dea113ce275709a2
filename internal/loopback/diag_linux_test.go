// SPDX-License-Identifier: Apache-2.0

package loopback_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/loopback"
)

// connected returns the two ends of a connection to a listener.
func connected(t testing.TB, ln net.Listener, d net.Dialer, host string) (near, far net.Conn) {
	t.Helper()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if near, err = d.Dial("tcp", net.JoinHostPort(host, port)); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// Both ways say the same of sockets of both families, and of those that are gone. A
// kernel without sock_diag has the tables alone.
func TestBothWays(t *testing.T) {
	for listen, host := range map[string]string{"127.0.0.1:0": "127.0.0.1", "127.0.0.2:0": "127.0.0.2", "[::1]:0": "::1", ":0": "127.0.0.1"} {
		ln, err := net.Listen("tcp", listen)
		if err != nil {
			t.Logf("%s: %v", listen, err) // no IPv6 here
			continue
		}
		defer ln.Close()
		for device, d := range map[string]net.Dialer{"": {}, "lo": {Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "lo") })
			return errors.Join(err, cerr)
		}}} {
			near, far := connected(t, ln, d, host)
			check := func(what string, c net.Conn, known bool) {
				t.Helper()
				for name, ask := range map[string]func(net.Conn) (int, error){"sock_diag": loopback.ByDiag, "tables": loopback.ByTables} {
					uid, err := ask(c)
					switch {
					case name == "sock_diag" && err != nil && !errors.Is(err, loopback.ErrUnknown):
						t.Logf("%v", err) // not here
					case known && (err != nil || uid != os.Getuid()), !known && !errors.Is(err, loopback.ErrUnknown):
						t.Errorf("%s to %s, bound to %q: %s, %s: user %d, %v", host, listen, device, what, name, uid, err)
					}
				}
			}
			check("who dialed", far, true)
			check("who listens", near, true)
			near.Close()
			check("who has closed", far, false)
		}
	}
}

// Sockets are told apart by all of the pair: one that listens at the same port is not
// the one, nor is another connection's.
func TestAnotherPair(t *testing.T) {
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, far := connected(t, ln, net.Dialer{}, "127.0.0.1")
	other, _ := connected(t, ln, net.Dialer{}, "127.0.0.1")
	for name, c := range map[string]net.Conn{
		"nobody's":     elsewhere{far, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}},
		"the listener": elsewhere{other, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3), Port: ln.Addr().(*net.TCPAddr).Port}},
	} {
		if uid, err := loopback.PeerUser(c); !errors.Is(err, loopback.ErrUnknown) {
			t.Errorf("%s: user %d, %v", name, uid, err)
		}
	}
}

// Elsewhere is a connection that says its other end is another one.
type elsewhere struct {
	net.Conn
	remote net.Addr
}

func (e elsewhere) RemoteAddr() net.Addr { return e.remote }

// An answer is believed if it is about a socket with the pair that was asked for, that
// somebody has; whatever comes is read without a fault.
func FuzzParseAnswer(f *testing.F) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:4660"), netip.MustParseAddrPort("127.0.0.1:50000")
	six := netip.MustParseAddrPort("[::1]:4660")
	ne := binary.NativeEndian
	answer := func(family, state byte, local, remote netip.AddrPort) []byte {
		b := make([]byte, 88)
		ne.PutUint32(b, 88)
		ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
		b[16], b[17] = family, state
		binary.BigEndian.PutUint16(b[20:], local.Port())
		binary.BigEndian.PutUint16(b[22:], remote.Port())
		if family == unix.AF_INET {
			copy(b[24:], local.Addr().AsSlice())
			copy(b[40:], remote.Addr().AsSlice())
		} else {
			a, c := local.Addr().As16(), remote.Addr().As16()
			copy(b[24:], a[:])
			copy(b[40:], c[:])
		}
		ne.PutUint32(b[80:], 1000)
		return b
	}
	good := answer(unix.AF_INET, 1, local, remote)
	shut, closed := answer(unix.AF_INET, 5, local, remote), answer(unix.AF_INET, 5, local, remote)
	ne.PutUint32(shut[84:], 7) // its inode
	for name, test := range map[string]struct {
		b    []byte
		uid  int
		want error // nil: any that is not ErrUnknown, if there is no user
	}{
		"the one":         {good, 1000, nil},
		"of IPv6":         {answer(unix.AF_INET6, 1, local, remote), 1000, nil},
		"with attributes": {append(good[:88:88], 8, 0, 8, 0, 1, 2, 3, 4), 1000, nil},
		"shut down":       {shut, 1000, nil},
		"closed":          {closed, -1, loopback.ErrUnknown},
		"listening":       {answer(unix.AF_INET, 10, local, remote), -1, loopback.ErrUnknown},
		"another port":    {answer(unix.AF_INET, 1, remote, local), -1, loopback.ErrUnknown},
		"another address": {answer(unix.AF_INET6, 1, six, remote), -1, loopback.ErrUnknown},
		"none":            {append(good[:4:4], 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFE, 0xFF, 0xFF, 0xFF), -1, loopback.ErrUnknown},
		"forbidden":       {append(good[:4:4], 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF), -1, nil},
		"short":           {good[:87], -1, nil},
		"nothing":         {nil, -1, nil},
	} {
		f.Add(test.b)
		uid, err := loopback.ParseAnswer(test.b, local, remote)
		if uid != test.uid || (err == nil) != (uid >= 0) || errors.Is(err, loopback.ErrUnknown) != (test.want != nil) {
			f.Errorf("%s: user %d, %v", name, uid, err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		uid, err := loopback.ParseAnswer(b, local, remote)
		if err != nil {
			if uid != -1 {
				t.Errorf("user %d, %v", uid, err)
			}
			return
		}
		if want := answer(b[16], 1, local, remote); string(b[20:24]) != string(want[20:24]) || b[17] != 1 && (b[17] != 4 && b[17] != 5 || ne.Uint32(b[84:]) == 0) || uid < 0 {
			t.Errorf("%x was taken for the one: user %d", b, uid)
		}
	})
}

// BenchmarkPeerUser is the look for a connection among others.
func BenchmarkPeerUser(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	var far net.Conn
	for range 200 {
		_, far = connected(b, ln, net.Dialer{}, "127.0.0.1")
	}
	for name, ask := range map[string]func(net.Conn) (int, error){"sock_diag": loopback.ByDiag, "tables": loopback.ByTables} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := ask(far); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
