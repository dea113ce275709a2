// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/mapping"
)

const (
	benchSize  = 256 << 20
	benchBlock = 1 << 20
)

func benchShadow(b *testing.B, tracking mapping.Tracking) *mapping.Shadow {
	b.Helper()
	needs(b, tracking)
	sh, err := mapping.NewShadow(newPool(b), 0, benchSize, benchBlock, true, tracking)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { sh.Close() })
	if err := sh.Fill(0, benchSize, func(dst []byte) error {
		for i := range dst {
			dst[i] = byte(i * 7)
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	if err := sh.Arm(); err != nil {
		b.Fatal(err)
	}
	return sh
}

// BenchmarkCollect finds and acknowledges changes of whole pages; dirtying
// them is not timed.
func BenchmarkCollect(b *testing.B) {
	for _, tracking := range []mapping.Tracking{mapping.Pages, mapping.Compare} {
		for _, percent := range []int{0, 1, 10, 100} {
			b.Run(fmt.Sprintf("%v/dirty=%d%%", tracking, percent), func(b *testing.B) {
				sh := benchShadow(b, tracking)
				mem := sh.Bytes()
				const pages = benchSize / 4096
				order := rand.New(rand.NewPCG(1, 2)).Perm(pages)[:pages*percent/100]
				fresh := bytes.Repeat([]byte{1}, 4096)
				b.SetBytes(benchSize)
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					for i := range fresh {
						fresh[i] += 2
					}
					for _, p := range order {
						copy(mem[p*4096:(p+1)*4096], fresh)
					}
					b.StartTimer()
					if err := sh.Collect(b.Context(), 0, benchSize, func(c *mapping.Change) error {
						sh.Ack(c)
						return nil
					}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCompareRate is how fast a shadow that nobody has written to is found
// unchanged by comparison, beside how fast all processors, and one, merely read
// as much memory: the bound of any comparison.
func BenchmarkCompareRate(b *testing.B) {
	sh := benchShadow(b, mapping.Compare)
	mem := sh.Bytes()
	read := func(workers int) func() {
		return func() {
			const step = 2 << 20
			var next atomic.Int64
			var work sync.WaitGroup
			for range workers {
				work.Go(func() {
					for at := next.Add(step) - step; at < benchSize; at = next.Add(step) - step {
						bytes.Count(mem[at:at+step], []byte{4})
					}
				})
			}
			work.Wait()
		}
	}
	all, one := read(runtime.GOMAXPROCS(0)), read(1)
	var rates [3][]float64
	timed := func(i int, f func()) {
		start := time.Now()
		f()
		rates[i] = append(rates[i], benchSize/1e9/time.Since(start).Seconds())
	}
	for b.Loop() {
		timed(0, func() {
			err := sh.Collect(b.Context(), 0, benchSize, func(*mapping.Change) error { return errors.New("changed") })
			if err != nil {
				b.Fatal(err)
			}
		})
		timed(1, all)
		timed(2, one)
	}
	for i, name := range []string{"compare-GB/s", "read-GB/s", "read-by-one-GB/s"} {
		slices.Sort(rates[i])
		b.ReportMetric(rates[i][len(rates[i])/2], name)
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkMerge brings in a server's answer of which the given share of bytes
// is new.
func BenchmarkMerge(b *testing.B) {
	for _, percent := range []int{0, 1, 100} {
		b.Run(fmt.Sprintf("changed=%d%%", percent), func(b *testing.B) {
			sh := benchShadow(b, mapping.Compare)
			remote := bytes.Clone(sh.Bytes())
			b.SetBytes(benchSize)
			for b.Loop() {
				b.StopTimer()
				for i := range len(remote) / 100 * percent {
					remote[i]++
				}
				b.StartTimer()
				if err := sh.Merge(0, remote); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMergeDelta brings in differences of all bytes, and of every other.
func BenchmarkMergeDelta(b *testing.B) {
	for name, pattern := range map[string][]byte{"all": {0xff, 1}, "half": {0xff, 0}} {
		b.Run(name, func(b *testing.B) {
			sh := benchShadow(b, mapping.Pages)
			delta := bytes.Repeat(pattern, len(sh.Bytes())/2)
			b.SetBytes(benchSize)
			for b.Loop() {
				if err := sh.MergeDelta(0, delta); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMap makes, fills and closes a mapping, with memory from the pool
// and with fresh memory.
func BenchmarkMap(b *testing.B) {
	for _, n := range []int64{4096, 1 << 20, 64 << 20} {
		src := make([]byte, n)
		for i := range src {
			src[i] = byte(i)
		}
		for _, limit := range []int64{1 << 30, 0} {
			b.Run(fmt.Sprintf("%d/pooled=%v", n, limit > 0), func(b *testing.B) {
				p := mapping.NewPool(limit)
				defer p.Close()
				b.SetBytes(n)
				b.ReportAllocs()
				for b.Loop() {
					sh, err := mapping.NewShadow(p, 0, n, benchBlock, true, mapping.Auto)
					if err != nil {
						b.Fatal(err)
					}
					if err := sh.Fill(0, n, func(dst []byte) error { memfd.Copy(dst, src); return nil }); err != nil {
						b.Fatal(err)
					}
					if err := sh.Arm(); err != nil {
						b.Fatal(err)
					}
					if err := sh.Close(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
