// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/internal/sharedfile"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// sharedDir returns a directory in RAM.
func sharedDir(b *testing.B) string {
	dir, err := os.MkdirTemp("/dev/shm", "memspan-bench-")
	if err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// BenchmarkProcess is a pass of the host over 64 MiB, and one of the same code
// over as much memory of this process.
func BenchmarkProcess(b *testing.B) {
	const size = 64 << 20
	b.Run("memory", func(b *testing.B) {
		mem := make([]byte, size)
		scribble(mem)
		b.SetBytes(size)
		for b.Loop() {
			for p := mem; len(p) > 0; p = p[256<<10:] {
				crc32c.Update(0, p[:256<<10])
			}
		}
	})
	b.Run("words", func(b *testing.B) { // a loop as programs write it
		mem := make([]byte, size)
		scribble(mem)
		b.SetBytes(size)
		sum := uint64(0)
		for b.Loop() {
			for p := mem; len(p) >= 8; p = p[8:] {
				sum ^= binary.LittleEndian.Uint64(p)
			}
		}
	})
	run := func(b *testing.B, ln net.Listener, dir string) {
		serve(b, ln, host.Config{Dir: dir})
		c := dial(b, ln, dir)
		buf := alloc(b, c, size)
		scribble(buf.Bytes())
		b.SetBytes(size)
		for b.Loop() {
			if _, err := buf.Process(b.Context(), sharedbuf.Process()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("file", func(b *testing.B) { run(b, tcp(b), sharedDir(b)) })
	b.Run("memfd", func(b *testing.B) { run(b, unixSocket(b), "") })
}

// paired runs two things in turn and reports the median of the ratios of their
// times: what else the machine does hits both.
func paired(b *testing.B, ours, theirs func()) { pairedAfter(b, nil, ours, theirs) }

// pairedAfter is paired for what needs something done before, which is not
// measured: nil if nothing. To stop the benchmark's clock for it stops all threads
// and starts them again, which would count against what is short.
func pairedAfter(b *testing.B, prepare, ours, theirs func()) {
	var ratios []float64
	for b.Loop() {
		if prepare != nil {
			b.StopTimer()
			prepare()
			b.StartTimer()
		}
		start := time.Now()
		ours()
		between := time.Now()
		theirs()
		ratios = append(ratios, float64(between.Sub(start))/float64(time.Since(between)))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
}

// BenchmarkProcessRatio is a pass of the host over 64 MiB against one of the same
// code over this process's memory.
func BenchmarkProcessRatio(b *testing.B) {
	const size = 64 << 20
	run := func(b *testing.B, ln net.Listener, dir string) {
		serve(b, ln, host.Config{Dir: dir})
		buf := alloc(b, dial(b, ln, dir), size)
		scribble(buf.Bytes())
		mem := bytes.Clone(buf.Bytes())
		paired(b, func() {
			if _, err := buf.Process(b.Context(), sharedbuf.Process()); err != nil {
				b.Fatal(err)
			}
		}, func() {
			for p := mem; len(p) > 0; p = p[256<<10:] {
				crc32c.Update(0, p[:256<<10])
			}
		})
	}
	b.Run("file", func(b *testing.B) { run(b, tcp(b), sharedDir(b)) })
	b.Run("memfd", func(b *testing.B) { run(b, unixSocket(b), "") })
}

// BenchmarkEchoRatio is an echo against a bare exchange of as many bytes.
func BenchmarkEchoRatio(b *testing.B) {
	ln := tcp(b)
	serve(b, ln, host.Config{})
	c := dial(b, ln, "")
	g := connect(b, ln)
	if err := g.Conn.(*net.TCPConn).SetNoDelay(false); err != nil {
		b.Fatal(err)
	}
	exchange := pingPong(b)
	b.Run("client", func(b *testing.B) {
		paired(b, func() {
			if _, err := c.Echo(b.Context(), "hello"); err != nil {
				b.Fatal(err)
			}
		}, exchange)
	})
	b.Run("twosends", func(b *testing.B) {
		paired(b, func() {
			g.send(`{"api":"echo","request_id":1,"version":1,"input":"hello"}`)
			g.receive()
		}, exchange)
	})
}

// pingPong returns an exchange of 60 bytes each way with a bare echo server.
func pingPong(b *testing.B) func() {
	ln := tcp(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err == nil {
			io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 512))
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		c.Close()
		ln.Close()
		<-done
	})
	buf := make([]byte, 60)
	return func() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAlloc makes and frees buffers, by size, in RAM and on disk. "kernel" is
// what part of it a file's room takes alone: to make the file, take the room, map it
// and remove it, by the same calls. "rest-us" is the difference, in microseconds. Both
// are the least of all rounds, as what else the machine does only adds.
func BenchmarkAlloc(b *testing.B) {
	for place, dir := range map[string]string{"tmpfs": sharedDir(b), "disk": b.TempDir()} {
		for _, size := range []int64{4 << 10, 1 << 20, 64 << 20, 256 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", place, size>>10), func(b *testing.B) {
				ln := tcp(b)
				serve(b, ln, host.Config{Dir: dir})
				c := dial(b, ln, dir)
				d, err := sharedfile.OpenDir(dir)
				if err != nil {
					b.Fatal(err)
				}
				defer d.Close()
				all, room := math.Inf(1), math.Inf(1)
				for b.Loop() {
					all = min(all, timed(func() {
						if err := alloc(b, c, size).Free(); err != nil {
							b.Fatal(err)
						}
					}))
					room = min(room, timed(func() {
						if err := takeRoom(d, size, place == "tmpfs"); err != nil {
							b.Fatal(err)
						}
					}))
				}
				b.ReportMetric(room/all, "kernel")
				b.ReportMetric(1e6*(all-room), "rest-us")
			})
		}
	}
}

// takeRoom makes a file with room for size bytes, maps and removes it.
func takeRoom(d *sharedfile.Dir, size int64, volatile bool) error {
	const name = "room"
	f, err := d.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	mem, err := sharedfile.Map(f, size, true)
	if err != nil {
		return err
	}
	if volatile {
		sharedfile.Enlarge(f, 0, mem)
	}
	return errors.Join(sharedfile.Reserve(f, 0, size), sharedfile.Unmap(mem), d.Remove(name))
}

// BenchmarkPool takes buffers from a pool and puts them back, against making and
// freeing them, and touches every page of them, which is what they are for.
func BenchmarkPool(b *testing.B) {
	touch := func(mem []byte) {
		for i := 0; i < len(mem); i += 4096 {
			mem[i]++
		}
	}
	run := func(b *testing.B, c *sharedbuf.Client, size int64) {
		pool := c.Pool(sharedbuf.PoolOptions{})
		paired(b, func() {
			buf, err := pool.Get(b.Context(), size)
			if err != nil {
				b.Fatal(err)
			}
			touch(buf.Bytes())
			if err := pool.Put(buf); err != nil {
				b.Fatal(err)
			}
		}, func() {
			buf := alloc(b, c, size)
			touch(buf.Bytes())
			if err := buf.Free(); err != nil {
				b.Fatal(err)
			}
		})
	}
	for _, size := range []int64{4 << 10, 1 << 20, 64 << 20} {
		b.Run(fmt.Sprintf("file%dKiB", size>>10), func(b *testing.B) {
			ln, dir := tcp(b), sharedDir(b)
			serve(b, ln, host.Config{Dir: dir})
			run(b, dial(b, ln, dir), size)
		})
		b.Run(fmt.Sprintf("memfd%dKiB", size>>10), func(b *testing.B) {
			ln := unixSocket(b)
			serve(b, ln, host.Config{})
			run(b, dial(b, ln, ""), size)
		})
	}
}

// BenchmarkRoundTrip is a small request over TCP, with the package's client and
// with one that sends length and body separately, and a bare exchange of as many
// bytes.
func BenchmarkRoundTrip(b *testing.B) {
	b.Run("pingpong", func(b *testing.B) {
		exchange := pingPong(b)
		for b.Loop() {
			exchange()
		}
	})
	b.Run("echo", func(b *testing.B) {
		ln := tcp(b)
		serve(b, ln, host.Config{})
		c := dial(b, ln, "")
		for b.Loop() {
			if _, err := c.Echo(b.Context(), "hello"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("twosends", func(b *testing.B) {
		ln := tcp(b)
		serve(b, ln, host.Config{})
		g := connect(b, ln)
		if err := g.Conn.(*net.TCPConn).SetNoDelay(false); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			g.send(`{"api":"echo","request_id":1,"version":1,"input":"hello"}`)
			g.receive()
		}
	})
	b.Run("process4KiB", func(b *testing.B) {
		ln, dir := tcp(b), sharedDir(b)
		serve(b, ln, host.Config{Dir: dir})
		buf := alloc(b, dial(b, ln, dir), 4096)
		for b.Loop() {
			if _, err := buf.Process(b.Context(), sharedbuf.Process()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkGuests has guests process 16 MiB each, at once.
func BenchmarkGuests(b *testing.B) {
	const size = 16 << 20
	for _, guests := range []int{1, 2, 4, 16} {
		b.Run(fmt.Sprint(guests), func(b *testing.B) {
			ln, dir := tcp(b), sharedDir(b)
			serve(b, ln, host.Config{Dir: dir})
			var buffers []*sharedbuf.Buffer
			for range guests {
				buf := alloc(b, dial(b, ln, dir), size)
				scribble(buf.Bytes())
				buffers = append(buffers, buf)
			}
			b.SetBytes(size * int64(guests))
			for b.Loop() {
				var work sync.WaitGroup
				for _, buf := range buffers {
					work.Go(func() {
						if _, err := buf.Process(b.Context(), sharedbuf.Process()); err != nil {
							b.Error(err)
						}
					})
				}
				work.Wait()
			}
		})
	}
}
