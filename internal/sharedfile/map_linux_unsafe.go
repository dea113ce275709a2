// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sharedfile

import (
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of the pages that halve the cost of reading much memory
// once: mapping it in small ones takes longer than reading it does.
const hugePage = 2 << 20

// Map maps the first size bytes of f, shared, at an address where its large
// pages can be mapped as such.
func Map(f *os.File, size int64, writable bool) (mem []byte, err error) {
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	if size <= 0 || size > 1<<46 || int64(uintptr(size)) != size {
		return nil, fmt.Errorf("map %d bytes of %s: not a size", size, f.Name())
	}
	if err := onFD(f, func(fd int) error {
		mem, err = mmap(fd, uintptr(size), prot)
		return err
	}); err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return mem, nil
}

func mmap(fd int, size uintptr, prot int) ([]byte, error) {
	if size < hugePage {
		p, err := unix.MmapPtr(fd, 0, nil, size, prot, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		return unsafe.Slice((*byte)(p), size), nil
	}
	page := uintptr(os.Getpagesize())
	whole := (size + page - 1) / page * page
	room, err := unix.MmapPtr(-1, 0, nil, whole+hugePage, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	before := -uintptr(room) % hugePage
	at := unsafe.Add(room, before)
	if _, err := unix.MmapPtr(fd, 0, at, size, prot, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		unix.MunmapPtr(room, whole+hugePage)
		return nil, err
	}
	// What is left of the room harms nobody, should it stay.
	if before > 0 {
		unix.MunmapPtr(room, before)
	}
	if before < hugePage {
		unix.MunmapPtr(unsafe.Add(at, whole), hugePage-before)
	}
	return unsafe.Slice((*byte)(at), size), nil
}

// Populate maps the pages of mem, which is a part of what Map returned and begins
// with a page, at once, not one by one as they are touched. What is not in memory
// is read meanwhile, which may take long and cannot be given up. Pages that cannot
// be had it leaves to whoever touches them.
func Populate(mem []byte) {
	_ = unix.Madvise(mem, unix.MADV_POPULATE_READ) // Linux 5.14
}

// Unmap gives back what Map returned.
func Unmap(mem []byte) error {
	return os.NewSyscallError("munmap", unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem))))
}

// Enlarge has the memory of f, a new file in RAM of which mem is mapped from off on,
// consist of large pages as far as there are some. It takes them from the system. Mem
// is a part of what Map returned, and off a multiple of 2 MiB.
func Enlarge(f *os.File, off int64, mem []byte) {
	whole := len(mem) &^ (hugePage - 1)
	if whole == 0 {
		return
	}
	// Without large pages there are small ones, and without space Reserve says
	// so. The kernel makes a large page only where there is a small one.
	_ = onFD(f, func(fd int) error {
		for at := 0; at < whole; at += hugePage {
			if err := unix.Fallocate(fd, 0, off+int64(at), 1); err != nil {
				return err
			}
		}
		return unix.Madvise(mem[:whole], unix.MADV_COLLAPSE)
	})
}
