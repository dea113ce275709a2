// SPDX-License-Identifier: Apache-2.0

package registry

import "unsafe"

// ArgsAt gives the arguments that lie at an address, which must be that of
// ArgWords words of C memory, good for as long as the result is used.
func ArgsAt(address uintptr) *Args {
	// An address as C passes it is no uintptr that Go must not convert.
	return *(**Args)(unsafe.Pointer(&address))
}
