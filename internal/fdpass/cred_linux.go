// SPDX-License-Identifier: Apache-2.0

package fdpass

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// PeerCred returns the user, the group and the process that the other end of
// conn belonged to when it connected, as the kernel recorded them
// (SO_PEERCRED). The process id may have been reused since. It fails with
// errors.ErrUnsupported on systems other than Linux.
func PeerCred(conn syscall.Conn) (uid, gid, pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, -1, -1, fmt.Errorf("fdpass: peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return -1, -1, -1, fmt.Errorf("fdpass: peer credentials: %w", err)
	}
	if optErr != nil {
		return -1, -1, -1, os.NewSyscallError("getsockopt(SO_PEERCRED)", optErr)
	}
	return int(cred.Uid), int(cred.Gid), int(cred.Pid), nil
}
