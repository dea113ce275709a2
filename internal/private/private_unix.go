// SPDX-License-Identifier: Apache-2.0

//go:build unix

package private

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Alloc returns size bytes, at least one, that read as zeros. Free gives them
// back.
func Alloc(size int64) ([]byte, error) {
	if size <= 0 || size > 1<<46 || int64(int(size)) != size {
		return nil, fmt.Errorf("private: %d bytes of memory: not a size", size)
	}
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("private: %d bytes of memory: %w", size, os.NewSyscallError("mmap", err))
	}
	enlarge(mem)
	return mem, nil
}

// Free gives back what Alloc returned: the whole slice. It must not be touched
// any more.
func Free(mem []byte) error { return os.NewSyscallError("munmap", unix.Munmap(mem)) }

// Protect has stores to the whole of what Alloc returned fault, or not any more.
func Protect(mem []byte, writable bool) error {
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	return os.NewSyscallError("mprotect", unix.Mprotect(mem, prot))
}
