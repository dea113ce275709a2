// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What is written to an image is written to the memories of all its planes,
// whichever of them can be mapped, and in whatever order they end.
func TestPlanes(t *testing.T) {
	d := new(device)
	memory := func(visible bool) *deviceMemory {
		m := &deviceMemory{device: d, size: 4096, visible: visible, held: new(int64)}
		d.remember(m)
		return m
	}
	written := func(i *image) []write {
		s := &submission{facts: []*facts{{written: []target{{&i.place, span{0, wholeSize}}}}}}
		new(renderer).plan(d, s)
		return s.writes
	}
	one, two, hidden := memory(true), memory(true), memory(false)
	for _, c := range []struct {
		planes []*deviceMemory
		want   []*deviceMemory
	}{
		{[]*deviceMemory{one, two}, []*deviceMemory{one, two}},
		{[]*deviceMemory{one, two, one}, []*deviceMemory{one, two}},
		{[]*deviceMemory{hidden, two}, []*deviceMemory{two}},
		{[]*deviceMemory{one, hidden}, []*deviceMemory{one}},
		{[]*deviceMemory{one, one, one, one, two}, []*deviceMemory{one}}, // no image has so many
	} {
		i := &image{disjoint: true}
		for n, m := range c.planes {
			i.bindPlane(m, uint64(n)*512)
		}
		var got []*deviceMemory
		for _, w := range written(i) {
			got = append(got, w.memory)
			if first := uint64(slices.Index(c.planes, w.memory)) * 512; !slices.Equal(w.spans, []span{{first, 4096}}) {
				t.Errorf("%v of a memory bound at %d", w.spans, first)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d planes are in %d memories, want %d", len(c.planes), len(got), len(c.want))
		}
		i.dropped()
		if n := len(one.places) + len(two.places); n != 0 || len(written(i)) != 0 {
			t.Errorf("%d places are left", n)
		}
	}
	i := &image{disjoint: true}
	i.bindPlane(one, 0)
	i.bindPlane(two, 0)
	one.dropped()
	i.dropped()
	if n := len(two.places); n != 0 {
		t.Errorf("%d places are left of an image whose first memory ended before it", n)
	}
}

// Spans are what a set of bytes says.
func TestSpans(t *testing.T) {
	const size = 40
	list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) span {
		off := rapid.Uint64Range(0, size).Draw(t, "off")
		return span{off, rapid.Uint64Range(off, size).Draw(t, "end")}
	}), 0, 8)
	set := func(list []span) (b [size]bool) {
		for _, s := range list {
			for i := s.off; i < s.end; i++ {
				b[i] = true
			}
		}
		return b
	}
	rapid.Check(t, func(t *rapid.T) {
		drawn, others := list.Draw(t, "list"), normalize(list.Draw(t, "others"))
		want := set(drawn)
		got := normalize(slices.Clone(drawn))
		if set(got) != want {
			t.Fatalf("%v became %v", drawn, got)
		}
		for i, s := range got {
			if s.off >= s.end || i > 0 && got[i-1].end >= s.off {
				t.Fatalf("%v is not normalized", got)
			}
		}
		var rest []span
		eachOther(size, got, func(s span) { rest = append(rest, s) })
		covered, other := true, set(others)
		for i, is := range set(rest) {
			if is == want[i] {
				t.Fatalf("the rest of %v is %v", got, rest)
			}
			covered = covered && (!want[i] || other[i])
		}
		if covers(others, got) != covered {
			t.Fatalf("%v covers %v: not %v", others, got, covered)
		}
	})
}
