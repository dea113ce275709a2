// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire/control"
)

func FuzzState(f *testing.F) {
	p := partState{id: surface.ID{1}, boot: surface.Machine{2}, chunk: 1 << 20, window: window{off: 5 << 20, end: 9 << 20}, have: bitset{base: 5}}
	f.Add(p.append(nil))
	p.have.set(7)
	p.root = &surface.Digest{3}
	f.Add(p.append(nil))
	f.Add([]byte(stateMagic))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parseState(text)
		if err != nil {
			if !errors.Is(err, errState) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(p.append(nil), text) {
			t.Fatal("reads back otherwise")
		}
	})
}

func TestStateSums(t *testing.T) {
	p := partState{chunk: 1 << 20, window: window{off: 0, end: 9 << 20}}
	p.have.set(70)
	text := p.append(nil)
	for i := range text {
		bad := bytes.Clone(text)
		bad[i] ^= 4
		if _, err := parseState(bad); !errors.Is(err, errState) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, err := parseState(text[:i]); !errors.Is(err, errState) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if got, err := parseState(text); err != nil || !got.have.has(70) || got.have.has(69) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Sets of chunks, against a map.
func TestSets(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const n = 300
		base := rapid.Int64Range(0, 100).Draw(rt, "base")
		bits, runs, model := bitset{base: base}, ranges{}, make(map[int64]bool)
		steps := rapid.SliceOf(rapid.Custom(func(rt *rapid.T) control.ChunkRun {
			return control.ChunkRun{First: rapid.Int64Range(base, n).Draw(rt, "first"), Count: rapid.Int64Range(0, 30).Draw(rt, "count")}
		})).Draw(rt, "steps")
		for _, step := range steps {
			runs.add(step)
			for i := step.First; i < step.First+step.Count; i++ {
				bits.set(i)
				model[i] = true
			}
		}
		for i := base; i < n+40; i++ {
			if bits.has(i) != model[i] || runs.holds(i, i+1) != model[i] {
				rt.Fatalf("chunk %d: %v, %v, want %v", i, bits.has(i), runs.holds(i, i+1), model[i])
			}
			next := i
			for model[next] {
				next++
			}
			if got := bits.nextClear(i); got != next {
				rt.Fatalf("from %d: %d is clear, want %d", i, got, next)
			}
			if got := runs.from(i); model[i] && got != (span{i, next}) {
				rt.Fatalf("from %d: %v, want up to %d", i, got, next)
			}
		}
		if !slices.IsSortedFunc(runs, func(a, b span) int { return int(a.end - b.first) }) {
			rt.Fatalf("%v", runs)
		}
	})
}
