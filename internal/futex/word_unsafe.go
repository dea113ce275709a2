// SPDX-License-Identifier: Apache-2.0

package futex

import (
	"sync/atomic"
	"unsafe"
)

// Word returns the 4 bytes at mem[off] as a number in the machine's order, valid
// as long as mem is. It panics if they are not all in mem, or not aligned.
func Word(mem []byte, off int) *atomic.Uint32 {
	_ = mem[off : off+4]
	return (*atomic.Uint32)(aligned(mem, off, 4))
}

// Words returns n numbers of 8 bytes each from mem[off] on, as Word does.
func Words(mem []byte, off, n int) []atomic.Uint64 {
	_ = mem[off : off+8*n]
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*atomic.Uint64)(aligned(mem, off, 8)), n)
}

func aligned(mem []byte, off, n int) unsafe.Pointer {
	p := unsafe.Pointer(&mem[off])
	if uintptr(p)%uintptr(n) != 0 {
		panic("futex: the word is not aligned")
	}
	return p
}
