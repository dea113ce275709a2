// SPDX-License-Identifier: Apache-2.0

package sockopt

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// SetReceiveLowWater makes the poller report the socket readable only once n
// bytes have come (or the connection has ended): fewer, larger reads. Reads
// that are tried anyway return what there is. 1 is the default.
func SetReceiveLowWater(rc syscall.RawConn, n int) error {
	return control(rc, "setsockopt(SO_RCVLOWAT)", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, n)
	})
}

// SetCongestion chooses the TCP congestion control by name, as in "cubic".
func SetCongestion(rc syscall.RawConn, name string) error {
	return control(rc, "setsockopt(TCP_CONGESTION)", func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
}

// SendQueue returns how many bytes written to the socket the peer has not
// taken yet.
func SendQueue(rc syscall.RawConn) (n int, err error) {
	err = control(rc, "ioctl(SIOCOUTQ)", func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n, err
}

func control(rc syscall.RawConn, call string, f func(fd int) error) error {
	var callErr error
	if err := rc.Control(func(fd uintptr) { callErr = f(int(fd)) }); err != nil {
		return err
	}
	return os.NewSyscallError(call, callErr)
}
