// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package fdpass

import (
	"errors"
	"fmt"
	"syscall"
)

// PeerCred fails on this system.
func PeerCred(syscall.Conn) (uid, gid, pid int, err error) {
	return -1, -1, -1, fmt.Errorf("fdpass: peer credentials: %w", errors.ErrUnsupported)
}
