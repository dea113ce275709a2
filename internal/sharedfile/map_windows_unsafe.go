// SPDX-License-Identifier: Apache-2.0

//go:build windows

package sharedfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Map maps the first size bytes of f, shared. It fails if the file is shorter.
func Map(f *os.File, size int64, writable bool) (mem []byte, err error) {
	if size <= 0 || size > 1<<46 || int64(uintptr(size)) != size {
		return nil, fmt.Errorf("map %d bytes of %s: not a size", size, f.Name())
	}
	protection, access := uint32(windows.PAGE_READONLY), uint32(windows.FILE_MAP_READ)
	if writable {
		protection, access = windows.PAGE_READWRITE, windows.FILE_MAP_READ|windows.FILE_MAP_WRITE
	}
	if err := onHandle(f, func(h windows.Handle) error {
		// Without a size the section has the file's: one that is too short is
		// not made longer.
		section, err := windows.CreateFileMapping(h, nil, protection, 0, 0, nil)
		if err != nil {
			return os.NewSyscallError("CreateFileMapping", err)
		}
		defer windows.CloseHandle(section) // the view keeps it
		at, err := windows.MapViewOfFile(section, access, 0, 0, uintptr(size))
		if err != nil {
			return os.NewSyscallError("MapViewOfFile", err)
		}
		mem = unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), size)
		return nil
	}); err != nil {
		return nil, &fs.PathError{Op: "map", Path: f.Name(), Err: err}
	}
	return mem, nil
}

// Populate does nothing: Windows maps many pages at each fault.
func Populate([]byte) {}

// Unmap gives back what Map returned.
func Unmap(mem []byte) error {
	return os.NewSyscallError("UnmapViewOfFile", windows.UnmapViewOfFile(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))))
}

// Publish writes what was stored in a mapping of f through to the file, for a
// side that does not share its pages.
func Publish(f *os.File, mem []byte) error {
	if err := windows.FlushViewOfFile(uintptr(unsafe.Pointer(unsafe.SliceData(mem))), uintptr(len(mem))); err != nil {
		return os.NewSyscallError("FlushViewOfFile", err)
	}
	// The view's pages are with the file server then; this has it take them.
	err := f.Sync()
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) { // opened for reading
		return nil
	}
	return err
}

// bootIDSize is how much of it a lease has room for.
const bootIDSize = 48

// BootID identifies the running system by its name and the moment of its start, as
// no other has it before the next start of any machine.
func BootID() (string, error) {
	var timeOfDay struct {
		bootTime, currentTime, timeZoneBias int64
		timeZoneID, _                       uint32
		bootTimeBias, sleepTimeBias         int64
	}
	if err := windows.NtQuerySystemInformation(windows.SystemTimeOfDayInformation,
		unsafe.Pointer(&timeOfDay), uint32(unsafe.Sizeof(timeOfDay)), nil); err != nil {
		return "", os.NewSyscallError("NtQuerySystemInformation", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return "", err
	}
	// Setting the clock moves both, and leaves their difference.
	start := fmt.Sprintf("%016x-", timeOfDay.bootTime-timeOfDay.bootTimeBias)
	return start + name[:min(len(name), bootIDSize-len(start))], nil
}
