// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
)

// Where writes go is kept with the span, whatever else becomes of it.
func TestPreferIsDurable(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	s := st.alloc(t, through)
	if _, err := s.Prefer(t.Context(), coherency.Disk); err != nil {
		t.Fatal(err)
	}
	after(t, dir, func(st onDisk) {
		if got := st.open(t, "s"); got.Preferred() != coherency.Disk || got.Home != coherency.Disk {
			t.Errorf("writes go to %v, home is %v", got.Preferred(), got.Home)
		}
	})

	// A span that is freed meanwhile stays freed, and one that takes another's
	// name has it.
	for i := range 50 {
		one := through
		one.Name = fmt.Sprint("one", i)
		gone := st.alloc(t, one)
		draft, err := st.Draft(t.Context(), through)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, f := range []func() error{
			func() error { return gone.Free() },
			func() error { _, err := gone.Prefer(t.Context(), coherency.Disk); return err },
			func() error { return st.Publish(t.Context(), draft, true) },
			func() error { _, err := draft.Prefer(t.Context(), coherency.Disk); return err },
		} {
			wg.Go(func() {
				if err := f(); err != nil && !errors.Is(err, span.ErrFreed) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := s.Forsake(); err != nil { // it has lost its name: so it goes
			t.Error(err)
		}
		s = draft
	}
	st.close(t)
	after(t, dir, func(st onDisk) {
		if list := st.List(); len(list) != 1 || list[0].ID != s.ID || list[0].Preferred() != coherency.Disk {
			t.Errorf("after a restart there are %d spans", len(list))
		}
	})
}

// What is evicted from RAM is durable before it goes, and what is home's stays.
func TestEvictToDisk(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	info := through
	info.Policy = coherency.WriteBack
	s := st.alloc(t, info)
	want := pattern(int(s.Size), 1)
	write(t, s, 0, want)
	got := follow(t, s.Evict, coherency.Host, 0, s.Size)
	if got.Changed != 4 || got.Bytes != s.Size { // unless it was written back before
		t.Errorf("%+v", got)
	}
	after(t, dir, func(st onDisk) {
		if got := read(t, st.open(t, "s"), 0, s.Size); !bytes.Equal(got, want) {
			t.Error("what was evicted is not what was written")
		}
	})
	if _, err := s.Evict(t.Context(), coherency.Disk, 0, s.Size); !errors.Is(err, span.ErrInvalid) {
		t.Errorf("eviction from home: %v", err)
	}
	brought := span.Move{From: coherency.MaskOf(coherency.Disk), To: coherency.Host, Blocks: 4, Bytes: s.Size}
	advised(t, follow(t, s.Prefetch, coherency.Host, 0, s.Size), 0, 4, brought)
	st.close(t)
}

// fastDir returns a directory for tests to which it does not matter that a sync
// is one: in RAM if there is such a place.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "memspan-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// In less RAM than the span takes: bytes stay what was written last, over
// restarts too, and pinned blocks stay in RAM.
func TestAdviceInLittleRAM(t *testing.T) {
	const blocks, budget = 6, 4
	buf := memory(t, make([]byte, blocks*block)) // there is no cleanup between checks
	dirs := 0
	base := fastDir(t)
	rapid.Check(t, func(rt *rapid.T) {
		dirs++
		dir := fmt.Sprintf("%s/%d", base, dirs)
		st := openData(t, dir, budget*block)
		home := rapid.SampledFrom([]coherency.Tier{coherency.Host, coherency.Disk}).Draw(rt, "home")
		s := st.alloc(t, span.Info{Name: "s", Size: blocks * block, Tier: coherency.Host, Home: home, Policy: coherency.WriteThrough})
		defer func() { st.close(t); os.RemoveAll(dir) }()
		var content [blocks]byte
		pinned := map[int]bool{} // in RAM
		where := rapid.SampledFrom([]coherency.Tier{coherency.Host, coherency.Disk})
		part := func(rt *rapid.T) (off, n int64) {
			b := rapid.IntRange(0, blocks-1).Draw(rt, "block")
			return int64(b) * block, int64(rapid.IntRange(1, blocks-b).Draw(rt, "blocks")) * block
		}
		advise := func(rt *rapid.T, f func(context.Context, coherency.Tier, int64, int64) (span.Advised, error)) (span.Advised, error) {
			off, n := part(rt)
			got, err := f(t.Context(), where.Draw(rt, "where"), off, n)
			if err != nil && !errors.Is(err, tier.ErrBudget) && !errors.Is(err, span.ErrInvalid) {
				rt.Fatalf("%+v, %v", got, err)
			}
			return got, err
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				b, v := rapid.IntRange(0, blocks-1).Draw(rt, "block"), rapid.Byte().Draw(rt, "value")
				whole := buf.Slice(0, block)
				memfd.Copy(whole.Bytes(), bytes.Repeat([]byte{v}, block))
				_, err := s.Write(t.Context(), int64(b)*block, whole, false)
				if full := len(pinned) == budget && !pinned[b]; full && errors.Is(err, tier.ErrBudget) {
					if !errors.Is(err, span.ErrDebt) {
						return // nothing can make room
					}
				} else if err != nil {
					rt.Fatal(err)
				}
				content[b] = v
			},
			"prefetch": func(rt *rapid.T) { advise(rt, s.Prefetch) },
			"evict":    func(rt *rapid.T) { advise(rt, s.Evict) },
			"pin": func(rt *rapid.T) {
				b := rapid.IntRange(0, blocks-1).Draw(rt, "block")
				_, err := s.Pin(t.Context(), coherency.Host, int64(b)*block, block)
				if full := len(pinned) == budget && !pinned[b]; err != nil && !(full && errors.Is(err, tier.ErrBudget)) {
					rt.Fatal(err)
				} else if err == nil {
					pinned[b] = true
				}
			},
			"unpin": func(rt *rapid.T) {
				b := rapid.IntRange(0, blocks-1).Draw(rt, "block")
				if _, err := s.Unpin(t.Context(), coherency.Host, int64(b)*block, block); err != nil {
					rt.Fatal(err)
				}
				delete(pinned, b)
			},
			"prefer": func(rt *rapid.T) {
				if _, err := s.Prefer(t.Context(), where.Draw(rt, "where")); err != nil {
					rt.Fatal(err)
				}
			},
			"restart": func(rt *rapid.T) {
				if home != coherency.Disk {
					rt.Skip("it would be gone")
				}
				prefers := s.Preferred()
				st.close(t)
				st = openData(t, dir, budget*block)
				if s = st.open(t, "s"); s.Preferred() != prefers {
					rt.Fatalf("writes went to %v, and go to %v", prefers, s.Preferred())
				}
				clear(pinned)
			},
			"": func(rt *rapid.T) {
				if err := s.Read(t.Context(), 0, buf); err != nil {
					rt.Fatal(err)
				}
				for b, v := range content {
					if got := buf.Bytes()[b*block : (b+1)*block]; bytes.Count(got, []byte{v}) != block {
						rt.Fatalf("block %d is not all %d", b, v)
					}
				}
				stat, err := s.Stat()
				if ram := stat.Tiers[coherency.Host]; err != nil || ram.Pinned != len(pinned) || ram.Current+ram.Stale < len(pinned) || ram.Bytes > budget*block {
					rt.Fatalf("%d blocks are pinned: %+v, %v", len(pinned), ram, err)
				}
			},
		})
	})
}
