// SPDX-License-Identifier: Apache-2.0

package vram

import "math/bits"

// fillParts is a fill of bytes [off-head, …) in the parts that a device can do:
// words at multiples of four, and edges that are copied.
type fillParts struct {
	off, n int64 // the words: multiples of 4
	word   uint32
	edges  []byte // the bytes before the words, then those after
	head   int64  // how many of edges come before
}

// splitFill splits a fill of [off, off+n) whose byte i is the pattern's byte
// i mod 4, counted from the lowest.
func splitFill(off, n int64, pattern uint32) fillParts {
	at := func(i int64) byte { return byte(pattern >> (8 * (i % 4))) }
	f := fillParts{head: min((4-off%4)%4, n)}
	f.off = off + f.head
	f.n = (n - f.head) / 4 * 4
	f.word = bits.RotateLeft32(pattern, -8*int(f.head))
	for i := range f.head {
		f.edges = append(f.edges, at(i))
	}
	for i := f.head + f.n; i < n; i++ {
		f.edges = append(f.edges, at(i))
	}
	return f
}

// atoms widens [off, off+n) to multiples of the atom, within size bytes.
func atoms(off, n, atom, size int64) (from, to int64) {
	return off / atom * atom, min((off+n+atom-1)/atom*atom, size)
}
