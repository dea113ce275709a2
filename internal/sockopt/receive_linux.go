// SPDX-License-Identifier: Apache-2.0

package sockopt

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Receiver reads a TCP connection, and sets its low-water mark only where it
// has to wait.
type Receiver struct {
	raw syscall.RawConn

	mu     sync.Mutex // held by Receive
	mark   int        // of the socket now
	want   int
	bufs   [2][]byte
	vector [2]unix.Iovec
	n      int
	err    error
	try    func(fd uintptr) bool // made once, so that receiving takes no memory
	marks  bool                  // the mark can be set

	watched atomic.Bool // others wait for bytes too: Receive leaves no mark behind
}

// ReceiverOf returns a receiver for a TCP connection that has the default mark.
// There must be no other that sets it.
func ReceiverOf(c syscall.Conn) (*Receiver, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &Receiver{raw: raw, mark: 1, marks: true}
	r.try = r.read
	return r, nil
}

// Receive reads what has come into p and, once that is full, into after. If
// nothing has come it waits until about want bytes have, as many as the system
// lets come together, or until the connection's read deadline passes: fewer
// bytes do not wake it, but are found by the next Receive. At the connection's
// end it returns io.EOF.
func (r *Receiver) Receive(p, after []byte, want int) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bufs, r.want = [2][]byte{p, after}, max(want, 1)
	r.n, r.err = 0, nil
	err := r.raw.Read(r.try)
	r.bufs, r.vector = [2][]byte{}, [2]unix.Iovec{} // the caller's memory is not kept
	if r.watched.Load() {
		r.lower()
	}
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, os.NewSyscallError("readv", r.err)
	case r.n == 0 && len(p)+len(after) > 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// Watch has the socket become readable with its first byte for those who wait
// for it otherwise than by Receive, from now on: a mark that Receive set would
// hold for them too. It waits for a Receive that is under way, the first time.
func (r *Receiver) Watch() {
	if r.watched.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watched.Store(true)
	r.lower()
}

// lower sets the default mark. If that fails the socket has ended.
func (r *Receiver) lower() {
	if r.mark != 1 && r.raw.Control(func(fd uintptr) {
		r.marks = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1) == nil
	}) == nil {
		r.mark = 1
	}
}

// read is one attempt; false waits for the socket to become readable.
func (r *Receiver) read(fd uintptr) bool {
	for {
		r.n, r.err = readv(int(fd), &r.vector, r.bufs)
		switch {
		case errors.Is(r.err, unix.EINTR):
			continue
		case !errors.Is(r.err, unix.EAGAIN):
			return true
		}
		if r.mark != r.want && r.marks {
			// If as much has come meanwhile the system says so at once.
			r.marks = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, r.want) == nil
			r.mark = r.want
		}
		return false
	}
}
