// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
)

// many is how often one run of a benchmark does what is too short to be timed by
// itself; its quantiles are of all of them.
const many = 200

// reportQuantiles reports the distribution of d, in microseconds.
func reportQuantiles(b *testing.B, name string, d []time.Duration) {
	b.Helper()
	d = slices.Clone(d)
	slices.Sort(d)
	for _, q := range []struct {
		name string
		at   float64
	}{{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}} {
		i := max(int(math.Ceil(q.at*float64(len(d))))-1, 0)
		b.ReportMetric(float64(d[i].Nanoseconds())/1e3, name+"-"+q.name+"-µs")
	}
}

func opened(b *testing.B, t *surface.Ticket, o pull.Options) *pull.Surface {
	b.Helper()
	s, err := pull.Open(b.Context(), t, o)
	check(b, err)
	return s
}

// BenchmarkSurfaceAttach opens and maps a surface of 1 GiB and one of 4 KiB, with a
// connection of its own each time: the same cost, at most twice, and below 200 µs. Bare is
// a connection of package net's and one round trip, without anything else.
func BenchmarkSurfaceAttach(b *testing.B) {
	a, _ := child(b, "server")
	tickets := [2]*surface.Ticket{exposed(b, a, "unix", 1<<30), exposed(b, a, "unix", 4<<10)}
	first := make([]byte, 64) // of both
	copied := opened(b, tickets[1], pull.Options{Copy: true})
	_, err := copied.ReadAt(first, 0)
	check(b, errors.Join(err, copied.Close()))
	before := given(b, a)
	attach := func(t *surface.Ticket) (whole, mapping time.Duration) {
		start := time.Now()
		s := opened(b, t, pull.Options{})
		between := time.Now()
		m, err := s.Map(b.Context())
		whole, mapping = time.Since(start), time.Since(between)
		check(b, err)
		if p := m.Bytes(); !s.Direct() || !bytes.Equal(p[:len(first)], first) {
			b.Fatal("not the surface's own memory")
		}
		check(b, m.Close())
		check(b, s.Close())
		return whole, mapping
	}
	// What one attach says on its connection, both ways, by a relay.
	var said [2]int64
	for i, t := range tickets {
		r := newRelay(b, a.Socket)
		through := *t
		through.Addresses = []string{"unix:" + r.path}
		attach(&through)
		said[i] = r.close()
	}
	// What no attach can do without: a connection, and a round trip of as many bytes.
	raw, _ := child(b, "raw")
	message := make([]byte, 9+said[1]/2)
	bare := func() time.Duration {
		start := time.Now()
		nc, err := net.Dial("unix", raw.Socket)
		check(b, err)
		r := rawConn{c: nc}
		r.echo(message)
		took := time.Since(start)
		check(b, nc.Close())
		return took
	}
	var whole, mapping [2][]time.Duration
	var bares []time.Duration
	var ratios []float64
	for b.Loop() {
		for range many {
			var took [2]time.Duration
			for i, t := range tickets {
				w, m := attach(t)
				took[i] = w
				whole[i], mapping[i] = append(whole[i], w), append(mapping[i], m)
			}
			ratios = append(ratios, took[0].Seconds()/took[1].Seconds())
			bares = append(bares, bare())
		}
	}
	b.ReportMetric(0, "ns/op")
	reportQuantiles(b, "bare", bares)
	for i, name := range []string{"1GiB", "4KiB"} {
		reportQuantiles(b, name, whole[i])
		b.ReportMetric(median(mapping[i]).Seconds()/median(whole[i]).Seconds(), name+"-mapping/attach")
		b.ReportMetric(float64(said[i]), name+"-connection-bytes")
	}
	b.ReportMetric(median(ratios), "1GiB/4KiB")
	b.ReportMetric(float64(given(b, a)-before), "chunk-bytes")
}

// given returns how many bytes of chunks a server has sent.
func given(b *testing.B, a addresses) (n int64) {
	b.Helper()
	list, err := dial(b, a, "unix", memspan.Options{}).Surfaces(b.Context())
	check(b, err)
	for _, s := range list {
		n += s.Given
	}
	return n
}

// A relay passes one unix connection on, descriptors too, and counts its bytes.
type relay struct {
	path  string
	bytes atomic.Int64
	ln    *net.UnixListener
	work  sync.WaitGroup
}

func newRelay(b *testing.B, to string) *relay {
	b.Helper()
	dir, err := os.MkdirTemp("", "memspan-bench-") // b.TempDir may be too long for a socket
	check(b, err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	r := &relay{path: filepath.Join(dir, "s")}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path, Net: "unix"})
	check(b, err)
	r.ln = ln
	r.work.Go(func() {
		near, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		far, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: to, Net: "unix"})
		if err != nil {
			near.Close()
			return
		}
		r.work.Go(func() { r.pass(near, far) })
		r.work.Go(func() { r.pass(far, near) })
	})
	return r
}

func (r *relay) pass(from, to *net.UnixConn) {
	defer from.Close()
	defer to.Close()
	data, rights := make([]byte, 64<<10), make([]byte, 1<<10)
	for {
		n, rn, _, _, err := from.ReadMsgUnix(data, rights)
		if err != nil || n == 0 {
			return
		}
		r.bytes.Add(int64(n))
		_, _, err = to.WriteMsgUnix(data[:n], rights[:rn], nil)
		if errors.Join(err, closeRights(rights[:rn])) != nil {
			return
		}
	}
}

// closeRights closes the descriptors of a message that was passed on: the receiver
// has duplicates.
func closeRights(rights []byte) error {
	messages, err := syscall.ParseSocketControlMessage(rights)
	for _, m := range messages {
		fds, more := syscall.ParseUnixRights(&m)
		err = errors.Join(err, more)
		for _, fd := range fds {
			err = errors.Join(err, syscall.Close(fd))
		}
	}
	return err
}

// close returns how many bytes were passed on, once all were.
func (r *relay) close() int64 {
	r.ln.Close()
	r.work.Wait()
	return r.bytes.Load()
}

// BenchmarkSurfaceWake is the time until a puller that waits for a chunk of 4 KiB has
// it, from the beginning of the Write that sends it to the server, and from its return.
// On one machine the server wakes him in the availability page: at most 50 µs at the
// median; over TCP it tells him.
func BenchmarkSurfaceWake(b *testing.B) {
	for _, transport := range []string{"unix", "tcp"} {
		b.Run(transport, func(b *testing.B) {
			const piece = surface.MinChunk
			a, _ := child(b, "server")
			w, err := dial(b, a, "unix", memspan.Options{}).Expose(b.Context(), -1, memspan.ExposeOptions{Chunk: piece})
			check(b, err)
			s := opened(b, at(a, w.Ticket(), transport), pull.Options{})
			if s.Direct() != (transport == "unix") {
				b.Fatal("direct:", s.Direct())
			}
			ctx, cancel := context.WithCancel(b.Context())
			waits, woken := make(chan int64), make(chan time.Time)
			var work sync.WaitGroup
			work.Go(func() {
				defer close(woken)
				for off := range waits {
					if s.Wait(ctx, off, piece) != nil {
						return
					}
					woken <- time.Now()
				}
			})
			defer func() {
				cancel()
				close(waits)
				work.Wait()
				s.Close()
			}()
			data := bytes.Repeat([]byte("memspan\n"), piece/8)
			var begun, returned, write []time.Duration
			var off int64
			for b.Loop() {
				for range many {
					waits <- off
					// Who does not wait yet is not woken. If this is too
					// short now and then, that is one sample of many.
					time.Sleep(200 * time.Microsecond)
					start := time.Now()
					_, err := w.Write(data)
					end := time.Now()
					check(b, err)
					at, ok := <-woken
					if !ok {
						b.Fatal("the puller gave up")
					}
					off += piece
					begun, returned, write = append(begun, at.Sub(start)), append(returned, at.Sub(end)), append(write, end.Sub(start))
				}
			}
			b.ReportMetric(0, "ns/op")
			reportQuantiles(b, "begun", begun)
			// Negative: the puller ran before the writer knew that he may go on.
			reportQuantiles(b, "returned", returned)
			b.ReportMetric(float64(median(write).Nanoseconds())/1e3, "write-p50-µs")
		})
	}
}

// BenchmarkSurfaceSmallPull opens a small surface, reads all of it and closes it:
// direct, and in turn by packets of the same unix socket.
func BenchmarkSurfaceSmallPull(b *testing.B) {
	for _, size := range []int64{4 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			a, _ := child(b, "server")
			t := exposed(b, a, "unix", size)
			p := make([]byte, size)
			first := func(o pull.Options) time.Duration {
				start := time.Now()
				s := opened(b, t, o)
				_, err := s.ReadAt(p, 0)
				took := time.Since(start)
				check(b, err)
				if s.Direct() == o.Copy {
					b.Fatal("direct:", s.Direct())
				}
				check(b, s.Close())
				return took
			}
			var direct, packets []time.Duration
			var ratios []float64
			for b.Loop() {
				for range many {
					d, c := first(pull.Options{}), first(pull.Options{Copy: true})
					direct, packets = append(direct, d), append(packets, c)
					ratios = append(ratios, c.Seconds()/d.Seconds())
				}
			}
			b.ReportMetric(0, "ns/op")
			reportQuantiles(b, "direct", direct)
			reportQuantiles(b, "packets", packets)
			b.ReportMetric(median(ratios), "packets/direct")
		})
	}
}
