// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"golang.org/x/sync/errgroup"
)

// sealedMemory returns a memfd of n random bytes that nobody can change.
func sealedMemory(b *testing.B, n int64) *memfd.Published {
	b.Helper()
	p, err := memfd.Publish("bench", n)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	if err := p.Grow(n); err != nil {
		b.Fatal(err)
	}
	for off := int64(0); off < n; off += 1 << 20 {
		if _, err := p.WriteAt(random(1<<20, uint64(off>>20)), off); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Freeze(); err != nil {
		b.Fatal(err)
	}
	return p
}

// hashAll is the library on all processors, and nothing else.
func hashAll(mem []byte, chunk int) {
	var next atomic.Int64
	var group errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() error {
			for {
				off := int(next.Add(int64(chunk))) - chunk
				if off >= len(mem) {
					return nil
				}
				surface.Sum(mem[off:min(off+chunk, len(mem))])
			}
		})
	}
	group.Wait()
}

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// BenchmarkHash is what exposing memory takes, against the library's own speed on
// all processors: the median of ratios of interleaved pairs.
func BenchmarkHash(b *testing.B) {
	const size = 64 << 20
	p := sealedMemory(b, size)
	hashAll(p.Bytes(), 1<<20) // maps the pages
	for _, chunk := range []int64{64 << 10, 1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("chunk=%dKiB", chunk>>10), func(b *testing.B) {
			s := newStore(b, 0)
			b.SetBytes(size)
			var ours, theirs []time.Duration
			for b.Loop() {
				begin := time.Now()
				e, err := s.Take(b.Context(), surface.Spec{Size: -1, Chunk: chunk}, p.File())
				if err != nil {
					b.Fatal(err)
				}
				ours = append(ours, time.Since(begin))
				s.Revoke(e.ID())
				// The library's memory is mapped anew too, as that of a store is.
				begin = time.Now()
				again, err := memfd.Adopt(p.File())
				if err != nil {
					b.Fatal(err)
				}
				hashAll(again.Bytes(), int(chunk))
				theirs = append(theirs, time.Since(begin))
				again.Close()
			}
			b.ReportMetric(float64(median(theirs))/float64(median(ours)), "ratio-to-library")
		})
	}
}

// BenchmarkCopyFile is what exposing a file takes, against reading it, hashing it and
// writing it to memory by hand.
func BenchmarkCopyFile(b *testing.B) {
	const size = 64 << 20
	p := sealedMemory(b, size)
	s := newStore(b, 0)
	b.SetBytes(size)
	var ours, theirs []time.Duration
	for b.Loop() {
		begin := time.Now()
		e := create(b, s, surface.Spec{Size: size})
		if err := e.CopyFile(b.Context(), p.File()); err != nil {
			b.Fatal(err)
		}
		if _, err := e.Seal(b.Context()); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(begin))
		s.Revoke(e.ID())
		begin = time.Now()
		mine, err := memfd.Blank("by hand")
		if err != nil {
			b.Fatal(err)
		}
		var next atomic.Int64
		var group errgroup.Group
		for range runtime.GOMAXPROCS(0) {
			group.Go(func() error {
				buf := make([]byte, 1<<20)
				for {
					off := next.Add(1<<20) - 1<<20
					if off >= size {
						return nil
					}
					if _, err := p.File().ReadAt(buf, off); err != nil {
						return err
					}
					surface.Sum(buf)
					if _, err := mine.WriteAt(buf, off); err != nil {
						return err
					}
				}
			})
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
		theirs = append(theirs, time.Since(begin))
		mine.Close()
	}
	b.ReportMetric(float64(median(theirs))/float64(median(ours)), "ratio-to-by-hand")
}

func BenchmarkAppend(b *testing.B) {
	data := random(1<<20, 1)
	for _, piece := range []int{4 << 10, 256 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("piece=%dKiB", piece>>10), func(b *testing.B) {
			s := newStore(b, 0)
			const size = 128 << 20
			b.SetBytes(size)
			for b.Loop() {
				e := create(b, s, surface.Spec{Size: -1})
				for off := 0; off < size; off += piece {
					if err := e.Append(b.Context(), data[:piece]); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := e.Seal(b.Context()); err != nil {
					b.Fatal(err)
				}
				s.Revoke(e.ID())
			}
		})
	}
}

// BenchmarkAttach is what a direct puller of a surface does until he can read: the
// proof, the descriptors, the mapping, the page. No byte is copied, whatever the size.
func BenchmarkAttach(b *testing.B) {
	s := newStore(b, 0)
	sizes := []int64{4 << 10, 1 << 30}
	tickets := make([]*surface.Ticket, len(sizes))
	for i, size := range sizes {
		e := create(b, s, surface.Spec{Size: size, Sparse: true})
		if err := e.CopyFrom(b.Context(), [][2]int64{}, nil); err != nil {
			b.Fatal(err)
		}
		if _, err := e.Seal(b.Context()); err != nil {
			b.Fatal(err)
		}
		tickets[i] = e.Ticket()
	}
	attach := func(i int) time.Duration {
		begin := time.Now()
		o, err := s.Open(ask(tickets[i]))
		if err != nil {
			b.Fatal(err)
		}
		memory, page, err := files(o)
		if err != nil {
			b.Fatal(err)
		}
		mem, err := memfd.MapRange(memory, 0, sizes[i], false)
		if err != nil {
			b.Fatal(err)
		}
		a, err := surface.OpenAvailability(page)
		if err != nil {
			b.Fatal(err)
		}
		took := time.Since(begin)
		memfd.Unmap(mem)
		a.Close()
		o.Close()
		return took
	}
	var small, large []time.Duration
	for b.Loop() {
		small, large = append(small, attach(0)), append(large, attach(1))
	}
	b.ReportMetric(float64(median(small).Nanoseconds())/1e3, "µs-4KiB")
	b.ReportMetric(float64(median(large).Nanoseconds())/1e3, "µs-1GiB")
	b.ReportMetric(float64(median(large))/float64(median(small)), "ratio")
}

// BenchmarkWake is the time from a chunk's last byte to a puller that waited for it in
// shared memory, hashing of the chunk included; the median.
func BenchmarkWake(b *testing.B) {
	s := newStore(b, 0)
	const chunk = surface.MinChunk
	e := create(b, s, surface.Spec{Size: -1, Chunk: chunk})
	o := open(b, s, e.Ticket())
	_, page, err := files(o)
	if err != nil {
		b.Fatal(err)
	}
	a, err := surface.OpenAvailability(page)
	if err != nil {
		b.Fatal(err)
	}
	defer a.Close()
	ctx, cancel := context.WithCancel(b.Context())
	woken, waiting := make(chan time.Time), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := int64(0); ; i++ {
			select {
			case waiting <- struct{}{}:
			case <-ctx.Done():
				return
			}
			if a.Wait(ctx, i) != nil {
				return
			}
			select {
			case woken <- time.Now():
			case <-ctx.Done():
				return
			}
		}
	}()
	data := random(chunk, 1)
	var took []time.Duration
	for b.Loop() {
		<-waiting
		for range 50 { // lets it get to wait
			runtime.Gosched()
		}
		begin := time.Now()
		if err := e.Append(b.Context(), data); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-woken).Sub(begin))
	}
	cancel()
	<-done
	b.ReportMetric(float64(median(took).Nanoseconds())/1e3, "µs-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "µs-p99")
}

// BenchmarkOpen is what a proof takes to verify, and an opening to make.
func BenchmarkOpen(b *testing.B) {
	s := newStore(b, 0)
	e := create(b, s, surface.Spec{Size: 1})
	r := ask(e.Ticket())
	b.ReportAllocs()
	for b.Loop() {
		o, err := s.Open(r)
		if err != nil {
			b.Fatal(err)
		}
		o.Close()
	}
}
