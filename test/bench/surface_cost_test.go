// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
)

// ownCPU returns the processor time that this process has used.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	check(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf returns the processor time that another process has used, and its children
// that have ended: in steps of 10 ms.
func cpuOf(b *testing.B, pid int) (sum time.Duration) {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	check(b, err)
	_, rest, ok := strings.Cut(string(stat), ") ") // the name may have blanks
	f := strings.Fields(rest)
	if !ok || len(f) < 15 {
		b.Fatalf("/proc/%d/stat: %q", pid, stat)
	}
	for _, ticks := range f[11:15] { // utime, stime, and those of children
		n, err := strconv.ParseInt(ticks, 10, 64)
		check(b, err)
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}

// use reads every byte as a program would that computes with them.
func use(p []byte) (lines int) { return bytes.Count(p, []byte{'\n'}) }

// BenchmarkSurfaceThroughput pulls 1 GiB and reads it: mapped, and in turn by packets
// of the same unix socket, verified. Processor time is of this process and the server.
func BenchmarkSurfaceThroughput(b *testing.B) {
	const size = 1 << 30
	a, pid := child(b, "server")
	t := exposed(b, a, "unix", size)
	var cpu [2][]float64
	lines := -1
	through := func(way int, o pull.Options) func() {
		return func() {
			before := ownCPU(b) + cpuOf(b, pid)
			s := opened(b, t, o)
			m, err := s.Map(b.Context())
			check(b, err)
			n := use(m.Bytes())
			if lines < 0 {
				lines = n
			}
			if n != lines || s.Direct() == o.Copy {
				b.Fatal("not the surface")
			}
			check(b, errors.Join(m.Close(), s.Close()))
			cpu[way] = append(cpu[way], (ownCPU(b) + cpuOf(b, pid) - before).Seconds())
		}
	}
	pair(b, size, through(0, pull.Options{}), through(1, pull.Options{Copy: true})) // ours: direct, base: packets
	b.ReportMetric(median(cpu[0]), "ours-cpu-s")
	b.ReportMetric(median(cpu[1]), "base-cpu-s")
}

const ticketEnv = "MEMSPAN_BENCH_TICKET"

// readMapped is a child process that maps a surface and has read all of it.
func readMapped() {
	ctx := context.Background()
	t, err := surface.ParseTicket(os.Getenv(ticketEnv))
	if err != nil {
		fatal(err)
	}
	s, err := pull.Open(ctx, t, pull.Options{})
	if err != nil {
		fatal(err)
	}
	mem, err := s.Bytes()
	if err != nil {
		fatal(err)
	}
	use(mem)
	ready(addresses{})
	s.Close()
}

// shareOf returns a process's proportional share of memory: of what it shares with
// others as memfds, and of all.
func shareOf(b *testing.B, pid int) (shmem, all float64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	check(b, err)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[0], "Pss") {
			continue
		}
		kib, err := strconv.ParseFloat(f[1], 64)
		check(b, err)
		switch f[0] {
		case "Pss:":
			all = kib * 1024
		case "Pss_Shmem:":
			shmem = kib * 1024
		}
	}
	return shmem, all
}

// BenchmarkSurfaceMemory is what 100 processes that have mapped a surface of 256 MiB
// and read it take together, with the server: about one copy.
func BenchmarkSurfaceMemory(b *testing.B) {
	const size, pullers = 256 << 20, 100
	a, pid := child(b, "server")
	text, err := exposed(b, a, "unix", size).Text()
	check(b, err)
	b.Setenv(ticketEnv, text)
	for b.Loop() {
		pids := []int{pid}
		var stops []func()
		for range pullers {
			_, pid, stop := start(b, "reader")
			pids, stops = append(pids, pid), append(stops, stop)
		}
		var shmem, all float64
		for _, pid := range pids {
			s, a := shareOf(b, pid)
			shmem, all = shmem+s, all+a
		}
		for _, stop := range stops {
			stop()
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(shmem/size, "copies")
		b.ReportMetric(all/(1<<20), "PSS-MiB")
		b.ReportMetric((all-shmem)/(pullers+1)/(1<<20), "own-MiB/process")
	}
}

// hashAll is the library on all processors, and nothing else.
func hashAll(mem []byte) {
	var next atomic.Int64
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for {
				off := int(next.Add(chunk)) - chunk
				if off >= len(mem) {
					return
				}
				surface.Sum(mem[off:min(off+chunk, len(mem))])
			}
		})
	}
	work.Wait()
}

// BenchmarkSurfaceExpose exposes 1 GiB, which the server hashes: a memfd, which is taken as
// it is, against the library alone on all processors, which maps the same memory anew each time;
// and a file, which is copied once, against that and against cp.
func BenchmarkSurfaceExpose(b *testing.B) {
	const size = 1 << 30
	for _, way := range [][2]string{{"memfd", "hash"}, {"file", "hash"}, {"file", "cp"}} {
		source, against := way[0], way[1]
		b.Run(source+"/"+against, func(b *testing.B) {
			a, _ := child(b, "server")
			c := dial(b, a, "unix", memspan.Options{})
			p := region(size)
			f, err := memfd.Blank("bench")
			check(b, err)
			b.Cleanup(func() { f.Close() })
			_, err = f.Write(p)
			check(b, err)
			check(b, memfd.Freeze(f))
			from := f
			if source == "file" {
				from = tmpfsFile(b, p)
			}
			copied, clean := int64(-1), func() {}
			baseline := func() {
				m, err := memfd.Adopt(f)
				check(b, err)
				hashAll(m.Bytes())
				check(b, m.Close())
			}
			if against == "cp" {
				to := from.Name() + "-copy"
				baseline = func() {
					check(b, exec.Command("cp", from.Name(), to).Run())
					clean = func() { check(b, os.Remove(to)) }
				}
			}
			pairCleaned(b, size, func() {
				e, err := c.ExposeFile(b.Context(), from, memspan.ExposeOptions{})
				check(b, err)
				copied = e.Copied
				clean = func() { check(b, c.Revoke(b.Context(), e.Ticket.ID)) }
			}, baseline, func() {
				clean()
				clean = func() {}
			})
			b.ReportMetric(float64(copied), "copied-bytes")
		})
	}
}

// tmpfsFile returns a file in RAM with the bytes of p.
func tmpfsFile(b *testing.B, p []byte) *os.File {
	b.Helper()
	f, err := os.Create(filepath.Join(tmpfs(b), "source"))
	check(b, err)
	b.Cleanup(func() { f.Close() })
	_, err = f.Write(p)
	check(b, err)
	return f
}

// tmpfs returns a directory in RAM, which goes with the benchmark.
func tmpfs(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "memspan-bench-")
	check(b, err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
