// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package loopback

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// The table is read several times for a connection that is not in it: the kernel
// gives it in pieces, and while sockets come and go it may leave some out.
const (
	tries = 8
	pause = 2 * time.Millisecond // between them
)

// PeerUser returns the user who made the other end of conn, a connection over a
// loopback address. It fails with ErrUnknown, and where there is no such table.
func PeerUser(conn net.Conn) (uid int, err error) {
	for range tries {
		if uid, err = peerUser(conn); !errors.Is(err, ErrUnknown) {
			break
		}
		time.Sleep(pause)
	}
	return uid, err
}

func peerUser(conn net.Conn) (uid int, err error) {
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	remote, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !ok2 || !remote.IP.IsLoopback() {
		return -1, ErrUnknown
	}
	// The peer's socket sees the two addresses the other way round. It may be
	// of either family.
	here, there := remote.AddrPort(), local.AddrPort()
	for _, table := range []struct {
		path string
		form func(netip.Addr) []byte
	}{
		{"/proc/net/tcp", func(a netip.Addr) []byte {
			if a = a.Unmap(); !a.Is4() {
				return nil
			}
			return a.AsSlice()
		}},
		{"/proc/net/tcp6", func(a netip.Addr) []byte { b := a.As16(); return b[:] }},
	} {
		a, b := table.form(here.Addr()), table.form(there.Addr())
		if a == nil || b == nil {
			continue
		}
		f, err := os.Open(table.path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return -1, err
		}
		uid, err := find(f, endpoint(a, here.Port()), endpoint(b, there.Port()))
		f.Close()
		if !errors.Is(err, ErrUnknown) {
			return uid, err
		}
	}
	return -1, ErrUnknown
}

// endpoint is how the table writes an address: words of 32 bits as the
// processor has them.
func endpoint(addr []byte, port uint16) string {
	var b strings.Builder
	for ; len(addr) > 0; addr = addr[4:] {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(addr))
	}
	fmt.Fprintf(&b, ":%04X", port)
	return b.String()
}

// find looks for an established connection: other states have no owner any more.
func find(table io.Reader, local, remote string) (uid int, err error) {
	const established = "01"
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[1] != local || fields[2] != remote || fields[3] != established {
			continue
		}
		return strconv.Atoi(fields[7])
	}
	if err := lines.Err(); err != nil {
		return -1, err
	}
	return -1, ErrUnknown
}
