// SPDX-License-Identifier: Apache-2.0

package residency_test

import (
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/residency"
)

// offered asks for candidates, n at a time and evicting none, for as long as
// it must take to hear of every resident key.
func offered(t *rapid.T, q *residency.Queue[int], n int) map[int]bool {
	all := make(map[int]bool)
	for range 3*(q.Len()/n+1) + 1 {
		seen := make(map[int]bool)
		for _, k := range q.Victims(n) {
			if seen[k] {
				t.Fatalf("Victims(%d) returned %d twice", n, k)
			}
			seen[k], all[k] = true, true
		}
		if want := min(n, q.Len()); len(seen) > n || want > 0 && len(seen) == 0 {
			t.Fatalf("Victims(%d) of %d resident keys returned %d", n, q.Len(), len(seen))
		}
	}
	return all
}

// Whatever happens, exactly the resident keys are candidates, each of them some
// time, and Recent is only true of keys that left and were not forgotten.
func TestCandidatesAreTheResident(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := residency.New[int]()
		resident, left := make(map[int]bool), make(map[int]bool)
		key := rapid.IntRange(0, rapid.SampledFrom([]int{3, 20, 200}).Draw(t, "keys"))
		use := func(t *rapid.T) {
			k := key.Draw(t, "use")
			q.Use(k)
			resident[k] = true
			delete(left, k)
		}
		remove := func(k int) {
			q.Remove(k)
			if resident[k] {
				left[k] = true
			}
			delete(resident, k)
		}
		t.Repeat(map[string]func(*rapid.T){
			"use":       use,
			"use again": use,
			"remove":    func(t *rapid.T) { remove(key.Draw(t, "remove")) },
			"forget": func(t *rapid.T) {
				k := key.Draw(t, "forget")
				q.Forget(k)
				delete(resident, k)
				delete(left, k)
			},
			"evict": func(t *rapid.T) {
				candidates := slices.Clone(q.Victims(rapid.IntRange(0, 9).Draw(t, "n")))
				if len(candidates) == 0 {
					return
				}
				for _, k := range candidates {
					if !resident[k] {
						t.Fatalf("candidate %d is not resident", k)
					}
				}
				remove(rapid.SampledFrom(candidates).Draw(t, "victim"))
			},
			"look": func(t *rapid.T) { offered(t, q, rapid.IntRange(1, 300).Draw(t, "n")) },
			"": func(t *rapid.T) {
				if q.Len() != len(resident) {
					t.Fatalf("Len is %d, want %d", q.Len(), len(resident))
				}
				for k := range 201 {
					if q.Recent(k) && !left[k] {
						t.Fatalf("Recent(%d), but it is resident, forgotten or never was", k)
					}
				}
			},
		})
		all := offered(t, q, rapid.IntRange(1, 300).Draw(t, "n"))
		if len(all) != len(resident) {
			t.Fatalf("%d keys were candidates, %d are resident", len(all), len(resident))
		}
		for k := range all {
			if !resident[k] {
				t.Fatalf("candidate %d is not resident", k)
			}
		}
	})
}

// Keys that cannot be evicted come at the cold end. Every eviction succeeds all
// the same, within a few calls.
func TestStuckCandidatesStandInNobodysWay(t *testing.T) {
	const stuck, all, n = 300, 1000, 8
	q := residency.New[int]()
	for k := range all {
		q.Use(k)
	}
	for removed := range all - stuck {
		victim := -1
		calls := 0
		for ; victim < 0; calls++ {
			if calls > 3*(all/n+1) {
				t.Fatalf("no candidate in %d calls that is not stuck, after %d evictions", calls, removed)
			}
			for _, k := range q.Victims(n) {
				if k >= stuck {
					victim = k
					break
				}
			}
		}
		q.Remove(victim)
	}
}

func TestRecent(t *testing.T) {
	q := residency.New[int]()
	for k := range 64 {
		q.Use(k)
	}
	const victim = 63
	q.Remove(victim)
	q.Use(100)
	if !q.Recent(victim) {
		t.Error("a block that has just left is not recent")
	}
	if q.Recent(100) || q.Recent(101) {
		t.Error("a block that is resident, or never was, is recent")
	}
	for range 2 { // now all others were used more lately
		for k := range victim {
			q.Use(k)
		}
		q.Use(100)
	}
	if q.Recent(victim) {
		t.Error("a block is recent that left before any other was used")
	}
	q.Use(victim)
	if q.Recent(victim) {
		t.Error("a block that is back is recent")
	}
	q.Remove(victim)
	q.Forget(victim)
	if q.Recent(victim) {
		t.Error("a block that was forgotten is recent")
	}
}

// A scan of any length leaves what is used all the time in place.
func TestScanLeavesWhatIsUsed(t *testing.T) {
	const capacity, used = 256, 64
	q := residency.New[int]()
	for range 3 {
		for k := range used {
			q.Use(k)
		}
	}
	for k := range 100 * capacity {
		if q.Len() == capacity {
			victim := q.Victims(1)[0]
			if victim < used {
				t.Fatalf("block %d was given up for number %d of a scan", victim, k)
			}
			q.Remove(victim)
		}
		for range 16 {
			q.Use(used + k)
		}
		q.Use(k % used)
	}
}

func TestForgettingEverythingLeavesNothing(t *testing.T) {
	q := residency.New[int]()
	for k := range 1000 {
		q.Use(k)
		if k%3 == 0 {
			q.Remove(k)
		}
	}
	for k := range 1000 {
		q.Forget(k)
	}
	if q.Len() != 0 || len(q.Victims(10)) != 0 {
		t.Errorf("%d keys left, candidates %v", q.Len(), q.Victims(10))
	}
	for k := range 1000 {
		if q.Recent(k) {
			t.Errorf("%d is remembered", k)
		}
	}
}

func TestUseOfAResidentKeyAllocatesNothing(t *testing.T) {
	q := residency.New[int]()
	for k := range 1000 {
		q.Use(k)
	}
	k := 0
	if n := testing.AllocsPerRun(10000, func() { q.Use(k % 1000); k += 7 }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type block struct {
	span  uint64
	index int32
}

func BenchmarkUse(b *testing.B) {
	const n = 1 << 14 // 16 GiB
	q := residency.New[block]()
	for k := range int32(n) {
		q.Use(block{1, k})
	}
	b.ReportAllocs()
	k := int32(0)
	for b.Loop() {
		q.Use(block{1, k % n})
		k += 4099
	}
}

// BenchmarkEvict replaces one block by another.
func BenchmarkEvict(b *testing.B) {
	const n = 1 << 14
	q := residency.New[block]()
	k := int32(0)
	for ; k < n; k++ {
		q.Use(block{1, k})
	}
	b.ReportAllocs()
	for b.Loop() {
		q.Remove(q.Victims(1)[0])
		q.Use(block{1, k})
		k++
	}
}

// BenchmarkMemory reports the bytes that a resident block costs, with as many
// remembered as there may be.
func BenchmarkMemory(b *testing.B) {
	const n = 1 << 18
	var perBlock, remembering float64
	for b.Loop() {
		before := heap()
		q := residency.New[block]()
		for k := range int32(n) {
			q.Use(block{1, k})
		}
		perBlock = float64(heap()-before) / n
		for k := range int32(2 * n) {
			q.Remove(q.Victims(1)[0])
			q.Use(block{2, k})
		}
		remembering = float64(heap()-before) / n
		runtime.KeepAlive(q)
	}
	b.ReportMetric(perBlock, "B/block")
	b.ReportMetric(remembering, "B/block-remembering")
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
