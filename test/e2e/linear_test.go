// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan"
)

// An op is a write or a read of a whole block, with the moments between which
// it took place.
type op struct {
	block      int
	value      uint64
	write      bool
	start, end int64
}

// Whole blocks written and read by many clients at once are what one after the
// other would make of them: a read returns one write, whole, that had begun
// and that no other had surely replaced.
func TestBlocksAreLinearizable(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	for _, tier := range []memspan.Tier{memspan.Host, memspan.VRAM} {
		const nblocks, length, each = 2, block + 5000, 60 // the second block is short
		s := alloc(t, d.dial(t, "unix"), memspan.SpanConfig{Size: length, Tier: memspan.On(tier)})
		var clock, value atomic.Int64
		var mu sync.Mutex
		var history []op
		var work sync.WaitGroup
		for i := range 6 {
			o := open(t, d.dial(t, transports[i%3]), s)
			r := rand.New(rand.NewPCG(uint64(i), 11))
			work.Go(func() {
				for range each {
					op := op{block: r.IntN(nblocks), write: r.IntN(2) == 0}
					p := make([]byte, min(block, length-op.block*block))
					off := int64(op.block) * block
					if op.write {
						op.value = uint64(value.Add(1))
						for at := 0; at < len(p); at += 8 {
							binary.LittleEndian.PutUint64(p[at:], op.value)
						}
						op.start = clock.Add(1)
						if _, err := o.WriteAt(t.Context(), p, off); err != nil {
							t.Error(err)
							return
						}
					} else {
						op.start = clock.Add(1)
						if _, err := o.ReadAt(t.Context(), p, off); err != nil {
							t.Error(err)
							return
						}
						op.value = binary.LittleEndian.Uint64(p)
						if !bytes.Equal(p[8:], p[:len(p)-8]) {
							t.Errorf("%v: a read of block %d is a mixture", tier, op.block)
						}
					}
					op.end = clock.Add(1)
					mu.Lock()
					history = append(history, op)
					mu.Unlock()
				}
			})
		}
		work.Wait()
		linear(t, history)
	}
}

// linear checks a history of registers of which each value was written once.
func linear(t *testing.T, history []op) {
	t.Helper()
	type register struct {
		block int
		value uint64
	}
	writes := make(map[register]op)
	for b := range 2 {
		writes[register{b, 0}] = op{block: b} // zeros, before all else
	}
	reads := 0
	for _, o := range history {
		if o.write {
			writes[register{o.block, o.value}] = o
		} else {
			reads++
		}
	}
	for _, r := range history {
		if r.write {
			continue
		}
		w, ok := writes[register{r.block, r.value}]
		if !ok || w.start > r.end {
			t.Errorf("a read of block %d returned %d, which was not written", r.block, r.value)
			continue
		}
		for _, o := range history {
			if o.block != r.block || o.end >= r.start {
				continue
			}
			// o was over when r began. If o was, or saw, a write that began
			// after w was over, then r is too old.
			seen := o
			if !o.write {
				seen = writes[register{o.block, o.value}]
			}
			if seen.start > w.end {
				t.Errorf("a read of block %d in [%d, %d] returned %d, over at %d, but %d, begun at %d, was there by %d",
					r.block, r.start, r.end, r.value, w.end, seen.value, seen.start, o.end)
			}
		}
	}
	if reads == 0 || len(writes) < 3 {
		t.Error("nothing was tested")
	}
}
