// SPDX-License-Identifier: Apache-2.0

package mapping

import "math/bits"

// A bitmap is a set of page numbers.
type bitmap []uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

// mask returns the bits of word w that stand for numbers of [lo, hi).
func mask(w, lo, hi int64) uint64 {
	m := ^uint64(0)
	if lo > w*64 {
		m <<= uint(lo - w*64)
	}
	if hi < (w+1)*64 {
		m &= 1<<uint(hi-w*64) - 1
	}
	return m
}

// set adds [lo, hi).
func (b bitmap) set(lo, hi int64) {
	for w := lo / 64; w*64 < hi; w++ {
		b[w] |= mask(w, lo, hi)
	}
}

// clear removes [lo, hi).
func (b bitmap) clear(lo, hi int64) {
	for w := lo / 64; w*64 < hi; w++ {
		b[w] &^= mask(w, lo, hi)
	}
}

// has reports whether n is in the set.
func (b bitmap) has(n int64) bool { return b[n/64]>>uint(n%64)&1 != 0 }

// next returns the first range of numbers in the set within [lo, hi), and
// hi, hi if there is none.
func (b bitmap) next(lo, hi int64) (first, last int64) {
	first = b.scan(lo, hi, 0)
	return first, b.scan(first, hi, ^uint64(0))
}

// scan returns the first number of [lo, hi) whose bit is not that of without,
// or hi.
func (b bitmap) scan(lo, hi int64, without uint64) int64 {
	for w := lo / 64; w*64 < hi; w++ {
		if x := (b[w] ^ without) & mask(w, lo, hi); x != 0 {
			return w*64 + int64(bits.TrailingZeros64(x))
		}
	}
	return hi
}
