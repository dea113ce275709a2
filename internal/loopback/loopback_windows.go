// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/windows"

	"github.com/memspan/memspan/internal/userid"
)

// PeerUser returns the user who made the other end of conn, a connection over a
// loopback address, by the numbers of package userid. It fails with ErrUnknown,
// and if this process may not look at that one: then it is another user's.
func PeerUser(conn net.Conn) (uid int, err error) {
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	remote, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !ok2 || !remote.IP.IsLoopback() {
		return -1, ErrUnknown
	}
	// The peer's socket sees the two addresses the other way round. It may be
	// of either family.
	here, there := remote.AddrPort(), local.AddrPort()
	for _, t := range tables {
		a, b := t.form(here.Addr()), t.form(there.Addr())
		if a == nil || b == nil {
			continue
		}
		rows, err := connections(t.family)
		if err != nil {
			return -1, err
		}
		if pid := t.find(rows, a, here.Port(), b, there.Port()); pid != 0 {
			return userOf(pid)
		}
	}
	return -1, ErrUnknown
}

// A table is how Windows has the connections of one family: where in a row is what.
type table struct {
	family                                      uint32
	form                                        func(netip.Addr) []byte
	row                                         int
	state, local, localPort, remote, remotePort int
	pid                                         int
}

// tables: MIB_TCPROW_OWNER_PID and MIB_TCP6ROW_OWNER_PID.
var tables = [...]table{
	{windows.AF_INET, func(a netip.Addr) []byte {
		if a = a.Unmap(); !a.Is4() {
			return nil
		}
		return a.AsSlice()
	}, 24, 0, 4, 8, 12, 16, 20},
	{windows.AF_INET6, func(a netip.Addr) []byte { b := a.As16(); return b[:] }, 56, 48, 0, 20, 24, 44, 52},
}

// find returns the process that has the connection between two addresses, or 0.
func (t *table) find(rows []byte, local []byte, localPort uint16, remote []byte, remotePort uint16) (pid uint32) {
	const established = 5
	le, be := binary.LittleEndian, binary.BigEndian
	if len(rows) < 4 {
		return 0
	}
	n := le.Uint32(rows)
	for rows = rows[4:]; n > 0 && len(rows) >= t.row; n-- {
		row := rows[:t.row]
		rows = rows[t.row:]
		if le.Uint32(row[t.state:]) == established &&
			bytes.HasPrefix(row[t.local:], local) && be.Uint16(row[t.localPort:]) == localPort &&
			bytes.HasPrefix(row[t.remote:], remote) && be.Uint16(row[t.remotePort:]) == remotePort {
			return le.Uint32(row[t.pid:])
		}
	}
	return 0
}

// userOf returns the user of a process.
func userOf(pid uint32) (int, error) {
	failed := func(call string, err error) (int, error) {
		return -1, fmt.Errorf("loopback: process %d: %w", pid, os.NewSyscallError(call, err))
	}
	process, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return failed("OpenProcess", err)
	}
	defer windows.CloseHandle(process)
	var token windows.Token
	if err := windows.OpenProcessToken(process, windows.TOKEN_QUERY, &token); err != nil {
		return failed("OpenProcessToken", err)
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	if err != nil {
		return failed("GetTokenInformation", err)
	}
	return userid.Of(user.User.Sid)
}
