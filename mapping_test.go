// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
)

// eachMapping runs a test with direct mappings, and with shadow buffers for
// each way of tracking. The client other is on a unix socket.
func eachMapping(t *testing.T, f func(t *testing.T, c, other *memspan.Client, mode memspan.Mode)) {
	srv := serve(t, server.Config{})
	for _, kind := range []struct {
		name, address string
		tracking      memspan.Tracking
		mode          memspan.Mode
	}{
		{"direct", srv.unix, memspan.TrackAuto, 0},
		{"pages", srv.tcp, memspan.TrackPages, 0},
		{"compare", srv.tls + "#" + srv.fingerprint, memspan.TrackCompare, 0},
		{"forced", srv.unix, memspan.TrackAuto, memspan.Shadow},
	} {
		t.Run(kind.name, func(t *testing.T) {
			f(t, dial(t, kind.address, &memspan.Options{Tracking: kind.tracking}), dial(t, srv.unix, nil), kind.mode)
		})
	}
}

func mapRange(t testing.TB, s *memspan.Span, off, n int64, mode memspan.Mode) *memspan.Mapping {
	t.Helper()
	m, err := s.Map(t.Context(), off, n, mode)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(m.Bytes())) != n || m.Offset() != off || m.Span() != s {
		t.Fatalf("the mapping has %d bytes from %d of %v", len(m.Bytes()), m.Offset(), m.Span())
	}
	t.Cleanup(func() { m.Discard(context.Background()) })
	return m
}

// contents reads the whole span.
func contents(t testing.TB, s *memspan.Span) []byte {
	t.Helper()
	b := make([]byte, s.Size())
	if _, err := s.ReadAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMapping(t *testing.T) {
	eachMapping(t, func(t *testing.T, c, other *memspan.Client, mode memspan.Mode) {
		ctx := t.Context()
		const size = 5*mib + 777
		s := alloc(t, c, size)
		theirs, err := other.Open(ctx, s.ID())
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		want := make([]byte, size)
		pattern(want, 1)
		if _, err := theirs.WriteAt(ctx, want, 0); err != nil {
			t.Fatal(err)
		}
		// Ranges that begin and end anywhere; their neighbours must not change.
		for i, r := range []struct{ off, n int64 }{
			{0, size}, {1, 1}, {4095, 2}, {mib - 5, 10}, {mib, mib}, {12345, 3*mib + 1}, {size - 3, 3},
		} {
			m := mapRange(t, s, r.off, r.n, memspan.ReadWrite|mode)
			if m.Direct() != (mode == 0 && t.Name() == "TestMapping/direct") {
				t.Fatal("the mapping is of the wrong kind")
			}
			if !bytes.Equal(m.Bytes(), want[r.off:r.off+r.n]) {
				t.Fatalf("map [%d,+%d): the mapping does not hold what was written", r.off, r.n)
			}
			part := want[r.off : r.off+r.n]
			part[0]++
			part[len(part)/2]++
			part[len(part)-1]++
			m.Bytes()[0]++
			m.Bytes()[len(part)/2]++
			m.Bytes()[len(part)-1]++
			if i%2 == 0 {
				commit, err := m.Flush(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if commit.Version != uint64(i+2) || !commit.Holders.Has(memspan.Host) {
					t.Fatalf("flush %d came to %+v", i, commit)
				}
				again, err := m.Flush(ctx)
				if err != nil || again != commit {
					t.Fatalf("a flush of nothing came to %+v, %v, the one before to %+v", again, err, commit)
				}
			}
			if err := m.Unmap(ctx); err != nil {
				t.Fatal(err)
			}
			if m.Bytes() != nil {
				t.Error("there are bytes after Unmap")
			}
			if !bytes.Equal(contents(t, theirs), want) {
				t.Fatalf("map [%d,+%d): others do not see exactly what was stored", r.off, r.n)
			}
		}
	})
}

func TestUnmappedMapping(t *testing.T) {
	eachMapping(t, func(t *testing.T, c, _ *memspan.Client, mode memspan.Mode) {
		ctx := t.Context()
		s := alloc(t, c, 100)
		for name, end := range map[string]func(*memspan.Mapping) error{
			"Unmap":   func(m *memspan.Mapping) error { return m.Unmap(ctx) },
			"Discard": func(m *memspan.Mapping) error { return m.Discard(ctx) },
		} {
			m := mapRange(t, s, 10, 20, memspan.ReadWrite|mode)
			if m.Err() != nil {
				t.Error(m.Err())
			}
			if err := end(m); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			<-m.Done()
			_, flush := m.Flush(ctx)
			for what, err := range map[string]error{
				"Unmap": m.Unmap(ctx), "Discard": m.Discard(ctx), "Invalidate": m.Invalidate(ctx), "Flush": flush, "Err": m.Err(),
			} {
				if !errors.Is(err, memspan.ErrNotMapped) {
					t.Errorf("%s after %s: %v", what, name, err)
				}
			}
		}
		if st, err := c.Stats(ctx); err != nil || st.Mappings != 0 {
			t.Errorf("the server has %d mappings left; %v", st.Mappings, err)
		}
	})
}

func TestModes(t *testing.T) {
	eachMapping(t, func(t *testing.T, c, _ *memspan.Client, mode memspan.Mode) {
		ctx := t.Context()
		s := alloc(t, c, 3*mib)
		want := make([]byte, 3*mib)
		pattern(want, 3)
		if _, err := s.WriteAt(ctx, want, 0); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []memspan.Mode{4, 1 << 5, 7} {
			if _, err := s.Map(ctx, 0, 1, bad); !errors.Is(err, memspan.ErrWrongMode) {
				t.Errorf("mode %d: %v", bad, err)
			}
		}
		if _, err := s.Map(ctx, 0, 0, memspan.ReadOnly); !errors.Is(err, memspan.ErrInvalid) {
			t.Errorf("a mapping of nothing: %v", err)
		}

		r := mapRange(t, s, 5, 2*mib, memspan.ReadOnly|mode)
		if _, err := r.Flush(ctx); !errors.Is(err, memspan.ErrWrongMode) {
			t.Errorf("flush of a read-only mapping: %v", err)
		}

		w := mapRange(t, s, mib-10, 100, memspan.WriteOnly|mode)
		if _, err := w.Flush(ctx); !errors.Is(err, memspan.ErrWrongMode) {
			t.Errorf("flush of a write-only mapping without ranges: %v", err)
		}
		if err := w.Invalidate(ctx); !errors.Is(err, memspan.ErrWrongMode) {
			t.Errorf("invalidate of a write-only mapping: %v", err)
		}
		for _, bad := range []memspan.Range{{Offset: mib - 11, Length: 5}, {Offset: mib + 89, Length: 2}, {Offset: mib, Length: 0}, {Offset: mib, Length: 1<<63 - 1}} {
			if _, err := w.Flush(ctx, bad); !errors.Is(err, memspan.ErrOutOfRange) {
				t.Errorf("flush of %+v: %v", bad, err)
			}
		}
		for i := range w.Bytes()[5:25] { // what is not named stays as it was
			w.Bytes()[5+i] = byte(i)
			want[mib-5+i] = byte(i)
		}
		commit, err := w.Flush(ctx, memspan.Range{Offset: mib - 5, Length: 12}, memspan.Range{Offset: mib, Length: 15})
		if err != nil || commit.Version != 2 || !commit.Holders.Has(memspan.Host) {
			t.Fatalf("flush of named ranges: %+v, %v", commit, err)
		}
		if !bytes.Equal(contents(t, s), want) {
			t.Fatal("what was named is not what was stored")
		}
		if err := r.Invalidate(ctx); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Bytes(), want[5:5+2*mib]) {
			t.Fatal("a read-only mapping does not see others' bytes after Invalidate")
		}
		if err := w.Unmap(ctx); err != nil {
			t.Error(err)
		}
		if err := r.Unmap(ctx); err != nil {
			t.Error(err)
		}
	})
}

// Two mappings store to different bytes of one page, neither invalidates, and
// both flush many times.
func TestSharedPage(t *testing.T) {
	srv := serve(t, server.Config{})
	for _, tracking := range []memspan.Tracking{memspan.TrackPages, memspan.TrackCompare} {
		t.Run(tracking.String(), func(t *testing.T) {
			ctx := t.Context()
			opts := &memspan.Options{Tracking: tracking}
			c1, c2 := dial(t, srv.tcp, opts), dial(t, srv.tcp, opts)
			s1 := alloc(t, c1, 2*mib)
			s2, err := c2.Open(ctx, s1.ID())
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 2*mib)
			pattern(want, 7)
			if _, err := s1.WriteAt(ctx, want, 0); err != nil {
				t.Fatal(err)
			}
			m1 := mapRange(t, s1, 0, 2*mib, memspan.ReadWrite)
			m2 := mapRange(t, s2, 0, 2*mib, memspan.ReadWrite)
			for round := range 40 {
				for i := range 64 {
					at := mib - 128 + 4*i // across a block's end
					m1.Bytes()[at] = byte(round + i)
					m2.Bytes()[at+2] = byte(round * i)
					want[at], want[at+2] = byte(round+i), byte(round*i)
				}
				for i, m := range []*memspan.Mapping{m1, m2} {
					if _, err := m.Flush(ctx); err != nil {
						t.Fatalf("round %d, flush of mapping %d: %v", round, i+1, err)
					}
				}
				if !bytes.Equal(contents(t, s1), want) {
					t.Fatalf("round %d: stores were lost", round)
				}
			}
			for i, m := range []*memspan.Mapping{m1, m2} {
				if err := m.Invalidate(ctx); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(m.Bytes(), want) {
					t.Errorf("mapping %d does not see the other's bytes", i+1)
				}
			}
		})
	}
}

func TestConflict(t *testing.T) {
	srv := serve(t, server.Config{})
	for _, tracking := range []memspan.Tracking{memspan.TrackPages, memspan.TrackCompare} {
		t.Run(tracking.String(), func(t *testing.T) {
			ctx := t.Context()
			opts := &memspan.Options{Tracking: tracking}
			c1, c2 := dial(t, srv.tcp, opts), dial(t, srv.tcp, opts)
			s1 := alloc(t, c1, 4*mib)
			s2, err := c2.Open(ctx, s1.ID())
			if err != nil {
				t.Fatal(err)
			}
			m1 := mapRange(t, s1, 0, 4*mib, memspan.ReadWrite)
			m2 := mapRange(t, s2, 0, 4*mib, memspan.ReadWrite)
			// Both change byte 10 of blocks 0 and 2, and others of their own.
			for b := range 4 {
				m1.Bytes()[b*mib+10-b%2] = 1
				m2.Bytes()[b*mib+10+b%2] = 2
				m2.Bytes()[b*mib+20] = 2
			}
			if _, err := m1.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if err := m2.Unmap(ctx); !errors.Is(err, memspan.ErrConflict) {
				t.Fatalf("the second flush of the same bytes: %v", err)
			}
			_, err = m2.Flush(ctx)
			joined, ok := err.(interface{ Unwrap() []error })
			if !ok || len(joined.Unwrap()) != 2 {
				t.Fatalf("a flush with two conflicts: %v", err)
			}
			for i, err := range joined.Unwrap() {
				var e *memspan.Error
				if !errors.As(err, &e) || e.Code != memspan.ErrConflict || e.Span != s1.ID() || e.Op != "flush" ||
					e.Offset > int64(2*i*mib+10) || e.Offset+e.Length <= int64(2*i*mib+10) {
					t.Errorf("conflict %d: %+v", i, e)
				}
			}
			got := contents(t, s1)
			for b := range 4 {
				want := []byte{0, 0, 1, 0, 0} // bytes 8 to 11, and 20
				if b%2 == 1 {
					want = []byte{0, 1, 0, 2, 2}
				}
				if have := append(bytes.Clone(got[b*mib+8:b*mib+12]), got[b*mib+20]); !bytes.Equal(have, want) {
					t.Errorf("block %d holds %v, want %v", b, have, want)
				}
			}
			// Invalidate keeps what was stored here on top.
			if err := m2.Invalidate(ctx); err != nil {
				t.Fatal(err)
			}
			if m2.Bytes()[10] != 2 || m2.Bytes()[mib+9] != 1 {
				t.Error("Invalidate did not keep this side's bytes on top of the others'")
			}
			if err := m2.Unmap(ctx); err != nil {
				t.Fatal(err)
			}
			if got := contents(t, s1); got[10] != 2 || got[20] != 2 || got[2*mib+20] != 2 {
				t.Error("the flush after Invalidate did not store what was in conflict")
			}

			// The last writer wins, if it asked to.
			m3 := mapRange(t, s2, 0, mib, memspan.ReadWrite|memspan.LastWriterWins)
			m1.Bytes()[30], m3.Bytes()[30] = 1, 3
			if err := m1.Invalidate(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := m1.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := m3.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if got := contents(t, s1); got[30] != 3 {
				t.Errorf("the byte is %d: the last writer did not win", got[30])
			}
		})
	}
}

// A range never written is not asked for, nor a block that has not changed.
func TestNoNeedlessReads(t *testing.T) {
	srv := serve(t, server.Config{})
	c, other := dial(t, srv.tcp, nil), dial(t, srv.unix, nil)
	ctx := t.Context()
	s := alloc(t, c, 64*mib)
	theirs, err := other.Open(ctx, s.ID())
	if err != nil {
		t.Fatal(err)
	}
	reads := func() uint64 { return c.Traffic().Sent.Frames[wire.KindRead] }
	flushes := func() uint64 { return c.Traffic().Sent.Frames[wire.KindFlush] }

	m := mapRange(t, s, 100, 60*mib, memspan.ReadWrite)
	if reads() != 0 {
		t.Errorf("%d reads for bytes never written", reads())
	}
	if _, err := m.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	m.Bytes()[5] = m.Bytes()[6] // a store that changes nothing
	if _, err := m.Flush(ctx); err != nil || flushes() != 0 {
		t.Errorf("%d flush frames for nothing; %v", flushes(), err)
	}
	m.Bytes()[5]++
	m.Bytes()[30*mib]++
	if _, err := m.Flush(ctx); err != nil || flushes() != 2 {
		t.Errorf("%d flush frames for two blocks; %v", flushes(), err)
	}
	if err := m.Invalidate(ctx); err != nil || reads() != 0 {
		t.Errorf("%d reads though nobody else wrote; %v", reads(), err)
	}
	if _, err := theirs.WriteAt(ctx, []byte("x"), 20*mib); err != nil {
		t.Fatal(err)
	}
	if err := m.Invalidate(ctx, memspan.Range{Offset: mib, Length: mib}); err != nil || reads() != 0 {
		t.Errorf("%d reads though nobody else wrote there; %v", reads(), err)
	}
	if err := m.Invalidate(ctx); err != nil || reads() != 1 || m.Bytes()[20*mib-100] != 'x' {
		t.Errorf("%d reads for one block that others wrote; %v", reads(), err)
	}
	if err := m.Unmap(ctx); err != nil {
		t.Fatal(err)
	}
	mapRange(t, s, 0, s.Size(), memspan.ReadOnly)
	if reads() != 4 {
		t.Errorf("%d reads, want 1 and one for each of three blocks that were written", reads())
	}
}

// A flush with named ranges is one commit, and sends those ranges alone.
func TestFlushRanges(t *testing.T) {
	eachMapping(t, func(t *testing.T, c, _ *memspan.Client, mode memspan.Mode) {
		ctx := t.Context()
		s := alloc(t, c, 8*mib)
		m := mapRange(t, s, 0, 8*mib, memspan.ReadWrite|mode)
		want := make([]byte, 8*mib)
		for b := range 8 {
			for i := range 3 {
				m.Bytes()[b*mib+i*1000] = 7
				want[b*mib+i*1000] = 7
			}
		}
		ranges := []memspan.Range{
			{Offset: 3*mib + 1000, Length: 1}, {Offset: 3 * mib, Length: 1}, // out of order, in one block
			{Offset: 5 * mib, Length: mib}, {Offset: 5*mib + 5, Length: mib}, // overlapping
			{Offset: 100, Length: 100}, {Offset: 7*mib + 5000, Length: 1}, // nothing stored there
		}
		commit, err := m.Flush(ctx, ranges...)
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.Stat(ctx)
		if err != nil || st.Version != 1 || commit.Version != 1 {
			t.Errorf("the flush came to %+v, and the span is at version %d; %v", commit, st.Version, err)
		}
		frames := func() uint64 { return c.Traffic().Sent.Frames[wire.KindFlush] }
		before := frames()
		if again, err := m.Flush(ctx, ranges...); err != nil || again != commit || frames() != before {
			t.Errorf("the same flush again came to %+v in %d frames; %v", again, frames()-before, err)
		}
		if !m.Direct() { // in a direct mapping all is there at once
			named := make([]byte, 8*mib)
			for _, r := range ranges {
				copy(named[r.Offset:], want[r.Offset:r.Offset+r.Length])
			}
			if !bytes.Equal(contents(t, s), named) {
				t.Fatal("what was flushed is not what was named")
			}
		}
		if err := m.Unmap(ctx); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(contents(t, s), want) {
			t.Fatal("Unmap did not flush the rest")
		}
	})
}

// Closing a span leaves its mappings usable.
func TestCloseSpanWhileMapped(t *testing.T) {
	eachMapping(t, func(t *testing.T, c, other *memspan.Client, mode memspan.Mode) {
		ctx := t.Context()
		s, err := c.Alloc(ctx, memspan.SpanConfig{Size: 2 * mib})
		if err != nil {
			t.Fatal(err)
		}
		m1, m2 := mapRange(t, s, 0, 2*mib, memspan.ReadWrite|mode), mapRange(t, s, 0, mib, memspan.ReadWrite|mode)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Map(ctx, 0, 1, memspan.ReadOnly); !errors.Is(err, memspan.ErrClosed) {
			t.Errorf("map of a closed span: %v", err)
		}
		m2.Bytes()[9] = 9
		if err := m2.Unmap(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m1.Invalidate(ctx); err != nil || m1.Bytes()[9] != 9 {
			t.Errorf("the mapping that is left does not see the other's byte; %v", err)
		}
		if err := m1.Unmap(ctx); err != nil {
			t.Fatal(err)
		}
		if list, err := other.List(ctx); err != nil || len(list) != 0 {
			t.Errorf("the span without a name is left: %+v, %v", list, err)
		}
	})
}

func TestFreedUnderMapping(t *testing.T) {
	srv := serve(t, server.Config{})
	c, other := dial(t, srv.unix, nil), dial(t, srv.tcp, nil)
	ctx := t.Context()
	s := alloc(t, c, mib)
	m := mapRange(t, s, 0, mib, memspan.ReadWrite)
	m.Bytes()[0] = 1
	theirs, err := other.Open(ctx, s.ID())
	if err != nil {
		t.Fatal(err)
	}
	shadow := mapRange(t, theirs, 0, mib, memspan.ReadWrite)
	shadow.Bytes()[0] = 2
	if err := theirs.Free(ctx); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if !errors.Is(m.Err(), memspan.ErrFreed) {
		t.Errorf("Err = %v", m.Err())
	}
	for _, m := range []*memspan.Mapping{m, shadow} {
		if _, err := m.Flush(ctx); !errors.Is(err, memspan.ErrFreed) {
			t.Errorf("Flush = %v", err)
		}
		if m.Bytes()[0]++; m.Bytes()[0] == 0 {
			t.Error("the memory is not valid any more")
		}
		if err := m.Discard(ctx); err != nil && !errors.Is(err, memspan.ErrFreed) {
			t.Errorf("Discard = %v", err)
		}
	}
}

func TestServerStops(t *testing.T) {
	srv := serve(t, server.Config{})
	ctx := t.Context()
	c1, c2 := dial(t, srv.unix, nil), dial(t, srv.tcp, nil)
	s1, err := c1.Alloc(ctx, memspan.SpanConfig{Size: mib})
	if err != nil {
		t.Fatal(err)
	}
	s2, err := c2.Open(ctx, s1.ID())
	if err != nil {
		t.Fatal(err)
	}
	direct := mapRange(t, s1, 0, mib, memspan.ReadWrite)
	shadow := mapRange(t, s2, 0, mib, memspan.ReadWrite)
	shadow.Bytes()[1] = 1
	stopped := make(chan struct{})
	stopping, cancel := context.WithCancel(ctx)
	go func() {
		defer close(stopped)
		srv.stop(stopping)
	}()
	<-direct.Done()
	<-shadow.Done()
	for _, m := range []*memspan.Mapping{direct, shadow} {
		if !errors.Is(m.Err(), memspan.ErrClosed) {
			t.Errorf("Err = %v", m.Err())
		}
	}
	// There is time to flush.
	if err := shadow.Unmap(ctx); err != nil {
		t.Errorf("Unmap while the server stops: %v", err)
	}
	if direct.Bytes()[1] != 1 {
		t.Error("what was flushed while the server stops is lost")
	}
	cancel() // but not for ever
	<-stopped
	<-c1.Done()
	<-c2.Done()
	direct.Bytes()[2] = 2
	for what, err := range map[string]error{
		"Unmap": direct.Unmap(ctx), "Stat": second(s2.Stat(ctx)), "Err": c1.Err(),
	} {
		if !errors.Is(err, memspan.ErrPeerLost) {
			t.Errorf("%s after the server's end: %v", what, err)
		}
	}
	if direct.Bytes()[2] != 2 {
		t.Error("the memory is not valid any more")
	}
	if err := direct.Discard(ctx); err != nil {
		t.Errorf("Discard: %v", err)
	}
}
