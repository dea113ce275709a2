// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package userfault

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// apiArg is struct uffdio_api.
type apiArg struct {
	api, features, _ uint64
}

// registerArg is struct uffdio_register.
type registerArg struct {
	start, len, mode, _ uint64
}

// writeProtectArg is struct uffdio_writeprotect.
type writeProtectArg struct {
	start, len, mode uint64
}

// pageRegion is struct page_region.
type pageRegion struct {
	start, end, categories uint64
}

// scanArg is struct pm_scan_arg.
type scanArg struct {
	size, flags, start, end, walkEnd uint64
	// vec is a pointer here and a u64 in C: the same on these processors, and
	// the garbage collector sees it.
	vec                                                           unsafe.Pointer
	vecLen, maxPages                                              uint64
	categoryInverted, categoryMask, categoryAnyofMask, returnMask uint64
}

// address returns where mem begins. mem is a mapping, not Go memory: it does
// not move, so a number stays right.
func address(mem []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}

// control calls ioctl with a struct of the kernel's. Converting arg within the
// call's own argument list keeps it alive and in place meanwhile.
func control[T apiArg | registerArg | writeProtectArg](fd int, request uintptr, arg *T) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN: // a signal, or the address space was changing
		default:
			return errno
		}
	}
}

// scan calls PAGEMAP_SCAN with vec, which is not empty, as room for the answer
// and returns how many entries the kernel filled. The conversion of arg is as
// in control; arg itself holds vec as a pointer, which keeps that in turn.
func scan(fd int, arg *scanArg, vec []pageRegion) (int, error) {
	arg.size = uint64(unsafe.Sizeof(*arg))
	arg.vec, arg.vecLen = unsafe.Pointer(unsafe.SliceData(vec)), uint64(len(vec))
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlPagemapScan, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
