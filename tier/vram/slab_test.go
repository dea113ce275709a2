// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/tier"
)

func TestOrderOf(t *testing.T) {
	for n, want := range map[int64]uint8{1: 0, 4096: 0, 4097: 1, 8192: 1, 8193: 2, 70_001: 5, 512 << 10: 7, 512<<10 + 1: 8, 1 << 20: 8} {
		if got := orderOf(n); got != want || slotMin<<got < n {
			t.Errorf("orderOf(%d) = %d, want %d", n, got, want)
		}
	}
}

func TestSlabSizeFor(t *testing.T) {
	for budget, want := range map[int64]int64{1: 1 << 20, 16 << 20: 1 << 20, 40 << 20: 2 << 20, 1 << 30: 64 << 20, 100 << 30: 64 << 20} {
		if got := slabSizeFor(budget); got != want {
			t.Errorf("slabSizeFor(%d) = %d, want %d", budget, got, want)
		}
	}
}

// TestSlab takes and frees slots at random: none overlap, none leave the slab,
// one is found whenever an aligned free range of its size exists.
func TestSlab(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		units := rapid.IntRange(1, 5).Draw(t, "MiB")
		s := newSlab(1, 0, int64(units)*slabUnit)
		taken := make([]bool, units*slabUnit/slotMin)
		type held struct {
			unit  uint32
			order uint8
		}
		var slots []held
		room := func(order uint8) bool {
			for at := 0; at+1<<order <= len(taken); at += 1 << order {
				free := true
				for _, used := range taken[at : at+1<<order] {
					free = free && !used
				}
				if free {
					return true
				}
			}
			return false
		}
		mark := func(h held, to bool) {
			for i := range uint32(1) << h.order {
				if taken[h.unit+i] == to {
					t.Fatalf("unit %d of slot %+v was already so", h.unit+i, h)
				}
				taken[h.unit+i] = to
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				order := rapid.Uint8Range(0, orderOf(tier.BlockSize)).Draw(t, "order")
				if got := s.fits(order); got != room(order) {
					t.Fatalf("fits(%d) = %v", order, got)
				} else if !got {
					t.Skip("full")
				}
				h := held{s.alloc(order), order}
				if h.unit%(1<<order) != 0 {
					t.Fatalf("slot %+v is not aligned to its size", h)
				}
				mark(h, true)
				slots = append(slots, h)
			},
			"free": func(t *rapid.T) {
				if len(slots) == 0 {
					t.Skip("empty")
				}
				i := rapid.IntRange(0, len(slots)-1).Draw(t, "slot")
				s.free(slots[i].unit, slots[i].order)
				mark(slots[i], false)
				slots = append(slots[:i], slots[i+1:]...)
			},
			"": func(t *rapid.T) {
				used := int64(0)
				for _, h := range slots {
					used += slotMin << h.order
				}
				if s.used != used {
					t.Fatalf("%d bytes used, want %d", s.used, used)
				}
			},
		})
		for _, h := range slots {
			s.free(h.unit, h.order)
		}
		for range units {
			if !s.fits(orderOf(tier.BlockSize)) {
				t.Fatal("the freed slab does not hold its blocks again")
			}
			s.alloc(orderOf(tier.BlockSize))
		}
	})
}

// TestSplitFill carries out the parts on bytes and compares with the meaning.
func TestSplitFill(t *testing.T) {
	const pattern = 0x44332211
	for off := range int64(9) {
		for n := int64(1); n < 23; n++ {
			got, want := make([]byte, 40), make([]byte, 40)
			for i := range n {
				want[off+i] = byte(0x11 * (1 + i%4))
			}
			f := splitFill(off, n, pattern)
			if f.off%4 != 0 && f.n > 0 || f.n%4 != 0 || f.head > 3 || int64(len(f.edges))-f.head > 3 {
				t.Fatalf("fill [%d, +%d): %+v", off, n, f)
			}
			for at := f.off; at < f.off+f.n; at += 4 {
				binary.LittleEndian.PutUint32(got[at:], f.word)
			}
			copy(got[off:], f.edges[:f.head])
			copy(got[f.off+f.n:], f.edges[f.head:])
			if !bytes.Equal(got, want) {
				t.Fatalf("fill [%d, +%d): % x, want % x", off, n, got, want)
			}
		}
	}
}

func TestAtoms(t *testing.T) {
	for _, c := range [][5]int64{ // off, n, size -> from, to
		{0, 64, 4096, 0, 64}, {1, 1, 4096, 0, 64}, {63, 2, 4096, 0, 128}, {64, 64, 4096, 64, 128}, {100, 4000, 4100, 64, 4100},
	} {
		if from, to := atoms(c[0], c[1], 64, c[2]); from != c[3] || to != c[4] {
			t.Errorf("atoms of [%d, +%d) of %d: [%d, %d), want [%d, %d)", c[0], c[1], c[2], from, to, c[3], c[4])
		}
	}
}

func FuzzRequest(f *testing.F) {
	r := request{id: 1, op: opRead, arg: 2, slab: 3, other: 4, off: 5, otherOff: 6, n: 7, payload: 8}
	f.Add(r.append(nil))
	f.Add(bytes.Repeat([]byte{0xff}, requestSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < requestSize {
			return
		}
		var r request
		if r.parse(b) != nil {
			return
		}
		if r.payload > maxPayload {
			t.Fatalf("payload of %d", r.payload)
		}
		if got := r.append(nil); !bytes.Equal(got[:requestSize-4], b[:requestSize-4]) {
			t.Fatalf("% x became % x", b, got)
		}
	})
}

func FuzzReply(f *testing.F) {
	r := reply{id: 1, status: statusFull, payload: 2, submits: 3, flushes: 4}
	f.Add(r.append(nil))
	f.Add(bytes.Repeat([]byte{0xff}, replySize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < replySize {
			return
		}
		var r reply
		if r.parse(b) != nil {
			return
		}
		if r.payload > maxPayload || r.status > statusFull {
			t.Fatalf("%+v", r)
		}
		if got := r.append(nil); !bytes.Equal(got, b[:replySize]) {
			t.Fatalf("% x became % x", b, got)
		}
	})
}
