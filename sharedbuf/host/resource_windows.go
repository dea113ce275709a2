// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"syscall"
)

// isResource reports whether err is for want of something that may come back, or
// of a connection that went before it was accepted.
func isResource(err error) bool {
	const (
		tooManySockets = syscall.Errno(10024) // WSAEMFILE
		noMemory       = syscall.Errno(8)     // ERROR_NOT_ENOUGH_MEMORY
		noBuffers      = syscall.Errno(10055) // WSAENOBUFS
	)
	for _, errno := range []syscall.Errno{tooManySockets, noBuffers, syscall.WSAECONNABORTED, syscall.WSAECONNRESET, noMemory} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
