// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestDelta: whatever the device wrote, applying the delta to the client's
// bytes gives the device's, the image follows, and nothing but what lies near
// a change is sent.
func TestDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, comparedPage).Draw(t, "size")
		image := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "image")
		memory := slices.Clone(image)
		changed := 0
		for range rapid.IntRange(0, 20).Draw(t, "writes") {
			i := rapid.IntRange(0, n-1).Draw(t, "at")
			memory[i] ^= rapid.ByteRange(1, 255).Draw(t, "flip")
			changed++
		}
		client := slices.Clone(image)
		const off = 3 * comparedPage
		var d delta
		d.compare(off, memory, image)
		if !bytes.Equal(image, memory) {
			t.Fatal("the image does not hold what the memory held")
		}
		data := d.data
		end := uint64(off)
		for _, r := range d.runs {
			if r.Offset < end || r.Offset+uint64(r.Length) > off+uint64(n) || r.Length == 0 {
				t.Fatalf("runs %v in a memory of %d bytes", d.runs, n)
			}
			end = r.Offset + uint64(r.Length)
			for _, x := range data[:r.Length] {
				client[r.Offset-off] ^= x
				r.Offset++
			}
			data = data[r.Length:]
		}
		if len(data) != 0 || !bytes.Equal(client, memory) {
			t.Fatalf("the delta does not lead to the device's bytes (%d bytes left over)", len(data))
		}
		if most := changed * (8 + deltaGap); len(d.data) > most {
			t.Fatalf("%d bytes sent for %d changed", len(d.data), changed)
		}
	})
}
