// SPDX-License-Identifier: Apache-2.0

//go:build windows

package memlimit

import (
	"math"
	"unsafe"

	"golang.org/x/sys/windows"
)

// memoryStatus is MEMORYSTATUSEX.
type memoryStatus struct {
	length, load                     uint32
	totalPhysical, availablePhysical uint64
	totalPaging, availablePaging     uint64 // of RAM and paging file: what may be promised
	totalVirtual, availableVirtual   uint64
	availableExtended                uint64
}

// System returns what this system has and allows. It never fails: what cannot be
// told is unknown, or no limit.
func System() Memory {
	get := windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")
	var status memoryStatus
	status.length = uint32(unsafe.Sizeof(status))
	if get.Find() != nil {
		return Memory{}
	}
	if ok, _, _ := get.Call(uintptr(unsafe.Pointer(&status))); ok == 0 {
		return Memory{}
	}
	return Memory{Available: int64(min(status.availablePhysical, status.availablePaging, math.MaxInt64))}
}
