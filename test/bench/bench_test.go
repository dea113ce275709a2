// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/memfd"
)

func check(b *testing.B, err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

// Attaching a span on the same machine costs the same whatever its size: 1 GiB
// against 4 KiB, at least 0.5.
func BenchmarkAttach(b *testing.B) {
	a, _ := child(b, "server")
	c := dial(b, a, "unix", memspan.Options{})
	attach := func(size int64) func() {
		s := alloc(b, c, size)
		_, err := s.Fill(b.Context(), 0, size, 1)
		check(b, err)
		return func() {
			m, err := s.Map(b.Context(), 0, size, memspan.ReadOnly)
			check(b, err)
			if m.Bytes()[size-1] != 0 || !m.Direct() {
				b.Fatal("not the span")
			}
			check(b, m.Unmap(b.Context()))
		}
	}
	large, small := attach(1<<30), attach(4<<10)
	before := c.Traffic()
	pair(b, 0, large, small)
	after := c.Traffic()
	b.ReportMetric(float64(after.Sent.Data+after.Received.Data-before.Sent.Data-before.Received.Data)/float64(2*b.N+2), "message-bytes/op")
}

// Region to region against bare sockets: at least 0.7 plain, 0.8 in TLS.
func BenchmarkWriteAt(b *testing.B) { bulk(b, true) }
func BenchmarkReadAt(b *testing.B)  { bulk(b, false) }

func bulk(b *testing.B, write bool) {
	for _, transport := range []string{"tcp", "tls", "unix"} {
		for _, size := range []int64{10 << 20, 100 << 20, 1 << 30} {
			b.Run(fmt.Sprintf("%s/%dMiB", transport, size>>20), func(b *testing.B) {
				a, _ := child(b, "server")
				r, _ := child(b, "raw")
				s := alloc(b, dial(b, a, transport, memspan.Options{NoCompression: true}), size)
				raw := dialRaw(b, r, transport)
				p := region(size)
				_, err := s.WriteAt(b.Context(), p, 0)
				check(b, err)
				if write {
					pair(b, size, func() {
						_, err := s.WriteAt(b.Context(), p, 0)
						check(b, err)
					}, func() { raw.store(p) })
					return
				}
				pair(b, size, func() {
					_, err := s.ReadAt(b.Context(), p, 0)
					check(b, err)
				}, func() { raw.fetch(p) })
			})
		}
	}
}

// The small round trip against a ping-pong of the same bytes: at least 0.5.
func BenchmarkRoundTrip(b *testing.B) {
	for _, transport := range []string{"unix", "tcp"} {
		b.Run(transport, func(b *testing.B) {
			a, _ := child(b, "server")
			r, _ := child(b, "raw")
			s := alloc(b, dial(b, a, transport, memspan.Options{}), 4096)
			raw := dialRaw(b, r, transport)
			var p [64]byte
			_, err := s.WriteAt(b.Context(), p[:], 0)
			check(b, err)
			buf := make([]byte, 9+len(p))
			const many = 200 // a single one is too short to time
			pair(b, 0, func() {
				for range many {
					_, err := s.ReadAt(b.Context(), p[:], 0)
					check(b, err)
				}
			}, func() {
				for range many {
					raw.echo(buf)
				}
			})
		})
	}
}

// A flush of 1 % dirty pages of 256 MiB over TCP against a flush of all of it:
// time at most 1/20, bytes on the wire at most 1.2 times the changed ones and
// 16 for each run.
func BenchmarkSparseFlush(b *testing.B) {
	const size, page = 256 << 20, 4096
	for name, tracking := range map[string]memspan.Tracking{"pages": memspan.TrackPages, "compare": memspan.TrackCompare} {
		b.Run(name, func(b *testing.B) {
			a, _ := child(b, "server")
			c := dial(b, a, "tcp", memspan.Options{Tracking: tracking, NoCompression: true})
			s := alloc(b, c, size)
			m, err := s.Map(b.Context(), 0, size, memspan.ReadWrite)
			check(b, err)
			p := m.Bytes()
			round := byte(0)
			touch := func(pages int) {
				round++
				for _, i := range rand.Perm(size / page)[:pages] {
					for j := range page {
						p[i*page+j] += round | 1
					}
				}
			}
			flush := func() {
				_, err := m.Flush(b.Context())
				check(b, err)
			}
			const sparse = size / page / 100
			var wire, changed, runs float64
			var sparseTime, fullTime []float64
			for b.Loop() {
				touch(sparse)
				before := c.Traffic().Sent
				sparseTime = append(sparseTime, seconds(flush))
				after := c.Traffic().Sent
				wire += float64(after.Bytes - before.Bytes)
				changed += sparse * page
				runs += sparse
				touch(size / page)
				fullTime = append(fullTime, seconds(flush))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(sparseTime)*1e3, "sparse-ms")
			b.ReportMetric(median(fullTime)*1e3, "full-ms")
			b.ReportMetric(median(fullTime)/median(sparseTime), "times-faster")
			b.ReportMetric(wire/changed, "wire/changed")
			b.ReportMetric(wire/(1.2*changed+16*runs), "of-allowed-wire")
			check(b, m.Unmap(b.Context()))
		})
	}
}

// What a daemon takes beside the bytes it holds, per block and, from that, at
// 1 million idle blocks: at most 128 MiB.
func BenchmarkDaemonMemory(b *testing.B) {
	const blocks = 8192
	a, pid := child(b, "server")
	c := dial(b, a, "unix", memspan.Options{})
	for b.Loop() {
		before := anonymous(b, pid)
		s, err := c.Alloc(b.Context(), memspan.SpanConfig{Size: blocks << 20})
		check(b, err)
		perBlock := (anonymous(b, pid) - before) / blocks
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(perBlock, "bytes/block")
		b.ReportMetric(perBlock*1e6/(1<<20)+before/(1<<20), "MiB-at-1M-blocks")
		check(b, s.Free(b.Context()))
	}
}

// anonymous returns a process's resident memory without what it shares, which
// is the bytes of spans.
func anonymous(b *testing.B, pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(b, err)
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			check(b, err)
			return kib * 1024
		}
	}
	b.Fatal("no RssAnon")
	return 0
}

// The document's own targets, from mapping to acknowledged unmap and back:
// 4 KiB in 1 ms, 1 MiB in 10 ms, 10 MiB in 100 ms, 50 MB/s. At least tenfold.
//
// Each cycle maps, uses every byte as the mode is for, and unmaps: write copies
// new bytes to a WriteDiscard mapping, update to a ReadWrite one, read compares
// a ReadOnly one with what was written. The document's figures are for the
// transfer: so beside the whole cycle stands what is left of it without the
// same use of plain memory, measured in turn.
func BenchmarkDocument(b *testing.B) {
	for _, transport := range []string{"unix", "tcp", "tls"} {
		for _, size := range []int64{4 << 10, 1 << 20, 10 << 20, 100 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", transport, size>>10), func(b *testing.B) {
				a, _ := child(b, "server")
				s := alloc(b, dial(b, a, transport, memspan.Options{NoCompression: true}), size)
				news := [2][]byte{region(size), region(size)}
				for i := range news[1] {
					news[1][i]++
				}
				plain := region(size)
				store := func(p, from []byte) { memfd.Copy(p, from) }
				compare := func(p, with []byte) {
					if !bytes.Equal(p, with) {
						b.Fatal("read back something else")
					}
				}
				cycle := func(mode memspan.Mode, use func(p, data []byte), data []byte) float64 {
					return seconds(func() {
						m, err := s.Map(b.Context(), 0, size, mode)
						check(b, err)
						use(m.Bytes(), data)
						check(b, m.Unmap(b.Context()))
					})
				}
				total, own := map[string][]float64{}, map[string][]float64{}
				note := func(name string, whole, use float64) {
					total[name] = append(total[name], whole)
					own[name] = append(own[name], whole-use)
				}
				for round := 0; b.Loop(); round++ {
					now, then := news[round%2], news[1-round%2]
					note("write", cycle(memspan.WriteDiscard, store, then), seconds(func() { store(plain, then) }))
					note("update", cycle(memspan.ReadWrite, store, now), seconds(func() { store(plain, now) }))
					note("read", cycle(memspan.ReadOnly, compare, now), seconds(func() { compare(plain, now) }))
				}
				b.ReportMetric(0, "ns/op")
				for name := range total {
					b.ReportMetric(median(total[name])*1e3, name+"-ms")
					b.ReportMetric(median(own[name])*1e3, name+"-own-ms")
					b.ReportMetric(float64(size)/1e6/median(total[name]), name+"-MB/s")
				}
			})
		}
	}
}
