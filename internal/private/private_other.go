// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package private

import "fmt"

// Alloc returns size bytes, at least one, that read as zeros.
func Alloc(size int64) ([]byte, error) {
	if size <= 0 || size > 1<<46 || int64(int(size)) != size {
		return nil, fmt.Errorf("private: %d bytes of memory: not a size", size)
	}
	return make([]byte, size), nil
}

// Free leaves the memory to the garbage collector.
func Free([]byte) error { return nil }

// Protect does nothing on this system.
func Protect([]byte, bool) error { return nil }
