// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
)

// draft makes an unpublished span of 4096 bytes that are all b.
func draft(t testing.TB, c *memspan.Client, name string, b byte) *memspan.Span {
	t.Helper()
	s, err := c.Alloc(t.Context(), memspan.SpanConfig{Name: name, Size: 4096, Unpublished: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(t.Context(), bytes.Repeat([]byte{b}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPublish(t *testing.T) {
	srv := serve(t, server.Config{})
	c, other := dial(t, srv.unix, nil), dial(t, srv.unix, nil)
	ctx := t.Context()
	want := func(what string, err, kind error) {
		t.Helper()
		if !errors.Is(err, kind) {
			t.Errorf("%s: %v, want %v", what, err, kind)
		}
	}
	total := func() int {
		st, err := c.Stats(ctx)
		want("stats", err, nil)
		return st.Coherency.Total
	}
	first := func(s *memspan.Span) byte {
		b := make([]byte, 1)
		_, err := s.ReadAt(ctx, b, 0)
		want("read", err, nil)
		return b[0]
	}

	one, two := draft(t, c, "x", 1), draft(t, c, "x", 2)
	_, err := other.Open(ctx, "x")
	want("open before it is published", err, memspan.ErrNotFound)
	byID, err := other.Open(ctx, one.ID())
	want("open by id", err, nil)
	want("close", byID.Close(), nil)
	if st, err := one.Stat(ctx); err != nil || !st.Unpublished {
		t.Errorf("Stat before = %+v, %v", st, err)
	}
	want("publish", one.Publish(ctx), nil)
	want("publish again", one.Publish(ctx), nil)
	if st, err := one.Stat(ctx); err != nil || st.Unpublished {
		t.Errorf("Stat after = %+v, %v", st, err)
	}
	want("publish a second", two.Publish(ctx), memspan.ErrExists)
	held, err := other.Open(ctx, "x")
	want("open", err, nil)

	// The old one stays for those who have it open, and for no longer.
	want("replace", two.Replace(ctx), nil)
	now, err := other.Open(ctx, "x")
	want("open", err, nil)
	if first(held) != 1 || first(now) != 2 {
		t.Errorf("the span that was open has %d, the one opened now %d", first(held), first(now))
	}
	if st, err := held.Stat(ctx); err != nil || !st.Unpublished {
		t.Errorf("Stat of what was replaced = %+v, %v", st, err)
	}
	want("close", one.Close(), nil)
	if n := total(); n != 2 {
		t.Errorf("%d spans while the old one is open, want 2", n)
	}
	want("close", held.Close(), nil)
	if n := total(); n != 1 {
		t.Errorf("%d spans when the old one is closed, want 1", n)
	}
	// What is published stays without handles, a draft goes with its last.
	want("close", two.Close(), nil)
	want("close", now.Close(), nil)
	want("close", draft(t, c, "x", 3).Close(), nil)
	if n := total(); n != 1 {
		t.Errorf("%d spans, want 1", n)
	}
	// Replaced without a handle, it goes at once.
	three := draft(t, c, "x", 3)
	want("replace", three.Replace(ctx), nil)
	if n := total(); n != 1 {
		t.Errorf("%d spans, want 1", n)
	}
	want("free", three.Free(ctx), nil)
	want("publish what is free", draft(t, c, "x", 4).Publish(ctx), nil)

	anonymous := alloc(t, c, 1)
	want("publish a span without a name", anonymous.Publish(ctx), memspan.ErrInvalid)
	gone := draft(t, c, "y", 5)
	want("free", gone.Free(ctx), nil)
	want("publish what was freed", gone.Publish(ctx), memspan.ErrFreed)
}

// Whoever opens a name while spans take it from each other gets one of them,
// whole, and never none.
func TestReplaceIsOneStep(t *testing.T) {
	srv := serve(t, server.Config{})
	boss := dial(t, srv.unix, nil)
	if err := draft(t, boss, "x", 0).Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	const rounds, openers, replacers = 100, 3, 2
	done := make(chan struct{})
	opened := make(chan struct{}, 1) // since the last replacement
	var reading, writing sync.WaitGroup
	for range openers {
		c := dial(t, srv.unix, nil)
		reading.Go(func() {
			for p := make([]byte, 4096); ; {
				select {
				case <-done:
					return
				default:
				}
				s, err := c.Open(t.Context(), "x")
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				if _, err := s.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, bytes.Repeat(p[:1], len(p))) {
					t.Errorf("read: %v, or bytes of several spans", err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				select {
				case opened <- struct{}{}:
				default:
				}
			}
		})
	}
	alone := make(chan struct{}) // closed when nobody opens any more
	go func() {
		reading.Wait()
		close(alone)
	}()
	for i := range replacers {
		c := dial(t, srv.unix, nil)
		writing.Go(func() {
			for n := range rounds {
				s := draft(t, c, "x", byte(i*rounds+n))
				if err := s.Replace(t.Context()); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				select {
				case <-opened: // so that both go on together
				case <-alone:
					return
				}
			}
		})
	}
	writing.Wait()
	close(done)
	<-alone
	if st, err := boss.Stats(t.Context()); err != nil || st.Coherency.Total != 2 { // the first has boss's handle
		t.Errorf("%d spans at the end, want 2 (%v)", st.Coherency.Total, err)
	}
}
