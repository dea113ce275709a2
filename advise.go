// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"

	"github.com/memspan/memspan/wire/control"
)

// An AdviceKind says what is to become of a tier's copies of a span's blocks.
type AdviceKind = control.Advice

// The kinds of advice, which are CUDA's for unified memory: AdvisePrefetch is
// cudaMemPrefetchAsync, waited for; AdvisePrefer and AdvisePin on the same tier
// together are cudaMemAdviseSetPreferredLocation.
const (
	AdvisePrefetch = control.AdvicePrefetch // make them current: reads and work there find them in place
	AdviseEvict    = control.AdviceEvict    // take them away, written back first if they are the last
	AdvisePin      = control.AdvicePin      // prefetch, and keep them there
	AdviseUnpin    = control.AdviceUnpin    // they may be evicted again
	AdvisePrefer   = control.AdvicePrefer   // let writes go there from now on; moves nothing
)

// An Advice is a wish about where a span's bytes are.
type Advice struct {
	Do   AdviceKind
	Tier Tier
	// Range is bytes of the span; each block that it touches is meant. The
	// zero Range is the whole span. AdvisePrefer takes no other.
	Range Range
}

// Advised is what an advice came to: the copies that were planned and made, and
// the blocks that were skipped.
type Advised = control.Advised

// A Move is copies of blocks from one tier to another.
type Move = control.Move

// A Skip is blocks that an advice left as they were, for one reason.
type Skip = control.Skip

// Advise follows an advice, and returns when that is done. Blocks that are
// pinned, lost or the last copy are skipped: the answer says how many, and why. So
// are those that were brought and had to leave again for others.
//
// A block is pinned on a tier until AdviseUnpin, or until the span is freed,
// however often that is asked and whatever becomes of this client.
//
// It fails with ErrTierAbsent, with ErrOutOfRange, with ErrInvalid for an
// eviction from Disk if that is the span's home, and with ErrBudget if the tier
// cannot take a block; what was done by then stays.
func (s *Span) Advise(ctx context.Context, a Advice) (Advised, error) {
	op, off, n := string(a.Do), a.Range.Offset, a.Range.Length
	if err := s.checkRange(off, n); err != nil {
		return Advised{}, s.failed(op, off, n, err)
	}
	done, err := askSpan[Advised](ctx, s, control.OpAdvise, control.Advise{
		Handle: s.handle, Advice: a.Do, Tier: a.Tier, Offset: off, Length: n,
	})
	return done, s.failed(op, off, n, err)
}
