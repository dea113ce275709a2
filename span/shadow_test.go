// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
)

// Flushes that changed different bytes both survive, in one page too; the same
// bytes conflict, and the later base wins.
func TestFlushMergesByByte(t *testing.T) {
	st := newStore(t)
	for _, where := range tiers {
		t.Run(where.String(), func(t *testing.T) {
			s := alloc(t, st, span.Info{Size: block, Tier: where, Home: where})
			write(t, s, 0, bytes.Repeat([]byte{1}, block))
			mine, others := openShadow(t, s), openShadow(t, s)
			const base = 1
			flushBy := func(sh *span.Shadow, base uint64, p string, runs ...span.Run) error {
				_, err := sh.Flush(t.Context(), 0, base, runs, memory(t, []byte(p)), false)
				return err
			}
			flush := func(base uint64, p string, runs ...span.Run) error { return flushBy(others, base, p, runs...) }
			for range 2 { // one's own commits are no conflict, whatever the base
				if err := flushBy(mine, base, "AA", span.Run{Offset: 10, Length: 1}, span.Run{Offset: 12, Length: 1}); err != nil {
					t.Fatal(err)
				}
			}
			if err := flush(base, "B", span.Run{Offset: 11, Length: 1}); err != nil {
				t.Fatalf("flush of a neighbouring byte: %v", err)
			}
			if err := flush(base, "C", span.Run{Offset: 12, Length: 1}); !errors.Is(err, coherency.ErrConflict) {
				t.Fatalf("flush of a changed byte: %v, want a conflict", err)
			}
			if got := string(read(t, s, 9, 5)); got != "\x01ABA\x01" {
				t.Fatalf("bytes are %q", got)
			}
			if err := flush(4, "C", span.Run{Offset: 12, Length: 1}); err != nil {
				t.Fatalf("flush based on the newest version: %v", err)
			}
			if err := flush(span.AnyVersion, "D", span.Run{Offset: 12, Length: 1}); err != nil {
				t.Fatalf("flush of the last writer: %v", err)
			}
			if err := flush(99, "E", span.Run{Offset: 12, Length: 1}); !errors.Is(err, coherency.ErrConflict) {
				t.Fatalf("flush based on a version to come: %v", err)
			}
			many := make([]span.Run, 100)
			for i := range many {
				many[i] = span.Run{Offset: uint32(100 + 3*i), Length: 2}
			}
			if err := flush(span.AnyVersion, string(bytes.Repeat([]byte("xy"), 100)), many...); err != nil {
				t.Fatal(err)
			}
			if got, want := read(t, s, 100, 299), bytes.Repeat([]byte("xy\x01"), 100)[:299]; !bytes.Equal(got, want) {
				t.Fatal("a flush of many runs went wrong")
			}
		})
	}
}

// However many commits and runs there are, a conflict is never missed.
func TestHistoryNeverMissesAConflict(t *testing.T) {
	st := newStore(t)
	type commit struct {
		author int
		bytes  [64]bool
	}
	rapid.Check(t, func(rt *rapid.T) {
		s := alloc(t, st, span.Info{Size: 64, Tier: coherency.Host, Home: coherency.Host})
		defer s.Free()
		shadows := []*span.Shadow{openShadow(t, s), openShadow(t, s), openShadow(t, s)}
		commits := []commit{{}} // by version
		for range rapid.IntRange(1, 100).Draw(rt, "flushes") {
			author := rapid.IntRange(0, len(shadows)-1).Draw(rt, "author")
			base := uint64(rapid.IntRange(0, len(commits)-1).Draw(rt, "base"))
			off := rapid.IntRange(0, 63).Draw(rt, "off")
			n := rapid.IntRange(1, 64-off).Draw(rt, "n")
			clash := false
			for _, c := range commits[base+1:] {
				for i := off; i < off+n; i++ {
					clash = clash || c.author != author && c.bytes[i]
				}
			}
			runs := []span.Run{{Offset: uint32(off), Length: uint32(n)}}
			_, err := shadows[author].Flush(t.Context(), 0, base, runs, memory(t, make([]byte, n)), false)
			if clash && !errors.Is(err, coherency.ErrConflict) {
				rt.Fatalf("flush of [%d, +%d) based on %d: %v, want a conflict", off, n, base, err)
			}
			if recent := len(commits) < 30; !clash && recent && err != nil {
				rt.Fatalf("flush of [%d, +%d) based on %d of %d: %v", off, n, base, len(commits)-1, err)
			}
			if err == nil {
				c := commit{author: author}
				for i := off; i < off+n; i++ {
					c.bytes[i] = true
				}
				commits = append(commits, c)
			}
		}
	})
}

// However often two mappings flush their own bytes, neither ever conflicts,
// though neither takes in what the other does.
func TestOwnBytesNeverConflict(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 64, Tier: coherency.Host, Home: coherency.Host})
	shadows := []*span.Shadow{openShadow(t, s), openShadow(t, s)}
	for round := range 100 {
		for i, sh := range shadows {
			runs := []span.Run{{Offset: uint32(i + 2*(round%10)), Length: 1}}
			if _, err := sh.Flush(t.Context(), 0, 0, runs, memory(t, []byte{byte(round)}), false); err != nil {
				t.Fatalf("round %d, mapping %d: %v", round, i, err)
			}
		}
	}
}
