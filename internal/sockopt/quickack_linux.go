// SPDX-License-Identifier: Apache-2.0

package sockopt

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// An acknowledging connection answers what comes at once. A peer that sends a
// message in two parts, with Nagle's algorithm on, waits with the second for
// the first one's acknowledgement, which the kernel otherwise holds back for
// 40 ms. It falls back to that by itself, so the option is set before each read.
type acknowledging struct {
	*net.TCPConn
	raw syscall.RawConn
	set func(fd uintptr) // made once, so that reading takes no memory
}

// Acknowledging returns c, if it is a TCP connection, as one whose reads
// acknowledge at once what has come.
func Acknowledging(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return c
	}
	return &acknowledging{t, raw, func(fd uintptr) {
		// Where it cannot be set the connection is slower, or ended.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	}}
}

func (c *acknowledging) Read(p []byte) (int, error) {
	if err := c.raw.Control(c.set); err != nil {
		return 0, err
	}
	return c.TCPConn.Read(p)
}
