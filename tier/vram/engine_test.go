// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
)

// TestUncached makes the engine take its memory for what a discrete GPU offers
// through a large window: the CPU writes it in place and reads it by staging.
func TestUncached(t *testing.T) {
	e, err := openEngine(openRequest{})
	needVulkan(t, err)
	defer e.close()
	e.choice.kinds[0].Cached = false
	r, err := memfd.Create("uncached", 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", r.File().Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.addRegion(1, file, r.Size()); err != nil {
		t.Fatal(err)
	}
	if err := e.addSlab(1, 0, 4<<20); err != nil {
		t.Fatal(err)
	}
	const n = 1<<20 + 12345
	src, dst := r.Bytes()[3:3+n], r.Bytes()[2<<20:2<<20+n]
	for i := range src {
		src[i] = byte(i>>8) ^ byte(i)
	}
	if err := e.write(&request{slab: 1, off: 77, other: 1, otherOff: 3, n: n}); err != nil {
		t.Fatal(err)
	}
	if got := e.queue.submits.Load(); got != 0 {
		t.Errorf("%d submissions for a write in place", got)
	}
	if err := e.read(&request{slab: 1, off: 77, other: 1, otherOff: 2 << 20, n: n}); err != nil {
		t.Fatal(err)
	}
	if got := e.queue.submits.Load(); got == 0 {
		t.Error("no submission for a read by staging")
	}
	if !bytes.Equal(src, dst) {
		t.Error("other bytes came back")
	}
}

// TestEngineRefuses asks for what is not there.
func TestEngineRefuses(t *testing.T) {
	e, err := openEngine(openRequest{})
	needVulkan(t, err)
	defer e.close()
	if err := e.addSlab(1, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"slab of no kind":      e.addSlab(2, 9, 1<<20),
		"slab of no size":      e.addSlab(2, 0, 0),
		"slab of great size":   e.addSlab(2, 0, slabSize+1),
		"fill of no slab":      e.fill(&request{slab: 7, n: 4}),
		"fill past the end":    e.fill(&request{slab: 1, off: 1<<20 - 3, n: 4}),
		"fill before":          e.fill(&request{slab: 1, off: -4, n: 4}),
		"fill of a wrap":       e.fill(&request{slab: 1, off: 8, n: 1<<63 - 1}),
		"copy from no slab":    e.copy(&request{slab: 1, other: 7, n: 4}),
		"write from no region": e.write(&request{slab: 1, other: 7, n: 4}),
		"read to no region":    e.read(&request{slab: 1, other: 7, n: 4}),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	e.removeSlab(1)
	e.removeSlab(1)
	if err := e.fill(&request{slab: 1, n: 4}); err == nil {
		t.Error("fill of a removed slab: no error")
	}
	e.removeRegion(1)
}
