// SPDX-License-Identifier: Apache-2.0

package residency_test

import (
	"math/rand/v2"
	"testing"
)

// fits is the memory's capacity in blocks.
const fits = 512

// A trace is the keys of a program's uses, one after the other.
type trace struct {
	name string
	make func(r *rand.Rand) []int
}

var (
	skewed = trace{"zipf over 8x", func(r *rand.Rand) []int {
		next := zipf(r, 8*fits)
		return sequence(300*fits, func(int) int { return next() })
	}}
	loop = trace{"loop over 1.25x", func(*rand.Rand) []int {
		return sequence(40*fits, func(i int) int { return i % (fits * 5 / 4) })
	}}
	bigLoop = trace{"loop over 4x", func(*rand.Rand) []int {
		return sequence(160*fits, func(i int) int { return i % (fits * 4) })
	}}
	scans = trace{"zipf, then a scan", func(r *rand.Rand) []int {
		next, scanned := zipf(r, 2*fits), far
		return sequence(200*fits, func(i int) int {
			if i%(6*fits) < 4*fits {
				return next()
			}
			scanned++
			return scanned
		})
	}}
	// Four clients read through big spans a sixteenth of a block at a time while
	// a fifth uses what it always uses.
	pieces = trace{"zipf beside 4 scans in pieces", func(r *rand.Rand) []int {
		next := zipf(r, 2*fits)
		var read [4]int
		return sequence(200*fits, func(i int) int {
			if i%2 == 0 {
				return next()
			}
			client := r.IntN(len(read))
			read[client]++
			return (client+1)*far + read[client]/16
		})
	}}
	moves = trace{"working set that moves at times", func(r *rand.Rand) []int {
		return sequence(100*fits, func(i int) int { return i/(8*fits)*fits + r.IntN(fits*7/8) })
	}}
	drifts = trace{"working set that drifts", func(r *rand.Rand) []int {
		return sequence(100*fits, func(i int) int { return i/4 + r.IntN(fits*3/4) })
	}}
	random = trace{"uniform over 2x", func(r *rand.Rand) []int {
		return sequence(100*fits, func(int) int { return r.IntN(2 * fits) })
	}}
)

// far is a key beyond those that are used again.
const far = 1 << 24

func sequence(n int, f func(i int) int) []int {
	t := make([]int, n)
	for i := range t {
		t[i] = f(i)
	}
	return t
}

func zipf(r *rand.Rand, n int) (next func() int) {
	z, keys := rand.NewZipf(r, 1.01, 1, uint64(n-1)), r.Perm(n)
	return func() int { return keys[z.Uint64()] }
}

func (t trace) keys() []int { return t.make(rand.New(rand.NewPCG(1, 2))) }

// outcome says how often, of all uses, the block was not resident, and how
// often, of all evictions, the block was wanted back within one memory's worth
// of uses.
type outcome struct{ miss, thrash float64 }

// play runs a trace; the first quarter fills the memory and is not counted.
func play(p policy, keys []int) outcome {
	left := make(map[int]int) // when, of those that are not resident
	resident := make(map[int]bool)
	var uses, misses, evictions, thrash int
	for i, k := range keys {
		if i == len(keys)/4 {
			uses, misses, evictions, thrash = 0, 0, 0, 0
		}
		uses++
		if resident[k] {
			p.use(k)
			continue
		}
		misses++
		if at, was := left[k]; was && i-at <= fits {
			thrash++
		}
		if len(resident) == fits {
			evictions++
			victim := p.evict()
			delete(resident, victim)
			left[victim] = i
		}
		resident[k] = true
		p.miss(k)
	}
	return outcome{float64(misses) / float64(uses), float64(thrash) / float64(max(evictions, 1))}
}

// The yardstick is LRU. The margins are what the policy is chosen for: it may
// be a little worse where LRU is ideal.
func TestMissesAgainstLRU(t *testing.T) {
	for _, test := range []struct {
		trace  trace
		atMost float64 // times LRU's miss ratio
		thrash float64 // at most
	}{
		{skewed, 0.92, 0.10},
		{loop, 0.40, 0.50},
		{bigLoop, 0.80, 0.02},
		{scans, 0.90, 0.02},
		{pieces, 0.90, 0.06},
		{random, 1.02, 0.45},
		{moves, 2, 0.30},
		{drifts, 1.25, 0.20},
	} {
		keys := test.trace.keys()
		lru := play(newLRU(fits), keys)
		for _, p := range policies[len(policies)-2:] {
			got := play(p.make(fits), keys)
			if got.miss > test.atMost*lru.miss {
				t.Errorf("%s, %s: misses %.3f of its uses, LRU %.3f: want at most %.2f times that", p.name, test.trace.name, got.miss, lru.miss, test.atMost)
			}
			if got.thrash > test.thrash {
				t.Errorf("%s, %s: %.3f of its evictions are wanted back at once, LRU %.3f", p.name, test.trace.name, got.thrash, lru.thrash)
			}
		}
	}
}

// BenchmarkMiss prints what docs/residency.md compares: miss and thrash in
// hundredths. The time is the simulation's.
func BenchmarkMiss(b *testing.B) {
	for _, t := range []trace{skewed, loop, bigLoop, scans, pieces, moves, drifts, random} {
		keys := t.keys()
		for _, p := range policies {
			b.Run(t.name+"/"+p.name, func(b *testing.B) {
				var o outcome
				for b.Loop() {
					o = play(p.make(fits), keys)
				}
				b.ReportMetric(100*o.miss, "%miss")
				b.ReportMetric(100*o.thrash, "%thrash")
			})
		}
	}
}
