// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockopt

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readv reads into bufs, one after the other. Package unix's takes memory for
// the vector each time; this one is the caller's.
func readv(fd int, vector *[2]unix.Iovec, bufs [2][]byte) (int, error) {
	count := 0
	for _, b := range bufs {
		if len(b) > 0 {
			vector[count].Base = unsafe.SliceData(b)
			vector[count].SetLen(len(b))
			count++
		}
	}
	n, _, errno := unix.Syscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(vector)), uintptr(count))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
