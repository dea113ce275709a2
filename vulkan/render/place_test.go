// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

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
