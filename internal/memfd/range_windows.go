// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// Size returns the length of memory whose handle came from another process, in
// bytes, a multiple of the page size.
func Size(file *os.File) (int64, error) {
	size, err := sectionSize(windows.Handle(file.Fd()))
	if err != nil {
		return 0, fmt.Errorf("memfd: size of %s: %w", file.Name(), err)
	}
	return size, nil
}

// Solid reports true: holes take memory here.
func Solid(*os.File, int64) bool { return true }

// CheckSealed fails unless file is memory of at least size bytes, which nobody
// can take away.
func CheckSealed(file *os.File, size int64) error {
	got, err := Size(file)
	if err != nil {
		return err
	}
	if size <= 0 || got < size {
		return fmt.Errorf("memfd: handle holds %d bytes, want %d", got, size)
	}
	return nil
}

// MapRange maps bytes [off, off+n) of memory that another process made, and with
// them the rest of the pages they begin and end in. It refuses memory that ends
// before off+n. The mapping does not need file any longer, which stays the
// caller's; give it back with Unmap.
func MapRange(file *os.File, off, n int64, writable bool) ([]byte, error) {
	if off < 0 || n <= 0 || off > maxRegionSize || n > maxRegionSize {
		return nil, fmt.Errorf("memfd: map [%d, +%d): not a range", off, n)
	}
	if err := CheckSealed(file, off+n); err != nil {
		return nil, err
	}
	access := uint32(windows.FILE_MAP_READ)
	if writable {
		access |= windows.FILE_MAP_WRITE
	}
	start, page := off&^(granularity-1), off&^int64(os.Getpagesize()-1)
	mem, err := mapSection(windows.Handle(file.Fd()), access, start, off+n-start)
	if err != nil {
		return nil, err
	}
	return mem[page-start:], nil
}

// Unmap gives back a mapping that MapRange returned: the whole slice.
func Unmap(mem []byte) error { return unmapView(mem) }

// reopen returns another handle of the same memory, for reading only.
func reopen(file *os.File) (*os.File, error) {
	var h windows.Handle
	me := windows.CurrentProcess()
	if err := windows.DuplicateHandle(me, windows.Handle(file.Fd()), me, &h, readSection, false, 0); err != nil {
		return nil, os.NewSyscallError("DuplicateHandle", err)
	}
	return os.NewFile(uintptr(h), file.Name()), nil
}
