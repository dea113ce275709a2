// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import "testing"

// A delta is full before a frame is, and holds nothing after reset.
func TestDeltaIsBounded(t *testing.T) {
	var d delta
	image := make([]byte, comparedPage)
	memory := make([]byte, comparedPage)
	for i := range memory {
		memory[i] = 1
	}
	pages := 0
	for ; !d.full(); pages++ {
		clear(image)
		d.compare(uint64(pages)*comparedPage, memory, image)
	}
	if len(d.data) > deltaLimit || len(d.data) != pages*comparedPage || len(d.runs) != 1 {
		t.Errorf("%d bytes in %d runs of %d pages", len(d.data), len(d.runs), pages)
	}
	if d.reset(); d.full() || len(d.runs) != 0 {
		t.Error("reset left something")
	}
}
