// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package memfd

import "os"

// A Limits says what the system allows this process, in bytes; 0: no limit.
type Limits struct{ File, AddressSpace int64 }

// ReadLimits returns no limits.
func ReadLimits() Limits { return Limits{} }

// Data returns all of the file: what is no hole is not known on this system.
func Data(_ *os.File, size int64, _ int) ([][2]int64, error) {
	if size == 0 {
		return nil, nil
	}
	return [][2]int64{{0, size}}, nil
}
