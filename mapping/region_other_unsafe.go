// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package mapping

import "unsafe"

// alignedBytes returns n zero bytes, n a multiple of eight, that begin at a
// multiple of eight in Go's memory.
func alignedBytes(n int) []byte {
	words := make([]uint64, n/8)
	// Right because the bytes are exactly those of words, which they keep alive.
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), n)
}
