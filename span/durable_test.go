// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/tier/host"
)

// onDisk is a store with a data directory.
type onDisk struct {
	*span.Store
	files *disk.Tier
	ram   *host.Tier
}

func openData(t testing.TB, dir string, budget int64) onDisk {
	t.Helper()
	files, err := disk.Open(t.Context(), disk.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ram := host.New(budget, nil)
	st, err := span.NewStore(span.Config{Host: ram, Disk: files})
	if err != nil {
		t.Fatal(err)
	}
	return onDisk{st, files, ram}
}

func (st onDisk) close(t testing.TB) {
	t.Helper()
	if err := errors.Join(st.Close(), st.files.Close(), st.ram.Close()); err != nil {
		t.Error(err)
	}
	if u := st.ram.Usage(); u.Used != 0 {
		t.Errorf("%d bytes of RAM still counted after Close", u.Used)
	}
}

// killed returns a directory as kill -9 at this instant would leave dir.
// Nothing may be written to it meanwhile.
func killed(t testing.TB, dir string) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return copied
}

// after opens what killed returned and looks at it.
func after(t testing.TB, dir string, look func(st onDisk)) {
	t.Helper()
	st := openData(t, killed(t, dir), 64<<20)
	defer st.close(t)
	look(st)
}

func (st onDisk) open(t testing.TB, name string) *span.Span {
	t.Helper()
	s, err := st.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (st onDisk) alloc(t testing.TB, info span.Info) *span.Span {
	t.Helper()
	s, err := st.Alloc(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var through = span.Info{Name: "s", Size: 3*block + 100, Tier: coherency.Host, Home: coherency.Disk, Policy: coherency.WriteThrough}

func TestDurable(t *testing.T) {
	for name, info := range map[string]span.Info{
		"through": through,
		"back":    {Name: "s", Size: 3*block + 100, Tier: coherency.Host, Home: coherency.Disk},
		"on disk": {Name: "s", Size: 3*block + 100, Tier: coherency.Disk, Home: coherency.Disk},
		"all":     {Name: "s", Size: 3*block + 100, Tier: coherency.Host, Home: coherency.Disk, Policy: coherency.WriteAll},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			st := openData(t, dir, 64<<20)
			s := st.alloc(t, info)
			want := pattern(int(info.Size), 1)
			write(t, s, 0, want)
			copy(want[block-3:], "over the edge of a block")
			write(t, s, block-3, []byte("over the edge of a block"))
			if info.Policy == coherency.WriteBack && info.Tier != coherency.Disk {
				if epoch, err := st.Sync(t.Context()); err != nil || epoch != 1 {
					t.Fatalf("Sync: %d, %v", epoch, err)
				}
			}
			if stat, err := s.Stat(); err != nil || stat.Debt != 0 || stat.Tiers[coherency.Disk].Current != 4 {
				t.Fatalf("%+v, %v", stat, err)
			}
			version, id := s.Version(), s.ID
			look := func(st onDisk) {
				s := st.open(t, "s")
				if !bytes.Equal(read(t, s, 0, info.Size), want) {
					t.Error("other bytes")
				}
				stat, err := s.Stat()
				if err != nil || stat.Version != version || s.ID != id || s.Policy != info.Policy || s.Tier != info.Tier || stat.Lost != 0 {
					t.Errorf("version %d, want %d; %+v, %v", stat.Version, version, stat, err)
				}
			}
			after(t, dir, look)
			st.close(t)
			st = openData(t, dir, 64<<20)
			look(st)
			if err := st.open(t, "s").Free(); err != nil {
				t.Error(err)
			}
			after(t, dir, func(st onDisk) {
				if list := st.List(); len(list) != 0 {
					t.Errorf("a span that was freed is back: %v", list[0].Label())
				}
			})
			st.close(t)
		})
	}
}

// owing calls f while the span's blocks owe Disk something, and cannot pay.
func owing(t *testing.T, s *span.Span, change func(), f func()) {
	t.Helper()
	for range 100 {
		change()
		found := false
		lent, err := s.Lend(t.Context(), 0, 10, func() {}, func([]byte) {
			stat, err := s.Stat()
			if found = err == nil && stat.Debt > 0; found {
				f()
			}
		})
		if err != nil || !lent {
			t.Fatalf("Lend: %v, %v", lent, err)
		}
		if found {
			return
		}
	}
	t.Fatal("what was written back later was always written back at once")
}

// A version that was acknowledged and not at home when the daemon died is known
// to be lost.
func TestWriteBackIsNotRolledBackSilently(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	defer st.close(t)
	s := st.alloc(t, span.Info{Name: "s", Size: 2 * block, Tier: coherency.Host, Home: coherency.Disk})
	write(t, s, 0, pattern(2*block, 1))
	if _, err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	saved := 0
	owing(t, s, func() {
		if _, err := s.Sync(t.Context()); err != nil { // what the attempt before wrote
			t.Fatal(err)
		}
		saved++
		write(t, s, 5, []byte{byte(saved)})
	}, func() {
		after(t, dir, func(st onDisk) {
			s := st.open(t, "s")
			if _, err := s.Sync(t.Context()); !errors.Is(err, coherency.ErrDataLoss) {
				t.Errorf("a barrier over what is lost: %v", err)
			}
			m := memory(t, make([]byte, 10))
			var loss *coherency.DataLossError
			if err := s.Read(t.Context(), 0, m); !errors.As(err, &loss) || loss.Block != 0 || loss.Survivor == 0 || loss.Lost <= loss.Survivor {
				t.Fatalf("reading what was lost: %v", err)
			}
			if !bytes.Equal(read(t, s, block, block), pattern(2*block, 1)[block:]) {
				t.Error("the other block changed")
			}
			before := s.Version()
			if _, err := s.Accept(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := read(t, s, 0, 10); got[5] != byte(saved-1) && saved > 1 {
				t.Errorf("survived: %v", got)
			}
			if stat, err := s.Stat(); err != nil || stat.Version <= before || stat.Tiers[coherency.Disk].Highest <= loss.Lost {
				t.Errorf("%+v, %v; lost was %d", stat, err, loss.Lost)
			}
		})
	})
}

// What was accepted after a loss stays accepted.
func TestAcceptIsDurable(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	defer st.close(t)
	s := st.alloc(t, span.Info{Name: "s", Size: block, Tier: coherency.Host, Home: coherency.Disk})
	owing(t, s, func() { write(t, s, 5, []byte("never saved")) }, func() {
		crashed := killed(t, dir)
		st := openData(t, crashed, 64<<20)
		s := st.open(t, "s")
		if _, err := s.Accept(t.Context()); err != nil {
			t.Fatal(err)
		}
		after(t, crashed, func(st onDisk) {
			s := st.open(t, "s")
			read(t, s, 0, block) // fails the test if it fails
			if stat, err := s.Stat(); err != nil || stat.Lost != 0 {
				t.Errorf("%+v, %v", stat, err)
			}
		})
		st.close(t)
	})
}

// A span is there after a crash once it is published, whole, and then the one
// that had its name is not.
func TestPublishIsDurable(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	defer st.close(t)
	old := st.alloc(t, through)
	write(t, old, 0, pattern(int(through.Size), 1))
	for _, policy := range []coherency.WritePolicy{coherency.WriteThrough, coherency.WriteBack} {
		info := through
		info.Policy = policy
		next, err := st.Draft(t.Context(), info)
		if err != nil {
			t.Fatal(err)
		}
		want := pattern(int(info.Size), 5+uint64(policy))
		write(t, next, 0, want)
		if _, err := next.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		after(t, dir, func(st onDisk) {
			if s := st.open(t, "s"); s.ID != old.ID {
				t.Error("the draft has the name")
			}
			if list := st.List(); len(list) != 1 {
				t.Errorf("%d spans, want the published one", len(list))
			}
		})
		if err := st.Publish(t.Context(), next, true); err != nil {
			t.Fatal(err)
		}
		after(t, dir, func(st onDisk) {
			s := st.open(t, "s")
			if s.ID != next.ID || !bytes.Equal(read(t, s, 0, info.Size), want) {
				t.Error("the name does not find the new span")
			}
			if list := st.List(); len(list) != 1 {
				t.Errorf("%d spans, want one", len(list))
			}
		})
		old = next
	}
}

// A batch is there as a whole or not at all, for readers and after a crash.
func TestBatch(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	defer st.close(t)
	s := st.alloc(t, through)
	size := int(through.Size)
	now := pattern(size, 1)
	write(t, s, 0, now)
	check := func(what string) {
		t.Helper()
		if !bytes.Equal(read(t, s, 0, int64(size)), now) {
			t.Errorf("%s: other bytes", what)
		}
		after(t, dir, func(st onDisk) {
			if !bytes.Equal(read(t, st.open(t, "s"), 0, int64(size)), now) {
				t.Errorf("%s: other bytes after a crash", what)
			}
		})
	}
	next := bytes.Clone(now)
	put := func(b *span.Batch, off int, p []byte) {
		t.Helper()
		if err := b.Write(t.Context(), int64(off), memory(t, p)); err != nil {
			t.Fatal(err)
		}
		copy(next[off:], p)
	}
	fill := func(b *span.Batch, seed uint64) {
		t.Helper()
		put(b, 10, pattern(20, seed))               // small, twice in a block
		put(b, 25, pattern(30, seed+1))             // over the end of the one before
		put(b, block+5, pattern(200_000, seed+2))   // large
		put(b, 2*block, pattern(block+100, seed+3)) // whole, and the end
	}

	b := s.Begin()
	fill(b, 10)
	check("before Commit")
	b.Discard()
	next = bytes.Clone(now)
	check("after Discard")

	b = s.Begin()
	fill(b, 20)
	version := s.Version()
	done, err := b.Commit(t.Context())
	if err != nil || done.Span != version+1 || !done.Holders.Has(coherency.Disk) {
		t.Fatalf("Commit: %+v, %v", done, err)
	}
	now = bytes.Clone(next)
	check("after Commit")

	// What others write while it comes in is kept where it is not overwritten.
	b = s.Begin()
	fill(b, 30)
	write(t, s, block+300_000, []byte("meanwhile"))
	copy(next[block+300_000:], "meanwhile")
	if _, err := b.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	now = bytes.Clone(next)
	check("with others")

	// A conflict in one block leaves all as it was.
	sh, err := s.OpenShadow(0, int64(size), true, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	var versions []uint64
	if err := s.Versions(0, int64(size), func(v uint64) { versions = append(versions, v) }); err != nil {
		t.Fatal(err)
	}
	write(t, s, block+7, []byte("theirs"))
	copy(now[block+7:], "theirs")
	b = sh.Begin()
	for i := range 3 {
		if err := b.Flush(t.Context(), i, versions[i], []span.Run{{Offset: 7, Length: 4}}, memory(t, []byte("mine"))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Commit(t.Context()); !errors.Is(err, coherency.ErrConflict) {
		t.Fatalf("Commit over others' bytes: %v", err)
	}
	check("after a conflict")

	b = s.Begin()
	put(b, block, []byte("x"))
	if err := b.Write(t.Context(), 0, memory(t, []byte("x"))); !errors.Is(err, span.ErrInvalid) {
		t.Errorf("going back: %v", err)
	}
	b.Discard()
}

// Spans four times as large as RAM, durable ones and others, keep their bytes,
// and RAM keeps its budget.
func TestMoreThanRAM(t *testing.T) {
	const budget = 4 << 20
	st := openData(t, t.TempDir(), budget)
	defer st.close(t)
	type model struct {
		*span.Span
		want []byte
	}
	var spans []model
	for _, info := range []span.Info{
		{Name: "a", Size: 8*block + 1, Tier: coherency.Host, Home: coherency.Host},
		{Name: "b", Size: 4 * block, Tier: coherency.Host, Home: coherency.Disk},
		{Name: "c", Size: 4 * block, Tier: coherency.Host, Home: coherency.Disk, Policy: coherency.WriteThrough},
	} {
		spans = append(spans, model{st.alloc(t, info), make([]byte, info.Size)})
	}
	pinned, err := spans[0].Pin(t.Context(), coherency.Host, 0, block)
	if err != nil || pinned.Changed != 1 {
		t.Fatalf("%+v, %v", pinned, err)
	}
	r := rand.New(rand.NewPCG(7, 8))
	for i := range 400 {
		m := spans[r.IntN(len(spans))]
		off := r.IntN(len(m.want))
		n := 1 + r.IntN(min(block, len(m.want)-off))
		switch what := r.IntN(20); {
		case what < 9:
			p := pattern(n, uint64(i))
			write(t, m.Span, int64(off), p)
			copy(m.want[off:], p)
		case what < 19:
			if !bytes.Equal(read(t, m.Span, int64(off), int64(n)), m.want[off:off+n]) {
				t.Fatalf("step %d: %s [%d, +%d): other bytes", i, m.Name, off, n)
			}
		default:
			if _, err := st.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if u := st.ram.Usage(); u.Used > budget {
			t.Fatalf("step %d: %d bytes of RAM", i, u.Used)
		}
	}
	if stat, err := spans[0].Stat(); err != nil || stat.Tiers[coherency.Host].Pinned != 1 {
		t.Fatalf("%+v, %v", stat, err)
	}
	for _, m := range spans {
		if !bytes.Equal(read(t, m.Span, 0, m.Size), m.want) {
			t.Errorf("%s: other bytes", m.Name)
		}
	}
}

// When a barrier returns home has every version that was committed before it,
// whoever writes meanwhile.
func TestBarrier(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	defer st.close(t)
	const n = 6
	var spans [n]*span.Span
	for i := range spans {
		spans[i] = st.alloc(t, span.Info{Name: string(rune('a' + i)), Size: block, Tier: coherency.Host, Home: coherency.Disk})
	}
	home := func(s *span.Span) uint64 {
		stat, err := s.Stat()
		if err != nil {
			t.Error(err)
		}
		return stat.Tiers[coherency.Disk].Highest
	}
	committed := func(s *span.Span) (v uint64) {
		if err := s.Versions(0, 1, func(version uint64) { v = version }); err != nil {
			t.Error(err)
		}
		return v
	}
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for i := range 4 {
		r := rand.New(rand.NewPCG(uint64(i), 3))
		work.Go(func() {
			m := memory(t, []byte{0}) // one: a slow machine writes often before the last barrier
			for ctx.Err() == nil {
				m.Bytes()[0] = byte(r.Uint32())
				if _, err := spans[r.IntN(n)].Write(ctx, r.Int64N(block), m, false); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
		})
	}
	last := uint64(0)
	for range 30 {
		var before [n]uint64
		for i, s := range spans {
			before[i] = committed(s)
		}
		epoch, err := st.Sync(t.Context())
		if err != nil || epoch <= last {
			t.Fatalf("epoch %d after %d, %v", epoch, last, err)
		}
		last = epoch
		for i, s := range spans {
			if v := home(s); v < before[i] {
				t.Fatalf("home has version %d of span %d: %d was committed before the barrier", v, i, before[i])
			}
		}
	}
	stop()
	work.Wait()
	after(t, dir, func(st onDisk) {
		if epoch, err := st.Sync(t.Context()); err != nil || epoch != last+1 {
			t.Errorf("epoch %d after %d and a crash, %v", epoch, last, err)
		}
	})
}

// A block whose bytes are not those that were written fails, and only it.
func TestCorruptBlock(t *testing.T) {
	dir := t.TempDir()
	st := openData(t, dir, 64<<20)
	s := st.alloc(t, through)
	want := pattern(int(through.Size), 1)
	write(t, s, 0, want)
	st.close(t)
	blocks := filepath.Join(dir, "blocks")
	data, err := os.ReadFile(blocks)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, want[block:block+64])
	data[at+5] ^= 1
	if err := os.WriteFile(blocks, data, 0o600); err != nil {
		t.Fatal(err)
	}
	st = openData(t, dir, 64<<20)
	defer st.close(t)
	s = st.open(t, "s")
	m := memory(t, make([]byte, 10))
	var placed *span.Error
	if err := s.Read(t.Context(), block, m); !errors.Is(err, tier.ErrCorrupt) || !errors.As(err, &placed) || placed.Span != "s" {
		t.Errorf("reading a flipped bit: %v", err)
	}
	if !bytes.Equal(read(t, s, 0, block), want[:block]) {
		t.Error("another block is not as it was")
	}
	write(t, s, block, pattern(block, 9)) // whole
	if !bytes.Equal(read(t, s, block, block), pattern(block, 9)) {
		t.Error("a new version does not mend it")
	}
}

// A device that dies under a read has lost nothing that Disk holds too.
func TestReadOfADyingDeviceFindsTheOtherCopy(t *testing.T) {
	files, err := disk.Open(t.Context(), disk.Config{Dir: filepath.Join(t.TempDir(), "data")})
	if err != nil {
		t.Fatal(err)
	}
	ram, dev := host.New(64<<20, nil), &device{Tier: host.New(64<<20, nil)}
	st, err := span.NewStore(span.Config{Host: ram, Others: []tier.Tier{dev}, Disk: files})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(st.Close(), files.Close(), ram.Close(), dev.Tier.Close()); err != nil {
			t.Error(err)
		}
	}()
	f := fixture{st, dev}
	kept := alloc(t, f, span.Info{Name: "kept", Size: block, Tier: coherency.VRAM, Home: coherency.Disk, Policy: coherency.WriteThrough})
	alone := alloc(t, f, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	for _, s := range []*span.Span{kept, alone} {
		write(t, s, 0, pattern(100, 1))
	}
	dev.failReads(tier.ErrLost)
	if got := read(t, kept, 0, 100); !bytes.Equal(got, pattern(100, 1)) {
		t.Error("the other copy is wrong")
	}
	if err := alone.Read(t.Context(), 0, memory(t, make([]byte, 100))); !errors.Is(err, coherency.ErrDataLoss) {
		t.Errorf("read of what the device alone had: %v", err)
	}
}

// A version that the policy wanted on Disk, and that a full one refused, is known
// to be lost after a crash.
func TestDebtIsNotRolledBackSilently(t *testing.T) {
	dir := t.TempDir()
	files, err := disk.Open(t.Context(), disk.Config{Dir: dir, Budget: 2 * block})
	if err != nil {
		t.Fatal(err)
	}
	ram := host.New(64<<20, nil)
	store, err := span.NewStore(span.Config{Host: ram, Disk: files})
	if err != nil {
		t.Fatal(err)
	}
	st := onDisk{store, files, ram}
	s := st.alloc(t, through)
	write(t, s, 0, pattern(2*block, 1)) // all that fits
	_, err = s.Write(t.Context(), 2*block, memory(t, pattern(block, 2)), false)
	if !errors.Is(err, span.ErrDebt) || !errors.Is(err, tier.ErrBudget) {
		t.Fatalf("a write that does not fit: %v", err)
	}
	if !bytes.Equal(read(t, s, 2*block, block), pattern(block, 2)) {
		t.Error("what is owed is not what is read")
	}
	after(t, dir, func(st onDisk) {
		s := st.open(t, "s")
		if !bytes.Equal(read(t, s, 0, 2*block), pattern(2*block, 1)) {
			t.Error("other bytes")
		}
		if err := s.Read(t.Context(), 2*block, memory(t, make([]byte, 10))); !errors.Is(err, coherency.ErrDataLoss) {
			t.Errorf("reading what was owed: %v", err)
		}
	})
	if err := st.Close(); !errors.Is(err, tier.ErrBudget) {
		t.Errorf("a stop that leaves debts: %v", err)
	}
	if err := errors.Join(files.Close(), ram.Close()); err != nil {
		t.Error(err)
	}
}
