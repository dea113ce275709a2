// SPDX-License-Identifier: Apache-2.0

//go:build windows

package bell

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// newEvent makes the event of a value. Others of this user may wait for it, and
// no more.
func newEvent(id [IDSize]byte, value uint32) (windows.Handle, error) {
	const synchronize = "D:P(A;;0x100000;;;OW)" // OW: its owner, who has no other rights then
	sd, err := windows.SecurityDescriptorFromString(synchronize)
	if err != nil {
		return 0, os.NewSyscallError("ConvertStringSecurityDescriptorToSecurityDescriptor", err)
	}
	attributes := windows.SecurityAttributes{SecurityDescriptor: sd}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	name, err := windows.UTF16PtrFromString(eventName(id, value))
	if err != nil {
		return 0, err
	}
	h, err := windows.CreateEvent(&attributes, 1, 0, name)
	if errors.Is(err, windows.ERROR_ALREADY_EXISTS) && h != 0 {
		// Somebody has made it who was shown the name.
		windows.CloseHandle(h)
		h = 0
	}
	return h, os.NewSyscallError("CreateEvent", err)
}
