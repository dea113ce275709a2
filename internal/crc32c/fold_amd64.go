// SPDX-License-Identifier: Apache-2.0

package crc32c

import (
	"hash/crc32"

	"golang.org/x/sys/cpu"
)

const (
	foldStep  = 256     // bytes that the inner loop takes at a time
	foldLeast = 4 << 10 // less is as well done by hash/crc32
)

var canFold = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512VPCLMULQDQ && cpu.X86.HasSSE42

// A sum is the remainder of the message, a polynomial, divided by the CRC's.
// So 128 bits of the message may be replaced by any 128 bits further on that
// have the same remainder, which two multiplications of 64 bits find: a byte
// string is folded onto its last 16 bytes, four times four of them in parallel.
//
// In the CRC's order of bits the first 64 of 128 bits are those of the higher
// powers. Moving them by d bits multiplies by x^d; carry-less multiplication
// of numbers in that order multiplies by one x more, which the factors leave
// out: x^(d+63) for the first 64 bits and x^(d-1) for the last, modulo the
// CRC's polynomial.
var factors = [3][2]uint64{
	{power(2048 + 63), power(2048 - 1)}, // from one step to the next
	{power(512 + 63), power(512 - 1)},   // between the four registers
	{power(128 + 63), power(128 - 1)},   // between the quarters of one
}

// power returns x^n modulo the polynomial, as the upper half of 64 bits in the
// CRC's order.
func power(n int) uint64 {
	r := uint32(1) << 31 // x^0
	for range n {
		carry := r & 1
		r >>= 1
		if carry != 0 {
			r ^= crc32.Castagnoli
		}
	}
	return uint64(r) << 32
}

// fold sums whole steps of p and returns the sum and what is left of p.
func fold(sum uint32, p []byte) (uint32, []byte) {
	if !canFold {
		return sum, p
	}
	n := len(p) / foldStep * foldStep
	return ^foldBlocks(p[:n], ^sum, &factors), p[n:]
}

// foldBlocks returns the CRC's register, which was state before, after p: a
// multiple of 256 bytes and not empty.
//
//go:noescape
func foldBlocks(p []byte, state uint32, factors *[3][2]uint64) uint32
