// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
)

var (
	fromHost = coherency.MaskOf(coherency.Host)
	fromVRAM = coherency.MaskOf(coherency.VRAM)
)

// advised checks what an advice came to, but for what it skipped.
func advised(t *testing.T, got span.Advised, there, changed int, moves ...span.Move) {
	t.Helper()
	if got.There != there || got.Changed != changed || !slices.Equal(got.Moved, moves) || !slices.Equal(got.Planned, moves) {
		t.Errorf("%+v; want %d blocks there, %d changed, planned and moved %+v", got, there, changed, moves)
	}
}

func skipped(t *testing.T, got span.Advised, reason error, first, blocks int) {
	t.Helper()
	if len(got.Skipped) != 1 || !errors.Is(got.Skipped[0].Err, reason) || got.Skipped[0].First != first || got.Skipped[0].Blocks != blocks {
		t.Errorf("skipped %+v; want %d blocks from %d on: %v", got.Skipped, blocks, first, reason)
	}
}

// follow calls one of the span's methods that follow an advice.
func follow(t *testing.T, f func(context.Context, coherency.Tier, int64, int64) (span.Advised, error), where coherency.Tier, off, n int64) span.Advised {
	t.Helper()
	got, err := f(t.Context(), where, off, n)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestPrefetch(t *testing.T) {
	st := newStore(t)
	size := int64(4*block + 5)
	s := alloc(t, st, span.Info{Size: size, Tier: coherency.Host, Home: coherency.Host})
	want := pattern(3*block, 1)
	write(t, s, 0, want)
	// The range touches blocks 1 to 4: two were written.
	got := follow(t, s.Prefetch, coherency.VRAM, 2*block-1, size-2*block+1)
	advised(t, got, 0, 4,
		span.Move{To: coherency.VRAM, Blocks: 2, Bytes: block + 5},
		span.Move{From: fromHost, To: coherency.VRAM, Blocks: 2, Bytes: 2 * block})
	if got.Blocks != 4 || got.Bytes != 3*block+5 {
		t.Errorf("%d blocks, %d bytes", got.Blocks, got.Bytes)
	}
	advised(t, follow(t, s.Prefetch, coherency.VRAM, 0, size), 4, 1, span.Move{From: fromHost, To: coherency.VRAM, Blocks: 1, Bytes: block})
	if state, _ := s.State(); state != coherency.Synced {
		t.Errorf("the span is %v", state)
	}
	if !bytes.Equal(read(t, s, 0, 3*block), want) {
		t.Error("the bytes changed")
	}
}

func TestEvict(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 3 * block, Tier: coherency.VRAM, Home: coherency.Host})
	want := pattern(2*block, 1)
	write(t, s, 0, want)
	before := st.dev.Usage().Used
	follow(t, s.Prefetch, coherency.Host, 0, block) // block 0 needs no writing back
	got := follow(t, s.Evict, coherency.VRAM, 0, 3*block)
	advised(t, got, 1, 2, span.Move{From: fromVRAM, To: coherency.Host, Blocks: 1, Bytes: block})
	if after := st.dev.Usage().Used; before-after != 2*block { // what was written
		t.Errorf("the device has %d bytes less, want %d", before-after, 2*block)
	}
	if !bytes.Equal(read(t, s, 0, 2*block), want) {
		t.Error("the bytes changed")
	}
	advised(t, follow(t, s.Evict, coherency.VRAM, 0, 3*block), 3, 0)
	// From home the last copy goes to the tier nearest to it.
	got = follow(t, s.Evict, coherency.Host, 0, block)
	advised(t, got, 0, 1, span.Move{From: fromHost, To: coherency.VRAM, Blocks: 1, Bytes: block})
	if !bytes.Equal(read(t, s, 0, 2*block), want) {
		t.Error("the bytes changed when home's copy was evicted")
	}
	write(t, s, 0, pattern(100, 3)) // to memory that has to be taken anew
}

func TestPin(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 4 * block, Tier: coherency.Host, Home: coherency.Host})
	write(t, s, 0, pattern(4*block, 1))
	brought := span.Move{From: fromHost, To: coherency.VRAM, Blocks: 2, Bytes: 2 * block}
	advised(t, follow(t, s.Pin, coherency.VRAM, block, 2*block), 0, 2, brought)
	advised(t, follow(t, s.Pin, coherency.VRAM, block, 2*block), 2, 0)
	follow(t, s.Prefetch, coherency.VRAM, 0, 4*block)

	got := follow(t, s.Evict, coherency.VRAM, 0, 4*block)
	advised(t, got, 0, 2)
	skipped(t, got, coherency.ErrPinned, 1, 2)
	if err := s.Release(t.Context()); !errors.Is(err, coherency.ErrPinned) {
		t.Errorf("release of what is pinned: %v", err)
	}

	// A pin keeps a copy, not its version.
	write(t, s, block, pattern(100, 2))
	stat, err := s.Stat()
	if err != nil || stat.Tiers[coherency.VRAM].Pinned != 2 || stat.Tiers[coherency.VRAM].Stale != 1 || stat.Tiers[coherency.Host].Pinned != 0 {
		t.Errorf("%+v, %v", stat.Tiers, err)
	}
	advised(t, follow(t, s.Pin, coherency.VRAM, block, 2*block), 1, 1, span.Move{From: fromHost, To: coherency.VRAM, Blocks: 1, Bytes: block})

	// Pinned twice is pinned once.
	advised(t, follow(t, s.Unpin, coherency.VRAM, 0, 4*block), 2, 2)
	advised(t, follow(t, s.Unpin, coherency.VRAM, 0, 4*block), 4, 0)
	advised(t, follow(t, s.Evict, coherency.VRAM, 0, 4*block), 2, 2)
}

// What a tier has of a span is told by block: versions, and what home lacks.
func TestStatOfTiers(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 3 * block, Tier: coherency.VRAM, Home: coherency.Host})
	write(t, s, 0, pattern(3*block, 1))
	follow(t, s.Prefetch, coherency.Host, 0, 2*block)
	for range 3 {
		write(t, s, block, pattern(100, 2)) // block 1 is at version 4
	}
	mapDirect(t, s, 0, 1)
	stat, err := s.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for where, want := range map[coherency.Tier]span.TierStat{
		coherency.VRAM: {Current: 3, Bytes: 3 * block, Lowest: 1, Highest: 4, Dirty: 2},
		coherency.Host: {Current: 1, Stale: 1, Bytes: 2 * block, Lowest: 1, Highest: 1, Debt: 2, Pinned: 1},
	} {
		if got := stat.Tiers[where]; got != want {
			t.Errorf("%v: %+v, want %+v", where, got, want)
		}
	}
}

// Pins outlive what they pinned, and are no reason to keep a span.
func TestPinsOutliveTheDevice(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.Host, Home: coherency.Host, Policy: coherency.WriteBack})
	write(t, s, 0, pattern(2*block, 1))
	follow(t, s.Pin, coherency.VRAM, 0, 2*block)
	st.Lose(coherency.VRAM)
	if stat, err := s.Stat(); err != nil || stat.Tiers[coherency.VRAM].Pinned != 2 || stat.Tiers[coherency.VRAM].Current != 0 {
		t.Errorf("after the device died: %+v, %v", stat.Tiers, err)
	}
	advised(t, follow(t, s.Pin, coherency.VRAM, 0, 2*block), 0, 2, span.Move{From: fromHost, To: coherency.VRAM, Blocks: 2, Bytes: 2 * block})
	if err := s.Free(); err != nil {
		t.Error(err)
	}
}

func TestEvictUnderAMapping(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 3 * block, Tier: coherency.VRAM, Home: coherency.VRAM})
	write(t, s, 0, pattern(3*block, 1))
	mapDirect(t, s, block, block)
	follow(t, s.Prefetch, coherency.Host, 0, block)
	got := follow(t, s.Evict, coherency.Host, 0, 3*block)
	advised(t, got, 1, 1)
	skipped(t, got, coherency.ErrPinned, 1, 1)
}

func TestAdviceOnLostBlocks(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.VRAM, Home: coherency.Host})
	write(t, s, 0, pattern(block, 1))
	follow(t, s.Prefetch, coherency.Host, 0, block)
	write(t, s, 0, pattern(block, 2))
	st.Lose(coherency.VRAM)
	for name, f := range map[string]func(context.Context, coherency.Tier, int64, int64) (span.Advised, error){"prefetch": s.Prefetch, "pin": s.Pin} {
		got := follow(t, f, coherency.VRAM, 0, block)
		if len(got.Planned) > 0 || len(got.Moved) > 0 {
			t.Errorf("%s of a lost block: %+v", name, got)
		}
		skipped(t, got, coherency.ErrDataLoss, 0, 1)
	}
	skipped(t, follow(t, s.Evict, coherency.Host, 0, block), coherency.ErrLastCopy, 0, 1)
}

func TestPrefer(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.Host, Home: coherency.Host})
	write(t, s, 0, pattern(block, 1))
	if was, err := s.Prefer(t.Context(), coherency.VRAM); err != nil || was != coherency.Host || s.Preferred() != coherency.VRAM {
		t.Fatalf("%v, %v, now %v", was, err, s.Preferred())
	}
	if stat, _ := s.Stat(); stat.Tiers[coherency.VRAM].Current != 0 {
		t.Error("it moved something")
	}
	write(t, s, 10, pattern(100, 2)) // a part: the rest is brought
	if state, _ := s.State(); state != coherency.DeviceDirty {
		t.Errorf("after a write: %v", state)
	}
	want := pattern(block, 1)
	copy(want[10:], pattern(100, 2))
	if !bytes.Equal(read(t, s, 0, block), want) {
		t.Error("the block differs")
	}
}

func TestAdviceIsRefused(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.Host})
	large := alloc(t, st, span.Info{Size: 70 * block, Tier: coherency.Host, Home: coherency.Host})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name string
		run  func() (span.Advised, error)
		want error
	}{
		{"range", func() (span.Advised, error) { return s.Prefetch(t.Context(), coherency.VRAM, 1, block) }, span.ErrRange},
		{"nothing", func() (span.Advised, error) { return s.Evict(t.Context(), coherency.VRAM, 0, 0) }, span.ErrRange},
		{"tier", func() (span.Advised, error) { return s.Pin(t.Context(), coherency.Disk, 0, block) }, tier.ErrAbsent},
		{"preferred tier", func() (span.Advised, error) {
			_, err := s.Prefer(t.Context(), coherency.Disk)
			return span.Advised{}, err
		}, tier.ErrAbsent},
		{"context", func() (span.Advised, error) { return s.Unpin(cancelled, coherency.VRAM, 0, block) }, context.Canceled},
		{"budget", func() (span.Advised, error) { return large.Prefetch(t.Context(), coherency.VRAM, 0, large.Size) }, tier.ErrBudget},
	} {
		_, err := test.run()
		var placed *span.Error
		if !errors.Is(err, test.want) || !errors.As(err, &placed) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if err := s.Free(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func(context.Context, coherency.Tier, int64, int64) (span.Advised, error){s.Prefetch, s.Pin, s.Unpin, s.Evict} {
		if _, err := f(t.Context(), coherency.VRAM, 0, block); !errors.Is(err, span.ErrFreed) {
			t.Errorf("of a freed span: %v", err)
		}
	}
	if _, err := s.Prefer(t.Context(), coherency.VRAM); !errors.Is(err, span.ErrFreed) {
		t.Errorf("of a freed span: %v", err)
	}
}

// Pins fill a tier and then no further; what is only prefetched leaves again for
// its own successors, and that is said.
func TestPinsFillTheTier(t *testing.T) {
	st := newStore(t)
	const budget = 64 // blocks
	s := alloc(t, st, span.Info{Size: (budget - 4) * block, Tier: coherency.Host, Home: coherency.Host})
	other := alloc(t, st, span.Info{Size: 10 * block, Tier: coherency.Host, Home: coherency.Host})
	write(t, other, 0, pattern(10*block, 1))
	follow(t, s.Pin, coherency.VRAM, 0, s.Size)

	got := follow(t, other.Prefetch, coherency.VRAM, 0, other.Size)
	left := 0
	for _, skip := range got.Skipped {
		if !errors.Is(skip.Err, tier.ErrBudget) {
			t.Errorf("skipped: %v", skip.Err)
		}
		left += skip.Blocks
	}
	if stat := statOf(t, other); stat.Tiers[coherency.VRAM].Current+left != 10 || left < 6 {
		t.Errorf("%d blocks there, %d left: %+v", stat.Tiers[coherency.VRAM].Current, left, got)
	}
	follow(t, other.Evict, coherency.VRAM, 0, other.Size)

	got, err := other.Pin(t.Context(), coherency.VRAM, 0, other.Size)
	if !errors.Is(err, tier.ErrBudget) || got.Changed != 4 || !strings.Contains(err.Error(), "4 of 10 blocks were done") {
		t.Errorf("%v, %+v", err, got)
	}
	if stat := statOf(t, s); stat.Tiers[coherency.VRAM].Pinned != budget-4 || stat.Tiers[coherency.VRAM].Current != budget-4 {
		t.Errorf("of what was pinned first there is: %+v", stat.Tiers[coherency.VRAM])
	}
}

// Whatever is advised, bytes stay what was written last, pinned copies stay
// where they are, and what was moved is what was planned.
func TestAdviceChangesNoBytes(t *testing.T) {
	const blocks = 3
	st := newStore(t)
	buf := memory(t, make([]byte, blocks*block)) // there is no cleanup between checks
	rapid.Check(t, func(rt *rapid.T) {
		s := alloc(t, st, span.Info{
			Size: blocks * block, Tier: rapid.SampledFrom(tiers).Draw(rt, "tier"), Home: rapid.SampledFrom(tiers).Draw(rt, "home"),
			Policy: rapid.SampledFrom([]coherency.WritePolicy{coherency.WriteBack, coherency.WriteThrough, coherency.WriteAll}).Draw(rt, "policy"),
		})
		var content [blocks]byte
		pinned := map[coherency.Tier]*[blocks]bool{coherency.Host: {}, coherency.VRAM: {}}
		ranged := func(rt *rapid.T) (where coherency.Tier, b, n int) {
			b = rapid.IntRange(0, blocks-1).Draw(rt, "block")
			return rapid.SampledFrom(tiers).Draw(rt, "where"), b, rapid.IntRange(1, blocks-b).Draw(rt, "blocks")
		}
		advise := func(rt *rapid.T, f func(context.Context, coherency.Tier, int64, int64) (span.Advised, error), where coherency.Tier, b, n int) span.Advised {
			got, err := f(t.Context(), where, int64(b)*block, int64(n)*block)
			skips := 0
			for _, skip := range got.Skipped {
				skips += skip.Blocks
			}
			if err != nil || got.Blocks != n || got.There+got.Changed+skips != n || !slices.Equal(got.Planned, got.Moved) {
				rt.Fatalf("%+v, %v", got, err)
			}
			return got
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				b, v := rapid.IntRange(0, blocks-1).Draw(rt, "block"), rapid.Byte().Draw(rt, "value")
				off, n := int64(0), int64(block)
				if v == content[b] { // a part of what it is already: the rest must be brought
					off, n = 100, 100
				}
				part := buf.Slice(0, n)
				memfd.Copy(part.Bytes(), bytes.Repeat([]byte{v}, int(n)))
				if _, err := s.Write(t.Context(), int64(b)*block+off, part, false); err != nil {
					rt.Fatal(err)
				}
				content[b] = v
			},
			"prefetch": func(rt *rapid.T) {
				where, b, n := ranged(rt)
				advise(rt, s.Prefetch, where, b, n)
			},
			"evict": func(rt *rapid.T) {
				where, b, n := ranged(rt)
				want := 0
				for i := b; i < b+n; i++ {
					want += count(pinned[where][i])
				}
				got := advise(rt, s.Evict, where, b, n)
				if skips := n - got.There - got.Changed; skips != want {
					rt.Fatalf("%d blocks skipped, %d pinned: %+v", skips, want, got)
				}
			},
			"pin": func(rt *rapid.T) {
				where, b, n := ranged(rt)
				advise(rt, s.Pin, where, b, n)
				for i := b; i < b+n; i++ {
					pinned[where][i] = true
				}
			},
			"unpin": func(rt *rapid.T) {
				where, b, n := ranged(rt)
				advise(rt, s.Unpin, where, b, n)
				for i := b; i < b+n; i++ {
					pinned[where][i] = false
				}
			},
			"prefer": func(rt *rapid.T) {
				if _, err := s.Prefer(t.Context(), rapid.SampledFrom(tiers).Draw(rt, "where")); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				if err := s.Read(t.Context(), 0, buf); err != nil {
					rt.Fatal(err)
				}
				for b, v := range content {
					if part := buf.Bytes()[b*block : (b+1)*block]; bytes.Count(part, []byte{v}) != block {
						rt.Fatalf("block %d is not all %d", b, v)
					}
				}
				stat, err := s.Stat()
				if err != nil {
					rt.Fatal(err)
				}
				for where, set := range pinned {
					want := 0
					for _, p := range set {
						want += count(p)
					}
					if got := stat.Tiers[where].Pinned; got != want {
						rt.Fatalf("%d blocks pinned on %v, want %d", got, where, want)
					}
				}
			},
		})
		if err := s.Free(); err != nil {
			rt.Fatal(err)
		}
	})
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Advice may be given by many at once, while others write and copy.
func TestAdviceUnderWriters(t *testing.T) {
	st := newStore(t)
	const blocks = 3
	s := alloc(t, st, span.Info{Size: blocks * block, Tier: coherency.Host, Home: coherency.Host, Policy: coherency.WriteThrough})
	src := alloc(t, st, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	write(t, src, 0, bytes.Repeat([]byte{200}, block))
	var wg sync.WaitGroup
	try := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	for w := range 3 {
		wg.Go(func() {
			sh := openShadow(t, s)
			for i := range 30 {
				where := tiers[(i+w)%2]
				b := int64((i + w) % blocks)
				switch w {
				case 0: // whole blocks, and runs: all bytes of a block are equal, but for those
					v := byte(1 + i)
					try(errOf(s.Write(t.Context(), b*block, memory(t, bytes.Repeat([]byte{v}, block)), false)))
					runs := []span.Run{{Offset: 5, Length: 1}, {Offset: 50, Length: 1}}
					try(errOf(sh.Flush(t.Context(), int(b), span.AnyVersion, runs, memory(t, []byte{v, v}), false)))
				case 1:
					try(errOf(s.Prefer(t.Context(), where)))
					try(errOf(s.Prefetch(t.Context(), where, 0, s.Size)))
					try(errOf(s.Pin(t.Context(), where, b*block, block)))
					try(errOf(s.Copy(t.Context(), b*block, src, 0, block)))
				case 2:
					try(errOf(s.Evict(t.Context(), where, 0, s.Size)))
					try(errOf(s.Unpin(t.Context(), where, b*block, block)))
				}
			}
		})
	}
	wg.Wait()
	got := read(t, s, 0, s.Size)
	for b := range blocks {
		part := got[b*block : (b+1)*block]
		odd := block - bytes.Count(part, part[1000:1001])
		if odd > 2 {
			t.Errorf("block %d has %d bytes that are not its other bytes", b, odd)
		}
	}
}

func errOf[T any](_ T, err error) error { return err }

// A copy within the device goes where it was prepared for, though a client maps
// its destination meanwhile, or somebody says that writes go elsewhere.
func TestCopyKeepsToItsPlan(t *testing.T) {
	st := newStore(t)
	src := alloc(t, st, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	dst := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.VRAM, Home: coherency.VRAM})
	want := pattern(block, 1)
	write(t, src, 0, want)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for where := 0; ; where++ {
			select {
			case <-done:
				return
			default:
			}
			if _, err := dst.Prefer(t.Context(), tiers[where%2]); err != nil {
				t.Error(err)
				return
			}
		}
	})
	buf := memory(t, make([]byte, block))
	for i := range 6000 {
		off := int64(i % 1000)
		if _, err := dst.Copy(t.Context(), block+off, src, off, 3000); err != nil {
			t.Error(err)
			break
		}
		if err := dst.Read(t.Context(), block+off, buf.Slice(0, 3000)); err != nil || !bytes.Equal(buf.Bytes()[:3000], want[off:off+3000]) {
			t.Errorf("copy %d: the destination is not the source: %v", i, err)
			break
		}
	}
	close(done)
	wg.Wait()
}
