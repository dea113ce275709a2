// SPDX-License-Identifier: Apache-2.0

package crc32c_test

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/memspan/memspan/internal/crc32c"
)

var table = crc32.MakeTable(crc32.Castagnoli)

func random(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(p)
	return p
}

// Whatever the length, the alignment and the sum before: the sum is the
// standard library's.
func TestSameAsTheStandardLibrary(t *testing.T) {
	p := random(96 << 10)
	check := func(sum uint32, off, n int) {
		t.Helper()
		if got, want := crc32c.Update(sum, p[off:off+n]), crc32.Update(sum, table, p[off:off+n]); got != want {
			t.Errorf("sum %#x, bytes [%d, +%d): %#x, want %#x", sum, off, n, got, want)
		}
	}
	for n := range 9 << 10 {
		check(uint32(n)*0x9e3779b9, n%67, n)
	}
	for _, n := range []int{16 << 10, 64<<10 + 255, 90 << 10} {
		for off := range 70 {
			check(^uint32(off), off, n)
		}
	}
	if got, want := crc32c.Checksum(p), crc32.Checksum(p, table); got != want {
		t.Errorf("whole: %#x, want %#x", got, want)
	}
}

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10, 256 << 10, 1 << 20, 64 << 20} {
		p := random(n)
		for name, f := range map[string]func([]byte) uint32{
			"ours":     crc32c.Checksum,
			"standard": func(p []byte) uint32 { return crc32.Checksum(p, table) },
		} {
			b.Run(fmt.Sprintf("%dKiB/%s", n>>10, name), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					f(p)
				}
			})
		}
	}
}
