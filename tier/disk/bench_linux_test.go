// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

// median returns the middle of what each of two functions takes, called in
// turns after prepare, lest what the machine does meanwhile is one's loss.
func median(b *testing.B, prepare, ours, theirs func()) (time.Duration, time.Duration) {
	var mine, others []time.Duration
	for b.Loop() {
		prepare()
		start := time.Now()
		ours()
		middle := time.Now()
		theirs()
		mine, others = append(mine, middle.Sub(start)), append(others, time.Since(middle))
	}
	slices.Sort(mine)
	slices.Sort(others)
	return mine[len(mine)/2], others[len(others)/2]
}

func report(b *testing.B, mine, others time.Duration) {
	b.ReportMetric(float64(mine.Microseconds()), "ours-µs")
	b.ReportMetric(float64(others.Microseconds()), "file-µs")
	b.ReportMetric(float64(others)/float64(mine), "file/ours")
	b.ReportMetric(0, "ns/op")
}

// A durable change of 4 KiB, against pwrite and fdatasync of a file that is
// there.
func BenchmarkDurable4KiB(b *testing.B) {
	d := openTier(b, disk.Config{Dir: b.TempDir()})
	defer d.Close()
	s := newSpan(b, d, "bench", 64<<20)
	m := region(b, 4096)
	rand.Read(m.Bytes())
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	f.Write(make([]byte, 64<<20))
	f.Sync()
	version := uint64(0)
	mine, others := median(b, func() {}, func() {
		version++
		st, err := s.Stage(ctx, int(version%64), []disk.Run{{Offset: uint32(version*4096) % (1 << 20), Length: 4096}}, m)
		if err != nil {
			b.Fatal(err)
		}
		x := d.Begin()
		x.Put(st, version)
		if err := x.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}, func() {
		if _, err := f.WriteAt(m.Bytes(), int64(version*4096)%(64<<20)); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	})
	report(b, mine, others)
}

// A flush of many whole blocks, against writing and syncing a file of the same
// bytes in the same pieces: a fresh one, while ours goes to fresh slots, or one
// that is there, while ours reuses slots.
func BenchmarkSequential(b *testing.B) {
	for _, fresh := range []bool{true, false} {
		for _, blocks := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("fresh=%v/%dMiB", fresh, blocks), func(b *testing.B) { sequential(b, blocks, fresh) })
		}
	}
}

func sequential(b *testing.B, blocks int, fresh bool) {
	d := openTier(b, disk.Config{Dir: b.TempDir()})
	defer d.Close()
	var s *disk.Space
	renew := func() {
		b.StopTimer()
		x := d.Begin()
		for _, rec := range d.Recovered() {
			x.Delete(rec.ID)
		}
		if err := x.Commit(ctx); err != nil {
			b.Fatal(err)
		}
		if err := d.Checkpoint(); err != nil { // which cuts the file's end off
			b.Fatal(err)
		}
		s = newSpan(b, d, "bench", int64(blocks)<<20)
		b.StartTimer()
	}
	m := region(b, tier.BlockSize)
	rand.Read(m.Bytes())
	path := filepath.Join(b.TempDir(), "file")
	version := uint64(0)
	ours := func() {
		version++
		x := d.Begin()
		for i := range blocks {
			st, err := s.Stage(ctx, i, []disk.Run{{Offset: 0, Length: 1 << 20}}, m)
			if err != nil {
				b.Fatal(err)
			}
			x.Put(st, version)
		}
		if err := x.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}
	theirs := func() {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		for range blocks {
			if _, err := f.Write(m.Bytes()); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	renew()
	if !fresh { // both have been there
		ours()
		ours()
		theirs()
	}
	prepare := func() {
		if fresh {
			renew()
			os.Remove(path)
		}
	}
	mine, others := median(b, prepare, ours, theirs)
	report(b, mine, others)
}

// uncache makes the kernel forget a file's bytes.
func uncache(b *testing.B, path string) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, _, e := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, 4, 0, 0); e != 0 { // POSIX_FADV_DONTNEED
		b.Fatal(e)
	}
}

// Reading a span that nothing holds in memory, against reading a file.
func BenchmarkColdRead(b *testing.B) {
	const blocks = 256
	dir := b.TempDir()
	d := openTier(b, disk.Config{Dir: dir})
	defer d.Close()
	s := newSpan(b, d, "bench", blocks<<20)
	m := region(b, tier.BlockSize)
	rand.Read(m.Bytes())
	path := filepath.Join(dir, "file")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	x := d.Begin()
	for i := range blocks {
		st, err := s.Stage(ctx, i, []disk.Run{{Offset: 0, Length: 1 << 20}}, m)
		if err != nil {
			b.Fatal(err)
		}
		x.Put(st, 1)
		f.Write(m.Bytes())
	}
	if err := x.Commit(ctx); err != nil {
		b.Fatal(err)
	}
	f.Sync()
	mine, others := median(b, func() {}, func() {
		uncache(b, filepath.Join(dir, "blocks"))
		for i := range blocks {
			if err := s.Read(ctx, i, 0, m); err != nil {
				b.Fatal(err)
			}
		}
	}, func() {
		uncache(b, path)
		for i := range blocks {
			if _, err := f.ReadAt(m.Bytes(), int64(i)<<20); err != nil {
				b.Fatal(err)
			}
		}
	})
	report(b, mine, others)
}

// Opening a directory of a million blocks of 100,000 spans, which are there in
// name only: opening reads no block. It reports the index's bytes, and those of
// memory, per block.
func BenchmarkOpenMillion(b *testing.B) {
	const spans, blocks = 100_000, 10
	cfg := disk.Config{Dir: b.TempDir()}
	d := openTier(b, cfg)
	if err := disk.Populate(d, spans, blocks); err != nil {
		b.Fatal(err)
	}
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	for b.Loop() {
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		d = openTier(b, cfg)
		n := len(d.Recovered())
		b.StopTimer()
		if n != spans {
			b.Fatalf("%d spans", n)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if err := d.Abandon(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	index, err := filepath.Glob(filepath.Join(cfg.Dir, "index.*"))
	if err != nil || len(index) != 1 {
		b.Fatal(index, err)
	}
	info, err := os.Stat(index[0])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size())/(spans*blocks), "index-B/block")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(spans*blocks), "heap-B/block")
}

// What the device is given to write for a durable change of 4 KiB. It counts all
// that the device was given meanwhile: let nothing else run.
func BenchmarkWritten4KiB(b *testing.B) {
	dir := b.TempDir()
	d := openTier(b, disk.Config{Dir: dir})
	defer d.Close()
	s := newSpan(b, d, "bench", 64<<20)
	m := region(b, 4096)
	rand.Read(m.Bytes())
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		b.Fatal(err)
	}
	written := func() int64 {
		p, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", st.Dev>>8&0xfff, st.Dev&0xff|st.Dev>>12&0xfff00))
		fields := strings.Fields(string(p))
		if err != nil || len(fields) < 7 {
			b.Skip("the directory's device keeps no count: ", err)
		}
		n, err := strconv.ParseInt(fields[6], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		return n * 512
	}
	before, version := written(), uint64(0)
	for b.Loop() {
		version++
		st, err := s.Stage(ctx, int(version%64), []disk.Run{{Offset: uint32(version*4096) % (1 << 20), Length: 4096}}, m)
		if err != nil {
			b.Fatal(err)
		}
		x := d.Begin()
		x.Put(st, version)
		if err := x.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(written()-before)/float64(version), "written-B/op")
}
