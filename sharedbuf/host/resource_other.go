// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package host

import (
	"errors"
	"syscall"
)

// isResource reports whether err is for want of something that may come back.
func isResource(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
