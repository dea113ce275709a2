// SPDX-License-Identifier: Apache-2.0

// Package tiertest holds every implementation of tier.Tier to the interface's
// contract.
package tiertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// odd is the length of the short last block of most spans here.
const odd = 70_001

// Run runs the suite. Each test calls open for a new tier of its own, with room
// for 24 MiB at least, and closes it. The memory that a test uses is given back
// through the tier's method Forget, if it has one.
func Run(t *testing.T, open func(t *testing.T) tier.Tier) {
	for _, test := range []struct {
		name string
		run  func(*fixture)
	}{
		{"WholeBlocks", wholeBlocks},
		{"RandomRanges", randomRanges},
		{"FillAlignments", fillAlignments},
		{"CopyAlignments", copyAlignments},
		{"CopyBetweenSpaces", copyBetweenSpaces},
		{"ForeignSpace", foreignSpace},
		{"ReserveAndDrop", reserveAndDrop},
		{"Ranges", ranges},
		{"Budget", budget},
		{"ConcurrentBlocks", concurrentBlocks},
		{"ConcurrentReads", concurrentReads},
		{"Cancelled", cancelled},
	} {
		t.Run(test.name, func(t *testing.T) {
			tr := open(t)
			defer func() {
				if err := tr.Close(); err != nil {
					t.Errorf("close tier: %v", err)
				}
			}()
			f := &fixture{T: t, tier: tr}
			defer f.forget()
			test.run(f)
		})
	}
}

type fixture struct {
	*testing.T
	tier    tier.Tier
	mu      sync.Mutex
	regions []*memfd.Region
}

// memory returns n bytes in the middle of a region, at an odd offset, with
// canaries on both sides.
func (f *fixture) memory(n int64) tier.Memory {
	f.Helper()
	const before, after = 4097, 64
	r, err := memfd.Create("tiertest", before+n+after)
	if err != nil {
		f.Fatal(err)
	}
	f.mu.Lock()
	f.regions = append(f.regions, r)
	f.mu.Unlock()
	for _, b := range [][]byte{r.Bytes()[:before], r.Bytes()[before+n:]} {
		for i := range b {
			b[i] = canary
		}
	}
	return tier.Memory{Region: r, Off: before, Len: n}
}

const canary = 0xc5

// forget checks that nothing was written beside any memory, and frees it.
func (f *fixture) forget() {
	for _, r := range f.regions {
		if forgetter, ok := f.tier.(interface{ Forget(*memfd.Region) }); ok {
			forgetter.Forget(r)
		}
		r.Close()
	}
}

// intact reports a write beside m.
func (f *fixture) intact(m tier.Memory) {
	f.Helper()
	all := m.Region.Bytes()
	for _, part := range [][2]int64{{0, m.Off}, {m.Off + m.Len, int64(len(all))}} {
		for i := part[0]; i < part[1]; i++ {
			if all[i] != canary {
				f.Fatalf("byte %d of the memory, beside [%d, +%d), was overwritten", i, m.Off, m.Len)
			}
		}
	}
}

func (f *fixture) open(size int64, p tier.Placement) tier.Space {
	f.Helper()
	s, err := f.tier.Open(f.Context(), "test", size, p)
	if err != nil {
		f.Fatalf("open: %v", err)
	}
	return s
}

// reserved opens a space and reserves all its blocks.
func (f *fixture) reserved(size int64, p tier.Placement) tier.Space {
	f.Helper()
	s := f.open(size, p)
	for b := range int((size-1)/tier.BlockSize + 1) {
		f.ok(s.Reserve(f.Context(), b), "reserve")
	}
	return s
}

func (f *fixture) ok(err error, what string) {
	f.Helper()
	if err != nil {
		f.Fatalf("%s: %v", what, err)
	}
}

// pattern stores bytes that tell seed and place.
func pattern(b []byte, seed, at uint64) {
	for i := range b {
		p := at + uint64(i)
		x := (p>>3 + seed<<40) * 0x9e3779b97f4a7c15
		x ^= x >> 29
		x *= 0xbf58476d1ce4e5b9
		b[i] = byte(x >> (8 * (p & 7)))
	}
}

// first returns where a and b differ, -1 if they do not.
func first(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// holds checks that bytes [off, off+len(want)) of a block are want.
func (f *fixture) holds(s tier.Space, b int, off int64, want []byte, m tier.Memory, what string) {
	f.Helper()
	m = m.Slice(0, int64(len(want)))
	clear(m.Bytes())
	f.ok(s.Read(f.Context(), b, off, m), what+": read back")
	if i := first(m.Bytes(), want); i >= 0 {
		f.Fatalf("%s: block %d: byte %d is %#x, want %#x", what, b, off+int64(i), m.Bytes()[i], want[i])
	}
}

func wholeBlocks(f *fixture) {
	const size = 2*tier.BlockSize + odd
	src, dst := f.memory(size), f.memory(size)
	for _, p := range []tier.Placement{tier.AnyMemory, tier.HostVisible, tier.DeviceLocal} {
		pattern(src.Bytes(), uint64(p), 0)
		clear(dst.Bytes())
		s := f.reserved(size, p)
		for b := range 3 {
			at := int64(b) * tier.BlockSize
			f.ok(s.Write(f.Context(), b, 0, src.Slice(at, min(tier.BlockSize, size-at))), "write")
		}
		for b := range 3 {
			at := int64(b) * tier.BlockSize
			f.ok(s.Read(f.Context(), b, 0, dst.Slice(at, min(tier.BlockSize, size-at))), "read")
		}
		if i := first(src.Bytes(), dst.Bytes()); i >= 0 {
			f.Fatalf("placement %d: byte %d is %#x, want %#x", p, i, dst.Bytes()[i], src.Bytes()[i])
		}
		f.intact(src)
		f.intact(dst)
		f.ok(s.Close(), "close")
	}
}

// randomRanges does random operations on a block pair and on a model of it, and
// compares them around every change, and whole at the end.
func randomRanges(f *fixture) {
	const seed = 20
	r := rand.New(rand.NewPCG(seed, seed))
	sizes := []int64{tier.BlockSize, odd}
	s := f.reserved(sizes[0]+sizes[1], tier.AnyMemory)
	src, dst := f.memory(tier.BlockSize), f.memory(tier.BlockSize)
	model := [][]byte{make([]byte, sizes[0]), make([]byte, sizes[1])}
	for b, m := range model {
		pattern(m, seed, 0)
		copy(src.Bytes(), m)
		f.ok(s.Write(f.Context(), b, 0, src.Slice(0, sizes[b])), "write")
	}
	// Half of the ranges are short, and half of those begin near a boundary.
	between := func(limit int64) (off, n int64) {
		off = r.Int64N(limit)
		if r.IntN(2) == 0 {
			off = min(limit-1, max(0, off&^0xfff+r.Int64N(9)-4))
		}
		n = 1 + r.Int64N(limit-off)
		if r.IntN(2) == 0 {
			n = min(n, 1+r.Int64N(70))
		}
		return off, n
	}
	for step := range 400 {
		b := r.IntN(2)
		off, n := between(sizes[b])
		var what string
		switch r.IntN(3) {
		case 0:
			what = fmt.Sprintf("step %d: write [%d, +%d)", step, off, n)
			at := r.Int64N(tier.BlockSize - n + 1)
			piece := src.Slice(at, n)
			pattern(piece.Bytes(), uint64(step), uint64(off))
			f.ok(s.Write(f.Context(), b, off, piece), what)
			copy(model[b][off:off+n], piece.Bytes())
		case 1:
			word := r.Uint32()
			what = fmt.Sprintf("step %d: fill [%d, +%d) with %#08x", step, off, n, word)
			f.ok(s.Fill(f.Context(), b, off, n, word), what)
			fill(model[b][off:off+n], word)
		case 2:
			sb := 1 - b
			n = min(n, sizes[sb])
			soff := r.Int64N(sizes[sb] - n + 1)
			what = fmt.Sprintf("step %d: copy [%d, +%d) from %d", step, off, n, soff)
			f.ok(s.Copy(f.Context(), b, off, s, sb, soff, n), what)
			copy(model[b][off:off+n], model[sb][soff:soff+n])
		}
		from, to := max(0, off-70), min(sizes[b], off+n+70)
		f.holds(s, b, from, model[b][from:to], dst, what)
	}
	for b, m := range model {
		f.holds(s, b, 0, m, dst, "at the end")
	}
	f.intact(src)
	f.intact(dst)
}

func fill(b []byte, word uint32) {
	var w [4]byte
	binary.LittleEndian.PutUint32(w[:], word)
	for i := range b {
		b[i] = w[i%4]
	}
}

func fillAlignments(f *fixture) {
	const window = 64
	s := f.reserved(tier.BlockSize, tier.AnyMemory)
	m, back := f.memory(window), f.memory(window)
	want := make([]byte, window)
	for base := int64(0); base < 3*4096; base += 4096 {
		for off := range int64(5) {
			for n := range int64(14) {
				pattern(want, uint64(off), uint64(n))
				copy(m.Bytes(), want)
				f.ok(s.Write(f.Context(), 0, base, m), "write")
				fill(want[off:off+n], 0x04030201)
				what := fmt.Sprintf("fill [%d, +%d)", off, n)
				f.ok(s.Fill(f.Context(), 0, base+off, n, 0x04030201), what)
				f.holds(s, 0, base, want, back, what)
			}
		}
	}
}

func copyAlignments(f *fixture) {
	const window = 40
	s := f.reserved(2*tier.BlockSize, tier.AnyMemory)
	m, back := f.memory(window), f.memory(window)
	from := make([]byte, window)
	pattern(from, 1, 0)
	copy(m.Bytes(), from)
	f.ok(s.Write(f.Context(), 0, 100, m), "write")
	want := make([]byte, window)
	for soff := range int64(5) {
		for off := range int64(5) {
			for _, n := range []int64{0, 1, 3, 4, 5, 8, 17} {
				pattern(want, 2, uint64(soff))
				copy(m.Bytes(), want)
				// Into another block, and into the same one, where it does not overlap.
				for b, base := range []int64{5000, 200} {
					f.ok(s.Write(f.Context(), b, base, m), "write")
					what := fmt.Sprintf("copy [%d, +%d) from %d", off, n, soff)
					f.ok(s.Copy(f.Context(), b, base+off, s, 0, 100+soff, n), what)
					expect := append([]byte(nil), want...)
					copy(expect[off:off+n], from[soff:])
					f.holds(s, b, base, expect, back, what)
				}
			}
		}
	}
	f.holds(s, 0, 100, from, back, "the source")
}

func copyBetweenSpaces(f *fixture) {
	m, back := f.memory(tier.BlockSize), f.memory(tier.BlockSize)
	host := f.reserved(2*tier.BlockSize, tier.HostVisible)
	local := f.reserved(2*tier.BlockSize, tier.DeviceLocal)
	short := f.reserved(odd, tier.AnyMemory)
	pattern(m.Bytes(), 7, 0)
	f.ok(host.Write(f.Context(), 1, 0, m), "write")
	f.ok(local.Copy(f.Context(), 0, 0, host, 1, 0, tier.BlockSize), "copy to the device")
	f.ok(host.Copy(f.Context(), 0, 0, local, 0, 0, tier.BlockSize), "copy from the device")
	f.ok(short.Copy(f.Context(), 0, 1, local, 0, 3, odd-1), "copy a part")
	f.holds(local, 0, 0, m.Bytes(), back, "on the device")
	f.holds(host, 0, 0, m.Bytes(), back, "back again")
	f.holds(host, 1, 0, m.Bytes(), back, "the source")
	f.holds(short, 0, 1, m.Bytes()[3:3+odd-1], back, "the part")
	if err := short.Copy(f.Context(), 0, 1, local, 0, 0, odd); err == nil {
		f.Error("a copy past the end of a short block succeeded")
	}
	if err := short.Copy(f.Context(), 0, 0, local, 1, tier.BlockSize-1, 2); err == nil {
		f.Error("a copy from past the end of a block succeeded")
	}
	local.Drop(1)
	if err := host.Copy(f.Context(), 0, 0, local, 1, 0, 1); err == nil {
		f.Error("a copy from a block that was dropped succeeded")
	}
	f.ok(local.Close(), "close")
	f.holds(host, 0, 0, m.Bytes(), back, "after the other space was closed")
}

// stranger is a space of some other tier.
type stranger struct{ tier.Space }

func foreignSpace(f *fixture) {
	s := f.reserved(tier.BlockSize, tier.AnyMemory)
	if err := s.Copy(f.Context(), 0, 0, stranger{}, 0, 0, 1); err == nil {
		f.Error("a copy from a space of another tier succeeded")
	}
}

func reserveAndDrop(f *fixture) {
	before := f.tier.Usage().Used
	s := f.open(4*tier.BlockSize, tier.AnyMemory)
	m, back := f.memory(100), f.memory(100)
	pattern(m.Bytes(), 1, 0)
	if err := s.Write(f.Context(), 0, 0, m); err == nil {
		f.Error("a write to a block that was not reserved succeeded")
	}
	if err := s.Read(f.Context(), 0, 0, back); err == nil {
		f.Error("a read from a block that was not reserved succeeded")
	}
	if err := s.Fill(f.Context(), 0, 0, 4, 0); err == nil {
		f.Error("a fill of a block that was not reserved succeeded")
	}
	f.ok(s.Reserve(f.Context(), 0), "reserve")
	f.ok(s.Write(f.Context(), 0, 0, m), "write")
	f.ok(s.Reserve(f.Context(), 0), "reserve again")
	f.holds(s, 0, 0, m.Bytes(), back, "after a second reserve")
	if used := f.tier.Usage().Used; used < before+tier.BlockSize {
		f.Errorf("usage is %d after a block was reserved, was %d", used, before)
	}
	s.Drop(1) // never reserved
	s.Drop(0)
	s.Drop(0)
	if err := s.Read(f.Context(), 0, 0, back); err == nil {
		f.Error("a read from a block that was dropped succeeded")
	}
	f.ok(s.Reserve(f.Context(), 0), "reserve after drop")
	f.ok(s.Write(f.Context(), 0, 0, m), "write after drop")
	f.holds(s, 0, 0, m.Bytes(), back, "after drop and reserve")

	// What is given back is taken again: usage does not grow.
	var most int64
	for round := range 200 {
		for b := range 4 {
			f.ok(s.Reserve(f.Context(), b), "reserve")
		}
		used := f.tier.Usage().Used
		if round == 0 {
			most = used
		} else if used > most {
			f.Fatalf("usage grew from %d to %d in round %d", most, used, round)
		}
		for b := range 4 {
			s.Drop(b)
		}
	}
	f.ok(s.Close(), "close")
	f.ok(s.Close(), "close again")
	if err := s.Reserve(f.Context(), 0); err == nil {
		f.Error("reserve succeeded after close")
	}
}

func ranges(f *fixture) {
	const size = tier.BlockSize + odd
	s := f.reserved(size, tier.AnyMemory)
	m := f.memory(tier.BlockSize)
	for _, c := range []struct {
		b      int
		off, n int64
		ok     bool
	}{
		{0, 0, tier.BlockSize, true},
		{0, tier.BlockSize, 0, true},
		{1, odd, 0, true},
		{1, odd - 1, 1, true},
		{0, 1, tier.BlockSize, false},
		{0, tier.BlockSize, 1, false},
		{1, 0, odd + 1, false},
		{1, odd, 1, false},
		{1, odd + 1, 0, false},
		{0, -1, 1, false},
		{0, 1<<63 - 1, 2, false},
		{2, 0, 1, false},
		{-1, 0, 1, false},
		{1 << 40, 0, 1, false},
	} {
		piece := m.Slice(0, c.n)
		for what, err := range map[string]error{
			"write": s.Write(f.Context(), c.b, c.off, piece),
			"read":  s.Read(f.Context(), c.b, c.off, piece),
			"fill":  s.Fill(f.Context(), c.b, c.off, c.n, 1),
		} {
			if (err == nil) != c.ok {
				f.Errorf("%s of block %d, [%d, +%d): %v", what, c.b, c.off, c.n, err)
			}
		}
	}
	for _, b := range []int{-1, 2, 1 << 40} {
		if err := s.Reserve(f.Context(), b); err == nil {
			f.Errorf("block %d of 2 was reserved", b)
		}
		s.Drop(b)
	}
	if err := s.Fill(f.Context(), 0, 5, -1, 1); err == nil {
		f.Error("a fill of -1 bytes succeeded")
	}
	if _, err := f.tier.Open(f.Context(), "empty", 0, tier.AnyMemory); err == nil {
		f.Error("a space of 0 bytes was opened")
	}
	f.intact(m)
}

// budget fills a tier that has a small budget, and sees that a block given back
// makes room for one.
func budget(f *fixture) {
	limit := f.tier.Usage().Budget
	if limit == 0 || limit > 256<<20 {
		f.Skipf("budget of %d is not one to exhaust", limit)
	}
	blocks := int(limit/tier.BlockSize) + 2
	s := f.open(int64(blocks)*tier.BlockSize, tier.AnyMemory)
	b, err := 0, error(nil)
	for ; b < blocks; b++ {
		if err = s.Reserve(f.Context(), b); err != nil {
			break
		}
	}
	if !errors.Is(err, tier.ErrBudget) {
		f.Fatalf("reserving block %d of a budget of %d bytes: %v, want ErrBudget", b, limit, err)
	}
	if used := f.tier.Usage().Used; used > limit {
		f.Errorf("%d bytes used of %d", used, limit)
	}
	if int64(b) < limit/tier.BlockSize {
		f.Errorf("only %d blocks fit a budget of %d bytes", b, limit)
	}
	s.Drop(0)
	f.ok(s.Reserve(f.Context(), b), "reserve after drop")
	if err := s.Reserve(f.Context(), 0); !errors.Is(err, tier.ErrBudget) {
		f.Errorf("reserve when full again: %v, want ErrBudget", err)
	}
}

func concurrentBlocks(f *fixture) {
	const workers, rounds = 8, 12
	placements := []tier.Placement{tier.AnyMemory, tier.HostVisible, tier.DeviceLocal}
	s := f.open(workers*tier.BlockSize, placements[0])
	other := f.open(workers*tier.BlockSize, placements[1])
	var wg sync.WaitGroup
	for w := range workers {
		src, dst := f.memory(tier.BlockSize), f.memory(tier.BlockSize)
		wg.Go(func() {
			if err := hammer(f.Context(), s, other, w, rounds, src, dst); err != nil {
				f.Errorf("block %d: %v", w, err)
			}
			f.intact(src)
			f.intact(dst)
		})
	}
	wg.Wait()
	f.ok(s.Close(), "close")
	f.ok(other.Close(), "close")
}

// hammer works on one block of two spaces.
func hammer(ctx context.Context, s, other tier.Space, b, rounds int, src, dst tier.Memory) error {
	for round := range rounds {
		for _, s := range []tier.Space{s, other} {
			if err := s.Reserve(ctx, b); err != nil {
				return err
			}
		}
		pattern(src.Bytes(), uint64(b), uint64(round))
		if err := s.Write(ctx, b, 0, src); err != nil {
			return err
		}
		if err := other.Copy(ctx, b, 0, s, b, 0, tier.BlockSize); err != nil {
			return err
		}
		off := int64(round)
		if err := other.Fill(ctx, b, off, tier.BlockSize/2, uint32(b)); err != nil {
			return err
		}
		if err := other.Read(ctx, b, 0, dst); err != nil {
			return err
		}
		fill(src.Bytes()[off:off+tier.BlockSize/2], uint32(b))
		if i := first(dst.Bytes(), src.Bytes()); i >= 0 {
			return fmt.Errorf("round %d: byte %d is %#x, want %#x", round, i, dst.Bytes()[i], src.Bytes()[i])
		}
		if round%3 == b%3 {
			s.Drop(b)
			other.Drop(b)
		}
	}
	return nil
}

func concurrentReads(f *fixture) {
	s := f.reserved(tier.BlockSize, tier.AnyMemory)
	src := f.memory(tier.BlockSize)
	pattern(src.Bytes(), 3, 0)
	f.ok(s.Write(f.Context(), 0, 0, src), "write")
	var wg sync.WaitGroup
	for w := range int64(6) {
		dst := f.memory(tier.BlockSize)
		wg.Go(func() {
			for round := range int64(6) {
				piece := dst.Slice(0, tier.BlockSize-w*1001-round)
				if err := s.Read(f.Context(), 0, w*1000+round, piece); err != nil {
					f.Errorf("read: %v", err)
				} else if i := first(piece.Bytes(), src.Bytes()[w*1000+round:]); i >= 0 {
					f.Errorf("reader %d: byte %d differs", w, i)
				}
			}
			f.intact(dst)
		})
	}
	wg.Wait()
}

func cancelled(f *fixture) {
	ctx, cancel := context.WithCancel(f.Context())
	s := f.reserved(2*tier.BlockSize, tier.AnyMemory)
	m, back := f.memory(100), f.memory(100)
	pattern(m.Bytes(), 1, 0)
	f.ok(s.Write(ctx, 0, 0, m), "write")
	cancel()
	copy(back.Bytes(), m.Bytes())
	for what, err := range map[string]error{
		"write": s.Write(ctx, 0, 0, m),
		"read":  s.Read(ctx, 1, 0, back),
		"fill":  s.Fill(ctx, 0, 0, 100, 0),
		"copy":  s.Copy(ctx, 0, 0, s, 1, 0, 100),
	} {
		if !errors.Is(err, context.Canceled) {
			f.Errorf("%s with a cancelled context: %v", what, err)
		}
	}
	if i := first(back.Bytes(), m.Bytes()); i >= 0 {
		f.Error("a cancelled read wrote to memory")
	}
	f.holds(s, 0, 0, m.Bytes(), back, "after cancelled calls")
}
