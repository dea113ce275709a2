// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
)

// failReads makes the device's reads fail until the returned function is
// called.
func (d *device) failReads(err error) (undo func()) {
	f := func() error { return err }
	d.onRead.Store(&f)
	return func() { d.onRead.Store(nil) }
}

// A flush that comes after the unmap fails, and leaves nothing under way.
func TestFlushAfterUnmap(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	write(t, s, 0, pattern(100, 1))
	d, _ := mapDirect(t, s, 0, block)
	if _, err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	write(t, s, 0, pattern(100, 2)) // to the device: RAM is stale
	if _, err := d.Flush(t.Context()); !errors.Is(err, span.ErrNotMapped) {
		t.Errorf("flush: %v", err)
	}
	if _, err := s.Download(t.Context(), false); err != nil {
		t.Errorf("download: %v", err)
	}
	mapDirect(t, s, 0, block)
}

// A forced download would overwrite what clients store at this moment.
func TestForcedDownloadUnderAWritableMapping(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	write(t, s, 0, pattern(100, 1))
	d, _ := mapDirect(t, s, 0, block)
	write(t, s, 0, pattern(100, 2)) // to RAM
	if _, err := s.Download(t.Context(), true); !errors.Is(err, coherency.ErrPinned) {
		t.Errorf("download: %v", err)
	}
	if _, err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	undo := st.dev.failReads(errBroken)
	if _, err := s.Download(t.Context(), true); !errors.Is(err, errBroken) {
		t.Errorf("download from a broken device: %v", err)
	}
	undo()
	if _, err := s.Download(t.Context(), true); err != nil {
		t.Errorf("download once it works: %v", err)
	}
	if got := read(t, s, 0, 100); !bytes.Equal(got, pattern(100, 1)) {
		t.Error("the device's bytes did not win")
	}
}

// What is about to be written survives what fails before.
func TestFailureBeforeTheWriteLosesNothing(t *testing.T) {
	st := newStore(t)
	device := alloc(t, st, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	ram := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.Host})
	write(t, device, 0, pattern(100, 1))
	want := pattern(block, 2)
	write(t, ram, 0, want)
	undo := st.dev.failReads(tier.ErrLost)
	if _, err := ram.Copy(t.Context(), 0, device, 0, 100); !errors.Is(err, tier.ErrLost) {
		t.Errorf("copy from a dying device: %v", err)
	}
	if got := read(t, ram, 0, block); !bytes.Equal(got, want) {
		t.Error("a copy that failed changed its destination")
	}
	runs := []span.Run{{Offset: 0, Length: 1}, {Offset: 2, Length: 1}}
	if _, err := openShadow(t, device).Flush(t.Context(), 0, span.AnyVersion, runs, memory(t, make([]byte, 2)), false); !errors.Is(err, tier.ErrLost) {
		t.Errorf("flush: %v", err)
	}
	undo()
	st.dev.broken.Store(true)
	if _, err := device.Write(t.Context(), 0, memory(t, make([]byte, 2)), false); !errors.Is(err, errBroken) {
		t.Errorf("write: %v", err)
	}
	if got := read(t, device, 0, 100); !bytes.Equal(got, pattern(100, 1)) {
		t.Error("a flush or a write that failed changed its block")
	}
}

// Commits that were made before anybody could flush against them count too.
func TestHistoryBeforeTheFirstMapping(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.Host})
	for i := range 5 {
		write(t, s, 0, pattern(100, uint64(i)))
	}
	sh := openShadow(t, s)
	write(t, s, 4096, pattern(10, 9)) // the first that is remembered
	_, err := sh.Flush(t.Context(), 0, 3, []span.Run{{Offset: 0, Length: 100}}, memory(t, pattern(100, 77)), false)
	if !errors.Is(err, coherency.ErrConflict) {
		t.Errorf("flush over bytes that commits 4 and 5 changed: %v", err)
	}
}

// A mapping of a part shows the whole region, beyond the span's end too: there
// must be nothing of another span in it.
func TestRegionShowsNoOtherSpan(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 4 * block, Tier: coherency.Host, Home: coherency.Host})
	write(t, s, 0, bytes.Repeat([]byte("SECRET!!"), 4*block/8))
	s.Free()
	s = alloc(t, st, span.Info{Size: 4*block - 100, Tier: coherency.Host, Home: coherency.Host})
	d, p := mapDirect(t, s, 0, 1)
	defer d.Close(t.Context(), false)
	if n := bytes.Count(p, []byte("SECRET")); n > 0 {
		t.Errorf("a freed span's bytes are there %d times", n)
	}
}

func TestLongestName(t *testing.T) {
	st := newStore(t)
	alloc(t, st, span.Info{Name: strings.Repeat("n", 255), Size: 1, Tier: coherency.Host, Home: coherency.Host})
}

func TestCancelledBeforeItBegins(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 4 * block, Tier: coherency.Host, Home: coherency.Host})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Fill(ctx, 0, s.Size, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("fill: %v", err)
	}
	if _, err := s.Write(ctx, 0, memory(t, pattern(3*block, 1)), false); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if got := read(t, s, 0, s.Size); !bytes.Equal(got, make([]byte, s.Size)) {
		t.Error("bytes changed")
	}
}

// The descriptor that is on its way to a client stays open when the span goes.
func TestFileOutlivesTheSpan(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.Host})
	freed := false
	d, err := s.MapDirect(t.Context(), 0, block, true, func() { freed = true })
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := d.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.Free()
	if !freed {
		t.Error("the mapping's owner was not told")
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil && err != io.EOF {
		t.Error(err)
	}
}

// Of two waiters behind a dead holder one is told, even if the first gives up
// just as it is granted the lock.
func TestSomebodyIsToldOfADeadHolder(t *testing.T) {
	st := newStore(t)
	for range 300 {
		s := alloc(t, st, span.Info{Size: 64, Tier: coherency.Host, Home: coherency.Host})
		if _, _, err := s.Lock(t.Context(), 1, 0, 10, true); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var told [2]bool
		var wg sync.WaitGroup
		for i, ctx := range []context.Context{ctx, t.Context()} {
			wg.Go(func() {
				owner := span.Owner(2 + i)
				id, abandoned, err := s.Lock(ctx, owner, 0, 10, true)
				if err == nil {
					told[i] = abandoned
					s.Unlock(owner, id)
				}
			})
		}
		wg.Go(cancel)
		s.UnlockAll(1, true)
		wg.Wait()
		if !told[0] && !told[1] {
			t.Fatal("nobody was told")
		}
		s.Free()
	}
}

// A client stores while its release is copied to the device, and takes it back
// afterwards: the device's copy must not pass for RAM's version.
func TestStoreDuringTheRelease(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.VRAM, Policy: coherency.WriteThrough})
	d, p := mapDirect(t, s, 0, block)
	copy(p, "AAAA")
	store := func() error { copy(p, "BBBB"); return nil }
	st.dev.onWrite.Store(&store)
	if _, err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	st.dev.onWrite.Store(nil)
	copy(p, "AAAA")
	if _, err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	o := alloc(t, st, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	if _, err := o.Copy(t.Context(), 0, s, 0, block); err != nil {
		t.Fatal(err)
	}
	if a, b := read(t, s, 0, 4), read(t, o, 0, 4); !bytes.Equal(a, b) {
		t.Errorf("one version, two contents: RAM %q, device %q", a, b)
	}
}

// Everything at once, with cancellations and losses: nothing hangs, no block
// stays busy, and only expected errors come.
func TestStress(t *testing.T) {
	st := newStore(t)
	expected := []error{span.ErrFreed, span.ErrDebt, tier.ErrLost, coherency.ErrConflict, coherency.ErrDataLoss, coherency.ErrPinned, context.Canceled}
	check := func(op string, err error) {
		for _, e := range expected {
			if errors.Is(err, e) {
				return
			}
		}
		if err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	for round := range uint64(18) {
		make2 := func() *span.Span {
			return alloc(t, st, span.Info{Size: 3 * block, Tier: tiers[round%2], Home: tiers[(round/2)%2], Policy: coherency.WritePolicy(round % 3)})
		}
		a, b := make2(), make2()
		var wg sync.WaitGroup
		for w := range uint64(5) {
			r := rand.New(rand.NewPCG(round, w))
			m := memory(t, pattern(block+500, 3))
			wg.Go(func() {
				for range 20 {
					s, o := a, b
					if r.IntN(2) == 0 {
						s, o = b, a
					}
					ctx, cancel := context.WithCancel(t.Context())
					if r.IntN(3) == 0 {
						go cancel()
					}
					stressOne(ctx, st, s, o, m, r, span.Owner(w), check)
					cancel()
				}
			})
		}
		if round%3 == 0 {
			wg.Go(func() { a.Free() })
		}
		wg.Wait()
		for _, s := range []*span.Span{a, b} {
			if _, err := s.State(); errors.Is(err, span.ErrFreed) {
				continue
			}
			_, err := s.Accept(t.Context())
			check("accept", err)
			_, err = s.Download(t.Context(), true)
			check("download", err)
			_, err = s.Upload(t.Context(), true)
			check("upload", err)
			d, err := s.MapDirect(t.Context(), 0, s.Size, true, nothing)
			if check("map", err); err == nil {
				_, err = d.Close(t.Context(), false)
				check("close", err)
			}
			s.Free()
		}
	}
}

func stressOne(ctx context.Context, st fixture, s, o *span.Span, m tier.Memory, r *rand.Rand, owner span.Owner, check func(string, error)) {
	off := r.Int64N(block)
	switch r.IntN(12) {
	case 0:
		_, err := s.Write(ctx, off, m, false)
		check("write", err)
	case 1:
		check("read", s.Read(ctx, off, m.Slice(0, 1000)))
	case 2:
		_, err := s.Fill(ctx, off, block, 7)
		check("fill", err)
	case 3:
		_, err := s.Copy(ctx, off, o, r.Int64N(block), block+3)
		check("copy", err)
	case 4:
		_, err := s.Upload(ctx, r.IntN(2) == 0)
		check("upload", err)
	case 5:
		_, err := s.Download(ctx, r.IntN(2) == 0)
		check("download", err)
	case 6:
		_, err := s.Sync(ctx)
		check("sync", err)
	case 7:
		check("release", s.Release(ctx))
	case 8:
		d, err := s.MapDirect(ctx, 0, 2*block, r.IntN(2) == 0, nothing)
		if check("map", err); err == nil {
			_, err = d.Flush(ctx)
			check("flush of a direct mapping", err)
			_, err = d.Close(context.Background(), r.IntN(2) == 0)
			check("close", err)
		}
	case 9:
		sh, err := s.OpenShadow(0, block, true, nothing)
		if check("shadow", err); err == nil {
			_, err = sh.Flush(ctx, 1, span.AnyVersion, []span.Run{{Offset: 5, Length: 10}, {Offset: 20, Length: 3}}, m.Slice(0, 13), false)
			check("flush", err)
			sh.Close()
		}
	case 10:
		if r.IntN(3) == 0 {
			st.Lose(coherency.VRAM)
		}
		_, err := s.Accept(ctx)
		check("accept", err)
	case 11:
		id, _, err := s.Lock(ctx, owner, off, 100, true)
		if check("lock", err); err == nil {
			s.Unlock(owner, id)
		}
	}
}
