// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"testing"

	"github.com/memspan/memspan"
)

func TestAdvise(t *testing.T) {
	each(t, func(t *testing.T, c, other *memspan.Client) {
		const mib = 1 << 20
		s := alloc(t, c, 3*mib)
		if _, err := s.WriteAt(t.Context(), []byte("here"), mib); err != nil {
			t.Fatal(err)
		}
		theirs, err := other.Open(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		// What one client pins stays when it has gone.
		done, err := theirs.Advise(t.Context(), memspan.Advice{Do: memspan.AdvisePin, Tier: memspan.Host, Range: memspan.Range{Offset: mib + 1, Length: mib}})
		if err != nil || done.Blocks != 2 || done.Changed != 2 || done.Bytes != 2*mib || done.There != 0 {
			t.Errorf("%+v, %v", done, err)
		}
		other.Close()
		st, err := s.Stat(t.Context())
		want := memspan.TierStat{Current: 3, Bytes: 3 * mib, Highest: 1, Pinned: 2}
		if err != nil || st.Tiers["host"] != want {
			t.Errorf("%+v, %v; want %+v", st.Tiers["host"], err, want)
		}
		done, err = s.Advise(t.Context(), memspan.Advice{Do: memspan.AdviseEvict, Tier: memspan.Host})
		if err != nil || done.Changed != 1 || len(done.Skipped) != 1 || done.Skipped[0].Code != memspan.ErrPinned.String() ||
			done.Skipped[0].First != 1 || done.Skipped[0].Blocks != 2 || done.Skipped[0].Message == "" {
			t.Errorf("%+v, %v", done, err)
		}
		done, err = s.Advise(t.Context(), memspan.Advice{Do: memspan.AdvisePrefer, Tier: memspan.Host})
		if err != nil || done.Was == nil || *done.Was != memspan.Host {
			t.Errorf("%+v, %v", done, err)
		}
		for _, test := range []struct {
			advice memspan.Advice
			want   memspan.Code
		}{
			{memspan.Advice{Do: memspan.AdvisePrefetch, Tier: memspan.VRAM}, memspan.ErrTierAbsent},
			{memspan.Advice{Do: memspan.AdvisePrefer, Tier: memspan.Disk}, memspan.ErrTierAbsent},
			{memspan.Advice{Do: memspan.AdvisePrefer, Tier: memspan.Host, Range: memspan.Range{Length: 1}}, memspan.ErrInvalid},
			{memspan.Advice{Do: "hurry", Tier: memspan.Host}, memspan.ErrInvalid},
			{memspan.Advice{Do: memspan.AdvisePin, Tier: memspan.Host, Range: memspan.Range{Offset: 3 * mib, Length: 1}}, memspan.ErrOutOfRange},
			{memspan.Advice{Do: memspan.AdvisePin, Tier: memspan.Host, Range: memspan.Range{Offset: 1}}, memspan.ErrOutOfRange},
		} {
			if _, err := s.Advise(t.Context(), test.advice); !errors.Is(err, test.want) {
				t.Errorf("%+v: %v, want %v", test.advice, err, test.want)
			}
		}
	})
}

// Bytes that will be needed are brought before they are; what was moved is said.
func ExampleSpan_Advise() {
	ctx := context.Background()
	_, s, done := newSpan(ctx, 4<<20)
	defer done()
	advised, err := s.Advise(ctx, memspan.Advice{Do: memspan.AdvisePin, Tier: memspan.Host})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d of %d blocks pinned, %d copies made\n", advised.Changed, advised.Blocks, len(advised.Moved))
	// Output: 4 of 4 blocks pinned, 0 copies made
}
