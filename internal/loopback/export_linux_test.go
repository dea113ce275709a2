// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"net"
	"net/netip"
)

// ByDiag asks the kernel about one socket.
func ByDiag(conn net.Conn) (uid int, err error) { return ofSocket(peerOf(conn)) }

// ByTables looks a socket up in the tables of all.
func ByTables(conn net.Conn) (uid int, err error) { return inTables(peerOf(conn)) }

func peerOf(conn net.Conn) pair {
	return pair{conn.RemoteAddr().(*net.TCPAddr).AddrPort(), conn.LocalAddr().(*net.TCPAddr).AddrPort()}
}

// ParseAnswer reads what the kernel answers about a socket.
func ParseAnswer(b []byte, local, remote netip.AddrPort) (uid int, err error) {
	return parseAnswer(b, pair{local, remote})
}
