// SPDX-License-Identifier: Apache-2.0

// Package crc32c computes CRC-32C, the sum that frames carry, as [hash/crc32]
// does, and on processors with wide carry-less multiplication two to three
// times as fast: both ends of a plain TCP connection sum every byte.
package crc32c

import "hash/crc32"

// Checksum returns the sum of p.
func Checksum(p []byte) uint32 { return Update(0, p) }

// Update returns the sum of the bytes that sum is the sum of, followed by p.
func Update(sum uint32, p []byte) uint32 {
	if len(p) >= foldLeast {
		sum, p = fold(sum, p)
	}
	return crc32.Update(sum, castagnoli, p)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
