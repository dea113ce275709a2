// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// What sock_diag(7) sends and answers: linux/inet_diag.h. Ports and addresses are in
// the network's order, the rest is in the processor's.
const (
	requestSize = unix.SizeofNlMsghdr + 56 // inet_diag_req_v2
	answerSize  = unix.SizeofNlMsghdr + 72 // inet_diag_msg
	maxAnswer   = 4096                     // with the attributes that follow it

	socketID    = 8  // of an inet_diag_req_v2: where the inet_diag_sockid begins
	answeredID  = 4  // of an inet_diag_msg
	socketUser  = 64 // of an inet_diag_msg
	socketInode = 68
	loIndex     = 1 // of the loopback interface, which every network namespace has first
)

// A pair is the two ends of a connection as one of its sockets sees them.
type pair struct{ local, remote netip.AddrPort }

func (p pair) turned() pair { return pair{p.remote, p.local} }

// ofSocket returns the user whose socket has the pair. It fails with ErrUnknown if
// there is none that is connected, and with errNoDiag where the kernel does not tell.
func ofSocket(p pair) (uid int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", errNoDiag, os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	uid, err = ask(fd, p)
	if !errors.Is(err, ErrUnknown) {
		return uid, err
	}
	// A kernel that was built without it says the same. Our own socket is there.
	if _, own := ask(fd, p.turned()); own != nil {
		return -1, errNoDiag
	}
	return -1, err
}

func ask(fd int, p pair) (uid int, err error) {
	if err := unix.Sendto(fd, request(p), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, fmt.Errorf("%w: %w", errNoDiag, os.NewSyscallError("sendto", err))
	}
	buf := make([]byte, maxAnswer)
	n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT) // the kernel answers within sendto
	if err != nil {
		return -1, fmt.Errorf("%w: %w", errNoDiag, os.NewSyscallError("recvfrom", err))
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
		return -1, fmt.Errorf("%w: somebody else answered", errNoDiag)
	}
	return parseAnswer(buf[:n], p)
}

// request asks for the TCP socket that has exactly the pair.
func request(p pair) []byte {
	b := make([]byte, requestSize)
	ne := binary.NativeEndian
	ne.PutUint32(b, requestSize)
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	r := b[unix.SizeofNlMsghdr:]
	r[0], r[1] = unix.AF_INET6, unix.IPPROTO_TCP
	ne.PutUint32(r[4:], 1<<established|1<<finWait1|1<<finWait2)
	id := r[socketID:]
	binary.BigEndian.PutUint16(id, p.local.Port())
	binary.BigEndian.PutUint16(id[2:], p.remote.Port())
	if local, remote := p.local.Addr().Unmap(), p.remote.Addr().Unmap(); local.Is4() && remote.Is4() {
		r[0] = unix.AF_INET // finds sockets of IPv6 with such addresses, too
		copy(id[4:], local.AsSlice())
		copy(id[20:], remote.AsSlice())
	} else {
		local, remote := p.local.Addr().As16(), p.remote.Addr().As16()
		copy(id[4:], local[:])
		copy(id[20:], remote[:])
	}
	ne.PutUint32(id[36:], loIndex) // so that sockets bound to it are found
	ne.PutUint64(id[40:], 1<<64-1) // any cookie
	return b
}

// parseAnswer returns the user in the kernel's answer about the pair. A socket that
// listens there, or has been closed, is not the one; one that has been shut down for
// writing is, as long as somebody has it.
func parseAnswer(b []byte, p pair) (uid int, err error) {
	malformed := fmt.Errorf("%w: an answer of %d bytes that cannot be read", errNoDiag, len(b))
	if len(b) < unix.SizeofNlMsghdr+4 {
		return -1, malformed
	}
	ne := binary.NativeEndian
	kind, payload := ne.Uint16(b[4:]), b[unix.SizeofNlMsghdr:]
	switch {
	case kind == unix.NLMSG_ERROR:
		if errno := unix.Errno(-int32(ne.Uint32(payload))); errno != unix.ENOENT {
			return -1, fmt.Errorf("%w: %w", errNoDiag, os.NewSyscallError("sock_diag", errno))
		}
		return -1, ErrUnknown
	case kind != unix.SOCK_DIAG_BY_FAMILY || len(b) < answerSize:
		return -1, malformed
	}
	id := payload[answeredID:]
	found := pair{
		netip.AddrPortFrom(address(payload[0], id[4:20]), binary.BigEndian.Uint16(id)),
		netip.AddrPortFrom(address(payload[0], id[20:36]), binary.BigEndian.Uint16(id[2:])),
	}
	want := pair{unmapped(p.local), unmapped(p.remote)}
	if !owned(int(payload[1]), ne.Uint32(payload[socketInode:]) != 0) || found != want {
		return -1, ErrUnknown
	}
	return int(ne.Uint32(payload[socketUser:])), nil
}

// address reads 16 bytes of an inet_diag_sockid.
func address(family byte, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
