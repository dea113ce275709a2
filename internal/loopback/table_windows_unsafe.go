// SPDX-License-Identifier: Apache-2.0

//go:build windows

package loopback

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// connections returns Windows' table of TCP connections, with their processes: the
// number of rows, and the rows.
func connections(family uint32) ([]byte, error) {
	const ownerPIDConnections = 4
	get := windows.NewLazySystemDLL("iphlpapi.dll").NewProc("GetExtendedTcpTable")
	if err := get.Find(); err != nil {
		return nil, fmt.Errorf("loopback: %w", err)
	}
	size := uint32(16 << 10)
	for range 10 { // it may grow meanwhile
		table := make([]byte, size)
		r, _, _ := get.Call(uintptr(unsafe.Pointer(&table[0])), uintptr(unsafe.Pointer(&size)), 0, uintptr(family), ownerPIDConnections, 0)
		switch err := syscall.Errno(r); err {
		case 0:
			return table[:min(int(size), len(table))], nil
		case windows.ERROR_INSUFFICIENT_BUFFER:
			size += 4 << 10
		case windows.ERROR_OUTOFMEMORY: // what Wine says of a table that grows all the time
		default:
			return nil, os.NewSyscallError("GetExtendedTcpTable", err)
		}
	}
	return nil, fmt.Errorf("loopback: the table of connections does not stay the same: %w", ErrUnknown)
}
