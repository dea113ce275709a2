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

// errNoDiag: the kernel does not tell about single sockets.
var errNoDiag = errors.New("loopback: no sock_diag")

// States of a connection in which its socket may have an owner: it is whole, or that
// one has said his last, and listens on.
const (
	established = 1
	finWait1    = 4
	finWait2    = 5
)

// owned reports whether a socket in a state has an owner. One that was closed has
// neither an inode nor an owner any more, and is said to be root's.
func owned(state int, inode bool) bool {
	return state == established || inode && (state == finWait1 || state == finWait2)
}

// PeerUser returns the user who made the other end of conn, a connection over a
// loopback address. It fails with ErrUnknown, and where the system does not tell.
func PeerUser(conn net.Conn) (uid int, err error) {
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	remote, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !ok2 || !remote.IP.IsLoopback() {
		return -1, ErrUnknown
	}
	// The peer's socket sees the two addresses the other way round.
	peer := pair{remote.AddrPort(), local.AddrPort()}
	if uid, err = ofSocket(peer); errors.Is(err, errNoDiag) {
		return inTables(peer)
	}
	return uid, err
}

// The tables are read several times for a connection that is not in them: the kernel
// gives them in pieces, and while sockets come and go it may leave some out.
const (
	tries = 8
	pause = 2 * time.Millisecond // between them
)

// inTables is ofSocket by the tables of all sockets: for kernels and sandboxes that
// do not answer about a single one.
func inTables(p pair) (uid int, err error) {
	for range tries {
		if uid, err = inTable(p); !errors.Is(err, ErrUnknown) {
			break
		}
		time.Sleep(pause)
	}
	return uid, err
}

func inTable(p pair) (uid int, err error) {
	// The socket may be of either family.
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
		a, b := table.form(p.local.Addr()), table.form(p.remote.Addr())
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
		uid, err := find(f, endpoint(a, p.local.Port()), endpoint(b, p.remote.Port()))
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

// find looks for a connection that has an owner.
func find(table io.Reader, local, remote string) (uid int, err error) {
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[1] != local || fields[2] != remote {
			continue
		}
		if state, err := strconv.ParseUint(fields[3], 16, 8); err != nil || !owned(int(state), fields[9] != "0") {
			continue
		}
		return strconv.Atoi(fields[7])
	}
	if err := lines.Err(); err != nil {
		return -1, err
	}
	return -1, ErrUnknown
}
