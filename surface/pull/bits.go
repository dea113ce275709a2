// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"math/bits"
	"slices"
	"sort"

	"github.com/memspan/memspan/wire/control"
)

// A bitset is a set of chunks from base on. It grows as it is set; what is
// beyond is clear.
type bitset struct {
	base  int64
	words []uint64
}

func (b *bitset) has(i int64) bool {
	i -= b.base
	return i>>6 < int64(len(b.words)) && b.words[i>>6]&(1<<(i&63)) != 0
}

func (b *bitset) set(i int64) {
	i -= b.base
	if n := int(i>>6) + 1; n > len(b.words) {
		b.words = slices.Grow(b.words, n-len(b.words))[:n]
	}
	b.words[i>>6] |= 1 << (i & 63)
}

func (b *bitset) clear(i int64) {
	i -= b.base
	if i>>6 < int64(len(b.words)) {
		b.words[i>>6] &^= 1 << (i & 63)
	}
}

// nextClear returns the first chunk from i on that is not in the set.
func (b *bitset) nextClear(i int64) int64 {
	i -= b.base
	for w := i >> 6; w < int64(len(b.words)); w++ {
		if free := ^b.words[w] &^ (1<<(i&63) - 1); free != 0 {
			return b.base + w<<6 + int64(bits.TrailingZeros64(free))
		}
		i = (w + 1) << 6
	}
	return b.base + i
}

// end returns a number that no chunk in the set reaches.
func (b *bitset) end() int64 { return b.base + int64(len(b.words))<<6 }

func (b bitset) clone() bitset { return bitset{b.base, slices.Clone(b.words)} }

// ranges is a set of chunks as a peer tells it, whose memory does not depend on
// the numbers that the peer chooses: sorted, apart, none empty.
type ranges []span

// A span is chunks [first, end).
type span struct{ first, end int64 }

// add adds the chunks of a run, which must not overflow.
func (r *ranges) add(run control.ChunkRun) {
	if run.Count <= 0 {
		return
	}
	add := span{run.First, run.First + run.Count}
	// Those that touch it: [lo, hi).
	lo := sort.Search(len(*r), func(i int) bool { return (*r)[i].end >= add.first })
	hi := lo
	for hi < len(*r) && (*r)[hi].first <= add.end {
		add.first, add.end = min(add.first, (*r)[hi].first), max(add.end, (*r)[hi].end)
		hi++
	}
	*r = slices.Replace(*r, lo, hi, add)
}

// from returns the chunks from i on that follow each other, at or behind i: an
// empty span if there are none.
func (r ranges) from(i int64) span {
	at := sort.Search(len(r), func(k int) bool { return r[k].end > i })
	if at == len(r) {
		return span{}
	}
	return span{max(r[at].first, i), r[at].end}
}

// holds reports whether all of [first, end) is in the set.
func (r ranges) holds(first, end int64) bool {
	s := r.from(first)
	return s.first == first && s.end >= end && s.end > s.first
}

// missing returns the first chunk that is not in the set.
func (r ranges) missing() int64 {
	if len(r) > 0 && r[0].first == 0 {
		return r[0].end
	}
	return 0
}
