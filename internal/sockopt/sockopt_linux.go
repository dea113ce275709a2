// SPDX-License-Identifier: Apache-2.0

package sockopt

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Socket is what lies under a connection. Its methods may be called
// concurrently; after the connection was closed they fail.
type Socket struct {
	raw syscall.RawConn

	// The low-water mark is set several times per megabyte: lowWater is made
	// once, so that setting it takes no memory.
	mu       sync.Mutex
	bytes    int
	err      error
	lowWater func(fd uintptr)
}

// Of returns the socket under a connection.
func Of(c syscall.Conn) (*Socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Socket{raw: raw}
	s.lowWater = func(fd uintptr) {
		s.err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, s.bytes)
	}
	return s, nil
}

// SetReceiveLowWater makes the poller report the socket readable only once n
// bytes have come or the connection has ended: fewer, larger reads. Reads
// that are tried anyway return what there is. 1 is the default; the system
// bounds n by the size of the receive buffer. It works for TCP.
func (s *Socket) SetReceiveLowWater(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes = n
	if err := s.raw.Control(s.lowWater); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt(SO_RCVLOWAT)", s.err)
}

// SetCongestion chooses the TCP congestion control by name, as in "cubic".
func (s *Socket) SetCongestion(name string) error {
	return s.control("setsockopt(TCP_CONGESTION)", func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
}

// SendQueue returns how many bytes written to the socket the peer's system has
// not acknowledged (TCP), or the peer has not read (unix sockets, where it
// counts the system's overhead too).
func (s *Socket) SendQueue() (n int, err error) {
	err = s.control("ioctl(SIOCOUTQ)", func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n, err
}

// AwaitReadable waits, in a system call, until the socket has bytes to read,
// has ended or was shut down, and reports whether it has before the timeout; a
// negative one is none. The low-water mark holds here too. Closing the socket
// waits for it to return: Shutdown wakes it.
func (s *Socket) AwaitReadable(timeout time.Duration) (ready bool, err error) {
	var end time.Time
	if timeout > 0 {
		end = time.Now().Add(timeout)
	}
	err = s.control("ppoll", func(fd int) error {
		for {
			var left *unix.Timespec
			if timeout >= 0 {
				ts := unix.NsecToTimespec(int64(timeout))
				left = &ts
			}
			n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, left, nil)
			if err != unix.EINTR {
				ready = n > 0
				return err
			}
			// The runtime interrupts threads by signals.
			if timeout > 0 {
				timeout = max(time.Until(end), 0)
			}
		}
	})
	return ready, err
}

// Shutdown ends both directions of the socket.
func (s *Socket) Shutdown() error {
	return s.control("shutdown", func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
}

func (s *Socket) control(call string, f func(fd int) error) error {
	var callErr error
	if err := s.raw.Control(func(fd uintptr) { callErr = f(int(fd)) }); err != nil {
		return err
	}
	return os.NewSyscallError(call, callErr)
}
