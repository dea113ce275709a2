// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"os"
	"testing"

	"github.com/memspan/memspan"
)

// However many mappings there are, neither the client nor the server, which are
// both in this process, keeps descriptors for them.
func TestMappingsTakeNoDescriptors(t *testing.T) {
	files := func() int {
		t.Helper()
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	eachMapping(t, func(t *testing.T, c, _ *memspan.Client, mode memspan.Mode) {
		const piece, pieces = 5000, 1000
		const few = 8 // that connections take when they wait, and give back
		s := alloc(t, c, piece*pieces)
		want := make([]byte, s.Size())
		store := func(first, last int) { // all of them mapped at a time
			t.Helper()
			var all []*memspan.Mapping
			before := files()
			for i := first; i < last; i++ {
				m := mapRange(t, s, int64(i*piece), piece, memspan.ReadWrite|mode)
				all = append(all, m)
				pattern(m.Bytes(), uint64(i))
				copy(want[i*piece:], m.Bytes())
			}
			if n := files(); last-first > 1 && n > before+few {
				t.Errorf("%d descriptors with %d mappings, %d before", n, last-first, before)
			}
			for _, m := range all {
				// A flush against a base of many commits ago is a conflict.
				if err := m.Invalidate(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := m.Unmap(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		store(0, 1) // the first has the client and the server take what they need
		before := files()
		store(0, pieces)
		if n := files(); n > before+few {
			t.Errorf("%d descriptors, %d before there were %d mappings", n, before, pieces)
		}
		if string(contents(t, s)) != string(want) {
			t.Error("the span holds something else than was stored")
		}
	})
}
