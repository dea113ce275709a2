// SPDX-License-Identifier: Apache-2.0

//go:build windows

package memfd

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Access rights of a section. Whoever may read it may ask for its size.
const (
	sectionQuery  = 0x1
	readSection   = windows.FILE_MAP_READ | sectionQuery
	granularity   = 64 << 10 // of the places where views begin, in files and in memory
	maxRegionSize = 1 << 46
)

// newSection reserves memory of size bytes without a name, backed by the paging
// file, for commit. The rights that its handles
// have are all that there ever are: whoever has one for reading, though the same
// user, cannot make one for writing of it. (OW is whoever owns the section; said
// of him, it takes the rights from him that owners have otherwise.)
func newSection(size int64) (windows.Handle, error) {
	sd, err := windows.SecurityDescriptorFromString(fmt.Sprintf("D:P(A;;%#x;;;OW)", readSection))
	if err != nil {
		return 0, os.NewSyscallError("ConvertStringSecurityDescriptorToSecurityDescriptor", err)
	}
	attributes := windows.SecurityAttributes{SecurityDescriptor: sd}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	const reserve = 0x4000000
	h, err := windows.CreateFileMapping(windows.InvalidHandle, &attributes, windows.PAGE_READWRITE|reserve, uint32(size>>32), uint32(size), nil)
	return h, failed("CreateFileMapping", err)
}

// failed says which call failed; for want of memory it matches ENOMEM.
func failed(call string, err error) error {
	for _, full := range []error{windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_COMMITMENT_LIMIT, windows.ERROR_COMMITMENT_MINIMUM, windows.ERROR_NO_SYSTEM_RESOURCES} {
		if errors.Is(err, full) {
			err = fmt.Errorf("%w (%w)", syscall.ENOMEM, err)
		}
	}
	return os.NewSyscallError(call, err)
}

// mapSection maps n bytes of a section from off on, which is where views begin.
func mapSection(h windows.Handle, access uint32, off, n int64) ([]byte, error) {
	if n <= 0 || n > maxRegionSize || int64(uintptr(n)) != n {
		return nil, fmt.Errorf("memfd: map %d bytes: not a size", n)
	}
	at, err := windows.MapViewOfFile(h, access, uint32(off>>32), uint32(off), uintptr(n))
	if err != nil {
		return nil, failed("MapViewOfFile", err)
	}
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), n), nil
}

// unmapView unmaps the view that mem is in the beginning of.
func unmapView(mem []byte) error {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(mem))) &^ (granularity - 1)
	return os.NewSyscallError("UnmapViewOfFile", windows.UnmapViewOfFile(at))
}

// commit takes the memory of the first n bytes of a view from the system.
func commit(view []byte, n int64) error {
	if n == 0 {
		return nil
	}
	_, err := windows.VirtualAlloc(uintptr(unsafe.Pointer(unsafe.SliceData(view))), uintptr(n), windows.MEM_COMMIT, windows.PAGE_READWRITE)
	return failed("VirtualAlloc", err)
}

// sectionSize returns the size of a section, in whole pages.
func sectionSize(h windows.Handle) (int64, error) {
	query := windows.NewLazySystemDLL("ntdll.dll").NewProc("NtQuerySection")
	if err := query.Find(); err != nil {
		return 0, err
	}
	var basic struct {
		base       uintptr
		attributes uint32
		size       int64
	}
	const basicInformation = 0
	status, _, _ := query.Call(uintptr(h), basicInformation, uintptr(unsafe.Pointer(&basic)), unsafe.Sizeof(basic), 0)
	if status != 0 {
		return 0, os.NewSyscallError("NtQuerySection", windows.NTStatus(status).Errno())
	}
	if basic.size <= 0 {
		return 0, errors.New("memfd: a section without a size")
	}
	return basic.size, nil
}
