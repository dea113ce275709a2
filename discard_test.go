// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
)

// A WriteDiscard mapping reads nothing, and leaves exactly what was stored to
// it: over others' bytes, once, at Unmap.
func TestWriteDiscard(t *testing.T) {
	eachMapping(t, func(t *testing.T, c, other *memspan.Client, mode memspan.Mode) {
		ctx := t.Context()
		s := alloc(t, c, 3*mib)
		want := make([]byte, 3*mib)
		pattern(want, 3)
		if _, err := s.WriteAt(ctx, want, 0); err != nil {
			t.Fatal(err)
		}
		// What the mapping's memory was last used for must not be seen in it.
		if err := mapRange(t, s, 0, 3*mib, memspan.ReadWrite|mode).Unmap(ctx); err != nil {
			t.Fatal(err)
		}
		const off, n = mib - 1000, mib + 3000
		before := c.Traffic().Sent.Frames[wire.KindRead]
		m := mapRange(t, s, off, n, memspan.WriteDiscard|mode)
		if !m.Direct() && !bytes.Equal(m.Bytes(), make([]byte, n)) {
			t.Error("it does not begin as zeros")
		}
		if err := m.Invalidate(ctx); !errors.Is(err, memspan.ErrWrongMode) {
			t.Errorf("invalidate: %v", err)
		}
		theirs, err := other.Open(ctx, s.ID())
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int64{10, off + 10} {
			if _, err := theirs.WriteAt(ctx, []byte("theirs"), at); err != nil {
				t.Fatal(err)
			}
		}
		copy(want[10:], "theirs")
		pattern(m.Bytes(), 9)
		pattern(want[off:off+n], 9)
		version := stat(t, s).Version
		if err := m.Unmap(ctx); err != nil {
			t.Fatal(err)
		}
		if reads := c.Traffic().Sent.Frames[wire.KindRead] - before; reads != 0 {
			t.Errorf("%d reads", reads)
		}
		st := stat(t, s)
		if st.Version != version+1 || st.Shadow != 0 || st.Direct != 0 {
			t.Errorf("from version %d to %+v", version, st)
		}
		if !bytes.Equal(contents(t, s), want) {
			t.Error("the span does not hold what was stored")
		}
	})
}

// A flush of ranges sends those, Discard nothing.
func TestWriteDiscardFlush(t *testing.T) {
	srv := serve(t, server.Config{})
	c := dial(t, srv.tcp, nil)
	ctx := t.Context()
	s := alloc(t, c, 2*mib)
	want := make([]byte, 2*mib)
	pattern(want, 3)
	if _, err := s.WriteAt(ctx, want, 0); err != nil {
		t.Fatal(err)
	}
	m := mapRange(t, s, 0, 2*mib, memspan.WriteDiscard)
	pattern(m.Bytes(), 5)
	copy(want[mib-50:mib+50], m.Bytes()[mib-50:])
	if _, err := m.Flush(ctx, memspan.Range{Offset: mib - 50, Length: 100}); err != nil {
		t.Fatal(err)
	}
	if err := m.Discard(ctx); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contents(t, s), want) {
		t.Error("another range than the flushed one changed")
	}
}

// What is asked for after Unmap finds the mapping gone, though Unmap did not
// wait for it; and requests after many of them are still answered in their
// turn.
func TestUnmapIsBeforeWhatFollows(t *testing.T) {
	eachMapping(t, func(t *testing.T, c, _ *memspan.Client, mode memspan.Mode) {
		s := alloc(t, c, mib)
		for range 50 {
			for range 3 {
				if err := mapRange(t, s, 0, mib, memspan.ReadOnly|mode).Unmap(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if st := stat(t, s); st.Shadow != 0 || st.Direct != 0 {
				t.Fatalf("%d shadow and %d direct mappings after Unmap", st.Shadow, st.Direct)
			}
		}
	})
}

func stat(t testing.TB, s *memspan.Span) memspan.SpanStat {
	t.Helper()
	st, err := s.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// A range that is mapped directly again and again shows the span each time,
// and another span or range never by mistake.
func TestMappedAgain(t *testing.T) {
	srv := serve(t, server.Config{})
	c, other := dial(t, srv.unix, nil), dial(t, srv.unix, nil)
	ctx := t.Context()
	var spans []*memspan.Span
	for range 12 {
		spans = append(spans, alloc(t, c, mib))
	}
	for round := range 3 {
		for i, s := range spans {
			theirs, err := other.Open(ctx, s.ID())
			if err != nil {
				t.Fatal(err)
			}
			tag := []byte{byte(i), byte(round)}
			for _, off := range []int64{0, 5000} {
				if _, err := theirs.WriteAt(ctx, append(tag, byte(off)), off); err != nil {
					t.Fatal(err)
				}
				want := append(tag, byte(off))
				for _, mode := range []memspan.Mode{memspan.ReadOnly, memspan.ReadWrite, memspan.ReadOnly} {
					m := mapRange(t, s, off, 4096+off, mode)
					if got := m.Bytes()[:3]; !bytes.Equal(got, want) {
						t.Fatalf("span %d, round %d, mode %d at %d: %v, want %v", i, round, mode, off, got, want)
					}
					if mode == memspan.ReadWrite {
						m.Bytes()[2]++
						want[2]++
					}
					if err := m.Unmap(ctx); err != nil {
						t.Fatal(err)
					}
				}
			}
			if round == 2 && i%2 == 0 {
				if err := s.Free(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
