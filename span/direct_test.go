// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/span"
)

func mapDirect(t *testing.T, s *span.Span, off, n int64) (*span.Direct, []byte) {
	t.Helper()
	d, err := s.MapDirect(t.Context(), off, n, true, nothing)
	if err != nil {
		t.Fatal(err)
	}
	f, size, err := d.File()
	if err != nil {
		t.Fatal(err)
	}
	r, err := memfd.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return d, r.Bytes()
}

func nothing() {}

func TestDirectMapping(t *testing.T) {
	st := newStore(t)
	for _, where := range tiers {
		t.Run(where.String(), func(t *testing.T) {
			s := alloc(t, st, span.Info{Size: 3 * block, Tier: where, Home: where, Policy: coherency.WriteThrough})
			write(t, s, 0, pattern(3*block, 3))
			d, p := mapDirect(t, s, 0, 3*block)
			if !bytes.Equal(p[:3*block], pattern(3*block, 3)) {
				t.Fatal("the mapping does not show the span")
			}
			if _, err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := s.Version()
			if done, err := d.Flush(t.Context()); err != nil || done.Version != before {
				t.Fatalf("a flush of nothing committed version %d after %d (%v)", done.Version, before, err)
			}
			p[block+5] ^= 0xff
			done, err := d.Flush(t.Context())
			if err != nil || done.Version != before+1 || !done.Holders.Has(where) {
				t.Fatalf("flush: %+v, %v", done, err)
			}
			if got := read(t, s, block+5, 1)[0]; got != p[block+5] {
				t.Fatal("the store is not read back")
			}
			// A write by others shows in the mapping, and is no change of its own.
			write(t, s, 7, []byte("others"))
			if string(p[7:13]) != "others" {
				t.Fatal("a write does not show in the mapping")
			}
			p[2*block] ^= 0xff
			if _, err := d.Close(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			stat, _ := s.Stat()
			if stat.Unclean == 0 || stat.Direct != 0 {
				t.Fatalf("after the writer died: %+v", stat)
			}
			if got := read(t, s, 2*block, 1)[0]; got != p[2*block] {
				t.Fatal("a dead writer's store is lost")
			}
		})
	}
}

// A peer that is handed the memory cannot shrink it under the daemon.
func TestDirectMappingCannotBeTruncated(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.Host})
	d, err := s.MapDirect(t.Context(), 0, block, true, nothing)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := d.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(0); err == nil {
		t.Fatal("the memory can be truncated")
	}
}
