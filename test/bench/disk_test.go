// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/tier/disk"
)

// dataEnv names the data directory of a child that is a server.
const dataEnv = "MEMSPAN_BENCH_DATA"

// dataDir is a directory for a server with a Disk tier. It is where the other
// files of the test are, so that both sides write to one file system.
func dataDir(b *testing.B) string {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "data")
	b.Setenv(dataEnv, dir)
	return dir
}

func durable(b *testing.B, c *memspan.Client, name string, size int64) *memspan.Span {
	b.Helper()
	s, err := c.Alloc(b.Context(), memspan.SpanConfig{
		Name: name, Size: size, Home: memspan.On(memspan.Disk), Policy: memspan.WriteThrough,
	})
	check(b, err)
	return s
}

// A baseline file is written over and over, its blocks taken.
func baselineFile(b *testing.B, p []byte) *os.File {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	check(b, err)
	b.Cleanup(func() { f.Close() })
	_, err = f.WriteAt(p, 0)
	check(b, err)
	check(b, f.Sync())
	return f
}

// Writing through to Disk against writing the same bytes to a file and making
// them durable in the same pattern, on one file system: at least 0.8.
func BenchmarkDiskWrite(b *testing.B) {
	const size = 256 << 20
	for _, piece := range []int64{1 << 20, 8 << 20, size} {
		b.Run(fmt.Sprintf("%dMiB", piece>>20), func(b *testing.B) {
			dataDir(b)
			a, _ := child(b, "server")
			s := durable(b, dial(b, a, "unix", memspan.Options{}), "s", size)
			p := region(size)
			f := baselineFile(b, p)
			pair(b, size, func() {
				for off := int64(0); off < size; off += piece {
					_, err := s.WriteAt(b.Context(), p[off:off+piece], off)
					check(b, err)
				}
			}, func() {
				for off := int64(0); off < size; off += piece {
					_, err := f.WriteAt(p[off:off+piece], off)
					check(b, err)
					check(b, unix.Fdatasync(int(f.Fd())))
				}
			})
		})
	}
}

// A durable write of 4 KiB at a random place against pwrite and fdatasync: at
// most twice the time, and at most 16 KiB written.
func BenchmarkDiskSmallWrite(b *testing.B) {
	const size, small = 64 << 20, 4096
	dir := dataDir(b)
	a, _ := child(b, "server")
	s := durable(b, dial(b, a, "unix", memspan.Options{}), "s", size)
	p := region(size)
	_, err := s.WriteAt(b.Context(), p, 0)
	check(b, err)
	f := baselineFile(b, p)
	r := rand.New(rand.NewPCG(1, 2))
	place := func() int64 { return r.Int64N(size/small) * small }
	one := func() {
		_, err := s.WriteAt(b.Context(), p[:small], place())
		check(b, err)
	}
	const alone = 1000
	before := written(b, dir)
	for range alone {
		one()
	}
	each := float64(written(b, dir)-before) / alone
	pair(b, 0, one, func() {
		_, err := f.WriteAt(p[:small], place())
		check(b, err)
		check(b, unix.Fdatasync(int(f.Fd())))
	})
	b.ReportMetric(each, "written-B/op")
}

// written is how many bytes were written to the disk that a path is on, by
// whomever. What the system counts for a process is no measure: it takes all of a
// large folio for written of which a page was.
func written(b *testing.B, path string) int64 {
	b.Helper()
	var st unix.Stat_t
	check(b, unix.Stat(path, &st))
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	check(b, err)
	sectors, err := strconv.ParseInt(strings.Fields(string(text))[6], 10, 64)
	check(b, err)
	return sectors * 512
}

// forget drops a file's pages from the system's cache.
func forget(b *testing.B, path string) {
	b.Helper()
	f, err := os.Open(path)
	check(b, err)
	defer f.Close()
	check(b, unix.Fdatasync(int(f.Fd())))
	check(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// Reading a span that is on Disk alone against reading a file: at least 0.8.
func BenchmarkDiskColdRead(b *testing.B) {
	const size = 256 << 20
	dir := dataDir(b)
	p := region(size)
	a, _ := child(b, "server")
	s := durable(b, dial(b, a, "unix", memspan.Options{}), "s", size)
	_, err := s.WriteAt(b.Context(), p, 0)
	check(b, err)
	f := baselineFile(b, p)
	pair(b, size, func() { // what is read whole, and once, is not brought to RAM
		forget(b, filepath.Join(dir, "blocks"))
		_, err := s.ReadAt(b.Context(), p, 0)
		check(b, err)
	}, func() {
		forget(b, f.Name())
		for off := int64(0); off < size; off += 1 << 20 {
			_, err := f.ReadAt(p[off:off+1<<20], off)
			check(b, err)
		}
	})
}

// A working set that was prefetched against one that is brought from Disk block
// by block: each block is mapped and summed, in no order. At least 5.
func BenchmarkDiskPrefetched(b *testing.B) {
	const size, block = 256 << 20, 1 << 20
	dir := dataDir(b)
	a, _ := child(b, "server")
	s := durable(b, dial(b, a, "unix", memspan.Options{}), "s", size)
	p := region(size)
	_, err := s.WriteAt(b.Context(), p, 0)
	check(b, err)
	order := rand.New(rand.NewPCG(3, 4)).Perm(size / block)
	read := func() time.Duration {
		start := time.Now()
		for _, n := range order {
			m, err := s.Map(b.Context(), int64(n)*block, block, memspan.ReadOnly)
			check(b, err)
			if crc32c.Checksum(m.Bytes()) != crc32c.Checksum(p[n*block:(n+1)*block]) {
				b.Fatal("other bytes")
			}
			check(b, m.Unmap(b.Context()))
		}
		return time.Since(start)
	}
	cold := func() {
		_, err := s.Advise(b.Context(), memspan.Advice{Do: memspan.AdviseEvict, Tier: memspan.Host})
		check(b, err)
		forget(b, filepath.Join(dir, "blocks"))
	}
	var ratios []float64
	var there, faulted []time.Duration
	for b.Loop() {
		cold()
		f := read()
		_, err := s.Advise(b.Context(), memspan.Advice{Do: memspan.AdvisePrefetch, Tier: memspan.Host})
		check(b, err)
		t := read()
		faulted, there = append(faulted, f), append(there, t)
		ratios = append(ratios, f.Seconds()/t.Seconds())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(size/1e6/median(there).Seconds(), "ours-MB/s")
	b.ReportMetric(size/1e6/median(faulted).Seconds(), "base-MB/s")
	b.ReportMetric(median(ratios), "ratio")
}

// A server that finds 100,000 spans of ten blocks each: ready in less than two
// seconds, with less than 128 MiB beside what it holds.
func BenchmarkDiskRestart(b *testing.B) {
	const spans, blocks = 100_000, 10
	dir := dataDir(b)
	fill(b, dir, spans, blocks)
	var took []time.Duration
	var resident []float64
	for b.Loop() {
		began := time.Now()
		a, pid, stop := start(b, "server")
		c := dial(b, a, "unix", memspan.Options{})
		s, err := c.Open(b.Context(), "span 77777")
		took = append(took, time.Since(began))
		check(b, err)
		if s.Size() != blocks<<20 {
			b.Fatalf("it has %d bytes", s.Size())
		}
		resident = append(resident, anonymous(b, pid)/(1<<20))
		c.Close()
		stop()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(took).Seconds(), "s-ready")
	b.ReportMetric(median(resident), "MiB-resident")
}

// fill makes a data directory of spans, of each block of which something is
// known. To write a million blocks would take a terabyte: these are noted to have
// been written, which takes as much of the index.
func fill(b *testing.B, dir string, spans, blocks int) {
	b.Helper()
	t, err := disk.Open(b.Context(), disk.Config{Dir: dir})
	check(b, err)
	for i := 0; i < spans; {
		tx := t.Begin()
		for range 1000 {
			rec := disk.Record{
				Name: fmt.Sprintf("span %d", i), Size: int64(blocks) << 20, Tier: coherency.Host, Home: coherency.Disk,
				Created: time.Now(), Version: 1, Published: true,
			}
			binary.LittleEndian.PutUint64(rec.ID[:], uint64(i+1))
			space, err := t.Durable(rec)
			check(b, err)
			tx.Set(rec)
			for n := range blocks {
				tx.Mark(space, n, 1)
			}
			check(b, space.Close())
			i++
		}
		check(b, tx.Commit(b.Context()))
	}
	check(b, t.Close())
}
