// SPDX-License-Identifier: Apache-2.0

package sockopt_test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/sockopt"
)

func dial(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func of(t *testing.T, c net.Conn) *sockopt.Socket {
	t.Helper()
	s, err := sockopt.Of(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The poller does not report a socket that holds less than the mark.
func TestReceiveLowWater(t *testing.T) {
	a, b := dial(t)
	s := of(t, b)
	if _, err := a.Write(make([]byte, 99)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 99; { // until they have arrived
		control(t, b, func(fd int) (err error) {
			n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
			return err
		})
	}
	for _, c := range []struct {
		mark     int
		readable bool
	}{{1, true}, {100, false}, {99, true}} {
		if err := s.SetReceiveLowWater(c.mark); err != nil {
			t.Fatal(err)
		}
		control(t, b, func(fd int) error {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			if readable := n > 0; readable != c.readable {
				t.Errorf("mark %d, 99 bytes: readable %v", c.mark, readable)
			}
			return err
		})
	}
}

func control(t *testing.T, c net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var callErr error
	if err := raw.Control(func(fd uintptr) { callErr = f(int(fd)) }); err != nil || callErr != nil {
		t.Fatal(err, callErr)
	}
}

func TestCongestion(t *testing.T) {
	a, _ := dial(t)
	s := of(t, a)
	for _, name := range []string{"reno", "cubic"} {
		if err := s.SetCongestion(name); err != nil {
			t.Skipf("this system has no %s: %v", name, err)
		}
		control(t, a, func(fd int) error {
			got, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
			if got != name {
				t.Errorf("set %q, got %q", name, got)
			}
			return err
		})
	}
	if err := s.SetCongestion("none such"); err == nil {
		t.Error("an unknown congestion control was taken")
	}
}

// The queue is what the peer's system has not taken: empty once the peer has
// read and answered.
func TestSendQueue(t *testing.T) {
	a, b := dial(t)
	s := of(t, a)
	if err := a.(*net.TCPConn).SetWriteBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	const total = 8 << 20 // more than the peer's system takes unread
	go func() {
		_, err := a.Write(make([]byte, total))
		sent <- err
	}()
	for {
		if n, err := s.SendQueue(); err != nil {
			t.Fatal(err)
		} else if n > 0 {
			break
		}
	}
	if _, err := io.CopyN(io.Discard, b, total); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	for { // the last acknowledgement is under way
		if n, err := s.SendQueue(); err != nil {
			t.Fatal(err)
		} else if n == 0 {
			return
		}
	}
}

func TestClosedSocket(t *testing.T) {
	a, _ := dial(t)
	s := of(t, a)
	a.Close()
	if err := s.SetReceiveLowWater(1); err == nil {
		t.Error("the low-water mark of a closed socket was set")
	}
	if _, err := s.SendQueue(); err == nil {
		t.Error("a closed socket has a queue")
	}
}

func TestAwaitReadable(t *testing.T) {
	a, b := dial(t)
	s := of(t, b)
	if ready, err := s.AwaitReadable(0); ready || err != nil {
		t.Errorf("nothing was sent: %v, %v", ready, err)
	}
	if ready, err := s.AwaitReadable(time.Millisecond); ready || err != nil {
		t.Errorf("nothing was sent: %v, %v", ready, err)
	}
	if _, err := a.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it takes nothing
		if ready, err := s.AwaitReadable(-1); !ready || err != nil {
			t.Errorf("a byte was sent: %v, %v", ready, err)
		}
	}
}

// Whoever waits is woken by Shutdown; Close alone would wait for him.
func TestShutdownWakes(t *testing.T) {
	_, b := dial(t)
	s := of(t, b)
	woken := make(chan bool)
	go func() {
		ready, err := s.AwaitReadable(-1)
		woken <- ready && err == nil
	}()
	if err := s.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if !<-woken {
		t.Error("the end is not readable")
	}
	b.Close()
	if _, err := s.AwaitReadable(-1); err == nil {
		t.Error("a closed socket was waited for")
	}
}

// A message in two parts, from a sender that waits for the acknowledgement of
// the first, does not wait for the kernel's timer: hundreds of them would take
// tens of seconds.
func TestAcknowledging(t *testing.T) {
	a, b := dial(t)
	if err := a.(*net.TCPConn).SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	c := sockopt.Acknowledging(b)
	deadline := time.Now().Add(15 * time.Second) // of 20 s and more
	if err := errors.Join(a.SetDeadline(deadline), b.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2)
	for range 500 {
		for range 2 {
			if _, err := a.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, buf); err != nil {
			t.Fatal(err)
		}
	}
	near, _ := net.Pipe()
	if sockopt.Acknowledging(near) != near {
		t.Error("a pipe is none that acknowledges")
	}
}
