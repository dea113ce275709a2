// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/wire"
)

// trackings are the ways of finding what was stored, each forced.
var trackings = map[string]memspan.Tracking{"pages": memspan.TrackPages, "compare": memspan.TrackCompare}

// shadowed runs a test with each tracking, over TCP.
func shadowed(t *testing.T, d *daemon, test func(t *testing.T, dial func() *memspan.Client)) {
	for name, tracking := range trackings {
		t.Run(name, func(t *testing.T) {
			test(t, func() *memspan.Client { return d.dial(t, "tcp", memspan.Options{Tracking: tracking}) })
		})
	}
}

// Whatever range is mapped, and whatever part of it is stored to, those bytes
// change and no others.
func TestShadowRangesAreExact(t *testing.T) {
	t.Parallel()
	shadowed(t, start(t, settings{}), func(t *testing.T, dial func() *memspan.Client) {
		const size = 3<<20 + 123
		c, other := dial(), dial()
		s := alloc(t, c, memspan.SpanConfig{Size: size})
		judge := open(t, other, s)
		model := stamped(size, 0, 1)
		write(t, judge, model, 0)
		r := rand.New(rand.NewPCG(3, 4))
		for round := range 40 {
			n := 1 + r.Int64N(size)
			if round%2 == 0 {
				n = 1 + r.Int64N(9000)
			}
			off := r.Int64N(size - n + 1)
			m := mapped(t, s, off, n, memspan.ReadWrite)
			if i := differ(m.Bytes(), model[off:off+n]); i >= 0 {
				t.Fatalf("round %d: mapped [%d, +%d): byte %d is wrong", round, off, n, off+int64(i))
			}
			for range 1 + r.IntN(20) {
				at := r.Int64N(n)
				k := 1 + r.Int64N(min(n-at, 1+r.Int64N(20000)))
				stamp(m.Bytes()[at:at+k], off+at, uint64(round))
				stamp(model[off+at:off+at+k], off+at, uint64(round))
			}
			unmap(t, m)
			if i := differ(read(t, judge, 0, size), model); i >= 0 {
				t.Fatalf("round %d: mapped [%d, +%d): byte %d of the span is wrong", round, off, n, i)
			}
		}
	})
}

// Two clients that change both sides of one page keep both.
func TestBothSidesOfAPage(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	for an, at := range trackings {
		for bn, bt := range trackings {
			t.Run(an+"-"+bn, func(t *testing.T) {
				a, b := d.dial(t, "tcp", memspan.Options{Tracking: at}), d.dial(t, "tls", memspan.Options{Tracking: bt})
				s := alloc(t, a, memspan.SpanConfig{Size: 3 * 4096})
				ma, mb := mapped(t, s, 0, 3*4096, memspan.ReadWrite), mapped(t, open(t, b, s), 0, 3*4096, memspan.ReadWrite)
				const cut = 4096 + 1777
				for round := range uint64(20) {
					stamp(ma.Bytes()[4096:cut], 4096, 2*round)
					stamp(mb.Bytes()[cut:8192], cut, 2*round+1)
					flush(t, ma)
					flush(t, mb)
					holds(t, s, 4096, cut-4096, 2*round)
					holds(t, s, cut, 8192-cut, 2*round+1)
					check(t, ma.Invalidate(t.Context()))
					if i := wrong(ma.Bytes()[cut:8192], cut, 2*round+1); i >= 0 {
						t.Fatalf("round %d: invalidate brought byte %d wrong", round, i)
					}
					check(t, mb.Invalidate(t.Context()))
				}
				unmap(t, ma)
				unmap(t, mb)
			})
		}
	}
}

// The same bytes changed by two: the later flush conflicts, stores nothing of
// that block but the others, and succeeds after Invalidate.
func TestConflictAndRecovery(t *testing.T) {
	t.Parallel()
	shadowed(t, start(t, settings{}), func(t *testing.T, dial func() *memspan.Client) {
		a, b := dial(), dial()
		const size, second = 2 << 20, 1 << 20
		s := alloc(t, a, memspan.SpanConfig{Name: "disputed-" + t.Name(), Size: size})
		other := open(t, b, s)
		ma, mb := mapped(t, s, 0, size, memspan.ReadWrite), mapped(t, other, 0, size, memspan.ReadWrite)
		stamp(ma.Bytes()[1000:2000], 1000, 1)
		stamp(ma.Bytes()[5000:5100], 5000, 1)
		flush(t, ma)

		stamp(mb.Bytes()[1500:2500], 1500, 2) // overlaps
		stamp(mb.Bytes()[9000:9100], 9000, 2) // does not, but is of that block
		stamp(mb.Bytes()[second:second+10], second, 2)
		_, err := mb.Flush(t.Context())
		want(t, "the second flush", err, memspan.ErrConflict)
		if err != nil && !bytes.Contains([]byte(err.Error()), []byte(s.Name())) {
			t.Errorf("the conflict does not name the span: %v", err)
		}
		holds(t, s, 1000, 1000, 1)
		if !bytes.Equal(read(t, s, 9000, 100), make([]byte, 100)) {
			t.Error("part of a block with a conflict was stored")
		}
		holds(t, s, second, 10, 2)
		want(t, "unmap with a conflict", mb.Unmap(t.Context()), memspan.ErrConflict)

		check(t, mb.Invalidate(t.Context()))
		for _, r := range [...]struct {
			lo, hi int
			seed   uint64
			whose  string
		}{{1000, 1500, 1, "the other's bytes"}, {1500, 2500, 2, "its own bytes"}, {5000, 5100, 1, "the other's bytes"}, {9000, 9100, 2, "its own bytes"}} {
			if i := wrong(mb.Bytes()[r.lo:r.hi], int64(r.lo), r.seed); i >= 0 {
				t.Errorf("after invalidate, %s are wrong at %d", r.whose, r.lo+i)
			}
		}
		unmap(t, mb)
		holds(t, s, 1000, 500, 1)
		holds(t, s, 1500, 1000, 2)
		holds(t, s, 5000, 100, 1)
		holds(t, s, 9000, 100, 2)
		unmap(t, ma) // nothing of it changed since
		holds(t, s, 1500, 1000, 2)
	})
}

func TestLastWriterWins(t *testing.T) {
	t.Parallel()
	shadowed(t, start(t, settings{}), func(t *testing.T, dial func() *memspan.Client) {
		a, b := dial(), dial()
		s := alloc(t, a, memspan.SpanConfig{Size: 8192})
		ma := mapped(t, s, 0, 8192, memspan.ReadWrite)
		mb := mapped(t, open(t, b, s), 0, 8192, memspan.ReadWrite|memspan.LastWriterWins)
		stamp(ma.Bytes()[:5000], 0, 1)
		stamp(mb.Bytes()[4000:6000], 4000, 2)
		flush(t, ma)
		flush(t, mb)
		holds(t, s, 0, 4000, 1)
		holds(t, s, 4000, 2000, 2)
		unmap(t, ma)
		unmap(t, mb)
	})
}

// frames returns how many frames of a kind a client has sent.
func frames(c *memspan.Client, kind wire.Kind) uint64 { return c.Traffic().Sent.Frames[kind] }

// What was never written is not asked for, what was not changed is not sent,
// and of what changed only that.
func TestOnlyWhatIsNeededIsSent(t *testing.T) {
	t.Parallel()
	shadowed(t, start(t, settings{}), func(t *testing.T, dial func() *memspan.Client) {
		c := dial()
		const size = 16 << 20
		s := alloc(t, c, memspan.SpanConfig{Size: size})
		m := mapped(t, s, 0, size, memspan.ReadWrite)
		if n := frames(c, wire.KindRead); n != 0 {
			t.Errorf("%d reads to map a span that was never written", n)
		}
		flush(t, m)
		unmap(t, m)
		if n := frames(c, wire.KindFlush) + frames(c, wire.KindTransfer); n != 0 {
			t.Errorf("%d frames to flush nothing", n)
		}

		write(t, s, stamped(1<<20, 5<<20, 1), 5<<20)
		write(t, s, stamped(10, 9<<20, 1), 9<<20)
		m = mapped(t, s, 0, size, memspan.ReadWrite)
		if n := frames(c, wire.KindRead); n != 2 {
			t.Errorf("%d reads to map a span with 2 written blocks", n)
		}
		for off := int64(0); off < size; off += 4096 { // stores that change nothing
			same := m.Bytes()[off]
			m.Bytes()[off] = same
		}
		version := flush(t, m).Version
		if n := frames(c, wire.KindFlush); n != 0 {
			t.Errorf("%d flush frames for stores that changed nothing", n)
		}
		before := c.Traffic().Sent
		for off := int64(100); off < size; off += 1 << 20 {
			m.Bytes()[off] ^= 0xff
		}
		if done := flush(t, m); done.Version != version+1 {
			t.Errorf("one flush took the version from %d to %d", version, done.Version)
		}
		sent := c.Traffic().Sent
		if n, bytes := sent.Frames[wire.KindFlush]-before.Frames[wire.KindFlush], sent.Bytes-before.Bytes; n != 16 || bytes > 16*100 {
			t.Errorf("16 changed bytes in 16 blocks went in %d frames of %d bytes in all", n, bytes)
		}
		before = c.Traffic().Sent
		check(t, m.Invalidate(t.Context()))
		if n := c.Traffic().Sent.Frames[wire.KindRead] - before.Frames[wire.KindRead]; n != 0 {
			t.Errorf("invalidate read %d blocks though nobody wrote", n)
		}
		unmap(t, m)
	})
}

// A goroutine that stores while others flush and invalidate loses nothing.
func TestConcurrentWriterLosesNothing(t *testing.T) {
	t.Parallel()
	shadowed(t, start(t, settings{}), func(t *testing.T, dial func() *memspan.Client) {
		const size, stride, rounds, burst = 2<<20 - 16, 16, 200, 60
		mine, theirs := dial(), dial()
		s := alloc(t, mine, memspan.SpanConfig{Size: size})
		m := mapped(t, s, 0, size, memspan.ReadWrite)
		neighbour := mapped(t, open(t, theirs, s), 0, size, memspan.ReadWrite)
		// Byte k of the writer lies all over the mapping, and its neighbours
		// are the other client's.
		at := func(k int) int { return k * 7919 % (size / stride) * stride }
		value := func(k int) byte { return byte(k) | 1 }

		turns, stored := make(chan struct{}), make(chan int)
		go func() {
			k := 0
			for range turns {
				for range burst {
					m.Bytes()[at(k)] = value(k)
					k++
					runtime.Gosched()
				}
				stored <- k
			}
		}()
		sure := 0
		for round := range rounds {
			turns <- struct{}{} // from here on stores and flush run side by side
			if round%2 == 0 {
				check(t, settle(t.Context(), m))
			} else {
				check(t, m.Invalidate(t.Context()))
			}
			for k := sure; k < sure+burst; k++ {
				neighbour.Bytes()[at(k)+1] = value(k)
			}
			check(t, settle(t.Context(), neighbour))
			sure = <-stored
		}
		close(turns)
		check(t, settle(t.Context(), m))
		check(t, m.Invalidate(t.Context()))
		check(t, neighbour.Invalidate(t.Context()))
		got := read(t, s, 0, size)
		lost := 0
		for k := range sure {
			for name, bytes := range map[string][]byte{"the span": got, "the writer's mapping": m.Bytes(), "the neighbour's mapping": neighbour.Bytes()} {
				if i := at(k); bytes[i] != value(k) || bytes[i+1] != value(k) {
					if lost++; lost < 5 {
						t.Errorf("%s lost store %d at %d: %#x %#x", name, k, i, bytes[i], bytes[i+1])
					}
				}
			}
		}
		if lost > 0 {
			t.Errorf("%d losses of %d stores", lost, sure)
		}
		unmap(t, m)
		unmap(t, neighbour)
	})
}

// A write-only mapping asks for nothing, sends the ranges it is told, whole,
// and nothing else.
func TestWriteOnly(t *testing.T) {
	t.Parallel()
	shadowed(t, start(t, settings{}), func(t *testing.T, dial func() *memspan.Client) {
		c := dial()
		const size = 2<<20 + 9
		s := alloc(t, c, memspan.SpanConfig{Size: size})
		write(t, s, stamped(size, 0, 1), 0)
		m := mapped(t, s, 5, size-5, memspan.WriteOnly)
		if n := frames(c, wire.KindRead); n != 0 {
			t.Errorf("%d reads to map for writing only", n)
		}
		clear(m.Bytes())
		stamp(m.Bytes()[1<<20-50:1<<20+50], 5+1<<20-50, 2)
		_, err := m.Flush(t.Context())
		want(t, "flush without ranges", err, memspan.ErrWrongMode)
		want(t, "invalidate", m.Invalidate(t.Context()), memspan.ErrWrongMode)
		for _, r := range []memspan.Range{{Offset: 0, Length: 10}, {Offset: size - 1, Length: 2}, {Offset: 10, Length: -1}, {Offset: 1 << 62, Length: 1 << 62}} {
			_, err := m.Flush(t.Context(), r)
			want(t, fmt.Sprintf("flush of %+v", r), err, memspan.ErrOutOfRange)
		}
		holds(t, s, 0, size, 1)
		flush(t, m, memspan.Range{Offset: 5 + 1<<20 - 50, Length: 100}, memspan.Range{Offset: 100, Length: 3})
		unmap(t, m) // sends nothing
		model := stamped(size, 0, 1)
		stamp(model[5+1<<20-50:5+1<<20+50], 5+1<<20-50, 2)
		clear(model[100:103])
		if i := differ(read(t, s, 0, size), model); i >= 0 {
			t.Errorf("byte %d of the span is wrong", i)
		}
	})
}

// What the kernel stores, reading a pipe into the mapping, is found too.
func TestReadIntoMappingIsFlushed(t *testing.T) {
	t.Parallel()
	shadowed(t, start(t, settings{}), func(t *testing.T, dial func() *memspan.Client) {
		const size, off, n = 1 << 20, 7001, 50001
		s := alloc(t, dial(), memspan.SpanConfig{Size: size})
		m := mapped(t, s, 0, size, memspan.ReadWrite)
		r, w, err := os.Pipe()
		check(t, err)
		go func() {
			w.Write(stamped(n, off, 5))
			w.Close()
		}()
		_, err = io.ReadFull(r, m.Bytes()[off:off+n])
		check(t, err)
		check(t, r.Close())
		unmap(t, m)
		holds(t, s, off, n, 5)
		if !bytes.Equal(read(t, s, 0, off), make([]byte, off)) {
			t.Error("bytes before the read changed")
		}
	})
}

// Mappings are read when they are made and when invalidated, and not between.
func TestReadOnlyShadow(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	c, other := d.dial(t, "tcp"), d.dial(t, "unix")
	s := alloc(t, other, memspan.SpanConfig{Size: 3 << 20})
	write(t, s, stamped(3<<20, 0, 1), 0)
	m := mapped(t, open(t, c, s), 99, 2<<20, memspan.ReadOnly)
	write(t, s, stamped(100, 1<<20, 2), 1<<20)
	if i := wrong(m.Bytes(), 99, 1); i >= 0 {
		t.Errorf("mapped byte %d is wrong", i)
	}
	before := frames(c, wire.KindRead)
	check(t, m.Invalidate(t.Context()))
	if i := wrong(m.Bytes()[1<<20-99:][:100], 1<<20, 2); i >= 0 {
		t.Errorf("invalidated byte %d is wrong", i)
	}
	if n := frames(c, wire.KindRead) - before; n != 1 {
		t.Errorf("invalidate read %d blocks, one was written", n)
	}
	_, err := m.Flush(t.Context())
	want(t, "flush of a read-only mapping", err, memspan.ErrWrongMode)
	unmap(t, m)
}
