// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What is taken out of a chain is not in it, and the rest is as it was.
func TestUnchain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		types := rapid.SliceOfN(rapid.Uint32Range(1, 4), 0, 6).Draw(t, "types")
		all := make([][2]uint64, len(types)+1) // {sType, pNext}
		for i, sType := range types {
			all[i+1][0] = uint64(sType)
			all[i][1] = address(&all[i+1])
		}
		s := structure(address(&all[0]))
		s.unchain(2)
		var left []uint32
		for n := s.next(8); n != 0; n = n.next(8) {
			left = append(left, n.u32(0))
		}
		runtime.KeepAlive(all)
		want := slices.DeleteFunc(types, func(x uint32) bool { return x == 2 })
		if !slices.Equal(left, want) {
			t.Fatalf("%v is left, want %v", left, want)
		}
	})
}
