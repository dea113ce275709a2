// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"context"
	"fmt"
	"hash/maphash"
	"runtime"
	"sync"
	"sync/atomic"
)

// Sums of an image's pages, for shadows that must look at all their bytes: to
// compare bytes with sums takes half the memory traffic of comparing them with
// the image, and traffic is what bounds it. The sums are 64 bits of a hash
// under a random key of the shadow's own: that a store goes unnoticed takes a
// chance of 2^-64, for each page and flush.
type sums struct {
	shadow *Shadow
	seed   maphash.Seed
	pages  []uint64 // of the part of each page of the region's that is mapped
}

func newSums(s *Shadow) *sums {
	return &sums{shadow: s, seed: maphash.MakeSeed(), pages: make([]uint64, s.pages())}
}

// mapped returns the part of page i that is mapped.
func (u *sums) mapped(i int64) extent {
	s := u.shadow
	return extent{max(s.start, i*pageSize), min(s.start+s.n, (i+1)*pageSize)}
}

// sum sums page i of the image.
func (u *sums) sum(i int64) {
	at := u.mapped(i)
	u.pages[i] = maphash.Bytes(u.seed, u.shadow.region.image[at.start:at.end])
}

// take sums the pages of which at has all that is mapped.
func (u *sums) take(at extent) {
	for i := at.start / pageSize; i*pageSize < at.end; i++ {
		if m := u.mapped(i); at.start <= m.start && m.end <= at.end {
			u.sum(i)
		}
	}
}

// complete sums the pages that take has not summed for any of the extents,
// which are sorted. Those that none touches are zeros, and perhaps do not
// exist: they are not looked at.
func (u *sums) complete(filled []extent) {
	zeros := make([]byte, pageSize)
	zero := maphash.Bytes(u.seed, zeros)
	for i := range u.pages {
		m := u.mapped(int64(i))
		for len(filled) > 0 && filled[0].end <= m.start {
			filled = filled[1:]
		}
		switch {
		case len(filled) == 0 || filled[0].start >= m.end:
			u.pages[i] = zero
			if m.end-m.start < pageSize {
				u.pages[i] = maphash.Bytes(u.seed, zeros[:m.end-m.start])
			}
		case filled[0].start > m.start || filled[0].end < m.end || len(filled) > 1 && filled[1].start < m.end:
			u.sum(int64(i)) // several have filled it
		}
	}
}

// changed sums the pages of the runs again, which are ascending and begin at
// offset block of the region.
func (u *sums) changed(block int64, runs []Run) {
	next := int64(0)
	for _, r := range runs {
		at := block + int64(r.Offset)
		for next = max(next, at/pageSize); next*pageSize < at+int64(r.Length); next++ {
			u.sum(next)
		}
	}
}

// compareStep is how much one worker compares at a time: whole words of the
// bitmap.
const compareStep = 2 << 20

// compare makes candidates of the pages of at whose bytes do not have the
// image's sum. All processors work at it: one alone does not use up the
// memory's rate.
func (u *sums) compare(ctx context.Context, at extent) error {
	first := at.start &^ (compareStep - 1)
	steps := (at.end - first + compareStep - 1) / compareStep
	var next atomic.Int64
	work := func() {
		for ctx.Err() == nil {
			i := next.Add(1) - 1
			if i >= steps {
				return
			}
			start := first + i*compareStep
			u.compareStep(extent{max(at.start, start), min(at.end, start+compareStep)})
		}
	}
	var workers sync.WaitGroup
	for range min(int64(runtime.GOMAXPROCS(0)), steps) - 1 {
		workers.Go(work)
	}
	work()
	workers.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("mapping: compare %d bytes: %w", at.end-at.start, context.Cause(ctx))
	}
	return nil
}

func (u *sums) compareStep(at extent) {
	s := u.shadow
	first, last := at.start/pageSize, (at.end+pageSize-1)/pageSize
	s.pending.clear(first, last)
	// A page that does not exist was never written, by anybody.
	for lo, hi := s.region.touched(bytesHalf, at.start, at.end); lo < hi; lo, hi = s.region.touched(bytesHalf, hi, at.end) {
		for i := lo / pageSize; i*pageSize < hi; i++ {
			m := u.mapped(i)
			if maphash.Bytes(u.seed, s.region.alias[m.start:m.end]) != u.pages[i] {
				s.pending.set(i, i+1)
			}
		}
	}
}
