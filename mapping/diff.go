// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"encoding/binary"
	"math/bits"
)

// appendRuns appends the runs in which now differs from was, of the same
// length, and their bytes. now begins at offset at of the block. data is
// appended to in place: its array may hold now, not before data's end. A run
// that begins where the last of runs ends continues it.
func appendRuns(runs []Run, data []byte, at uint32, now, was []byte) ([]Run, []byte) {
	for i := firstDifference(now, was, 0); i < len(now); {
		j := firstEqual(now, was, i+1)
		k := len(runs) - 1
		if k >= 0 && runs[k].Offset+runs[k].Length == at+uint32(i) {
			runs[k].Length += uint32(j - i)
		} else {
			runs = append(runs, Run{Offset: at + uint32(i), Length: uint32(j - i)})
		}
		data = append(data, now[i:j]...)
		i = firstDifference(now, was, j)
	}
	return runs, data
}

// firstDifference returns the first index from i on at which a and b, of the
// same length, differ, or that length.
func firstDifference(a, b []byte, i int) int {
	for ; i+8 <= len(a); i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)/8
		}
	}
	for ; i < len(a) && a[i] == b[i]; i++ {
	}
	return i
}

// firstEqual returns the first index from i on at which a and b, of the same
// length, are equal, or that length.
func firstEqual(a, b []byte, i int) int {
	for ; i+32 <= len(a); i += 32 { // mostly there is none for long
		x, y := a[i:i+32:i+32], b[i:i+32:i+32]
		if hasZero(binary.LittleEndian.Uint64(x)^binary.LittleEndian.Uint64(y)) ||
			hasZero(binary.LittleEndian.Uint64(x[8:])^binary.LittleEndian.Uint64(y[8:])) ||
			hasZero(binary.LittleEndian.Uint64(x[16:])^binary.LittleEndian.Uint64(y[16:])) ||
			hasZero(binary.LittleEndian.Uint64(x[24:])^binary.LittleEndian.Uint64(y[24:])) {
			break
		}
	}
	for ; i+8 <= len(a); i += 8 {
		x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:])
		// The lowest bit set here is the top bit of the lowest zero byte of x.
		if zero := (x - lowBits) &^ x & highBits; zero != 0 {
			return i + bits.TrailingZeros64(zero)/8
		}
	}
	for ; i < len(a) && a[i] != b[i]; i++ {
	}
	return i
}

const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// nonZero returns 0xff for each byte of x that is not zero, and 0 for the rest.
func nonZero(x uint64) uint64 {
	top := ((x &^ highBits) + ^uint64(highBits) | x) & highBits
	return top >> 7 * 0xff
}

// hasZero reports whether a byte of x is zero.
func hasZero(x uint64) bool { return (x-lowBits)&^x&highBits != 0 }
