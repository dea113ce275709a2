// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/memspan/memspan"
)

// Working sets four times as large as the device's and RAM's budgets keep their
// bytes, wherever they belong, and the budgets are kept.
func TestWorkingSetBeyondBudgets(t *testing.T) {
	t.Parallel()
	const budget = 16 * block
	for _, c := range []struct {
		name       string
		tier, home memspan.Tier
		vram       bool
	}{
		{"host", memspan.Host, memspan.Host, false},
		{"host, home disk", memspan.Host, memspan.Disk, false},
		{"vram, home host", memspan.VRAM, memspan.Host, true},
		{"vram, home disk", memspan.VRAM, memspan.Disk, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := start(t, settings{VRAM: c.vram, VRAMBudget: budget, HostBudget: budget, Data: t.TempDir()})
			client := d.dial(t, "unix")
			s, err := client.Alloc(t.Context(), memspan.SpanConfig{
				Name: "s", Size: 4*budget + 100, Tier: memspan.On(c.tier), Home: memspan.On(c.home),
			})
			check(t, err)
			want := make([]byte, s.Size())
			r := rand.New(rand.NewPCG(uint64(len(c.name)), 5))
			for range 30 {
				off := r.IntN(len(want))
				p := make([]byte, 1+r.IntN(min(6*block, len(want)-off)))
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				if r.IntN(3) > 0 {
					_, err := s.WriteAt(t.Context(), p, int64(off))
					check(t, err)
					copy(want[off:], p)
					continue
				}
				_, err := s.ReadAt(t.Context(), p, int64(off))
				check(t, err)
				if !bytes.Equal(p, want[off:off+len(p)]) {
					t.Fatalf("[%d, +%d): other bytes", off, len(p))
				}
			}
			got := make([]byte, len(want))
			_, err = s.ReadAt(t.Context(), got, 0)
			check(t, err)
			if !bytes.Equal(got, want) {
				t.Error("other bytes")
			}
			st, err := client.Stats(t.Context())
			check(t, err)
			for _, tier := range []memspan.Tier{memspan.Host, memspan.VRAM} {
				if b := st.Budgets[tier.String()]; b.Used > budget {
					t.Errorf("%v has taken %d bytes", tier, b.Used)
				}
			}
		})
	}
}
