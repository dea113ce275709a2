// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const block = tier.BlockSize

// device is a device's tier whose memory is RAM, so that tests can make it
// fail and die at will. The real one is tested with the server.
type device struct {
	*host.Tier
	broken  atomic.Bool                  // writes fail
	onRead  atomic.Pointer[func() error] // called before reads
	onWrite atomic.Pointer[func() error] // called before writes
}

func run(hook *atomic.Pointer[func() error]) error {
	if f := hook.Load(); f != nil {
		return (*f)()
	}
	return nil
}

var errBroken = errors.New("device is broken")

func (d *device) Kind() coherency.Tier { return coherency.VRAM }

func (d *device) Open(_ context.Context, name string, size int64, _ tier.Placement) (tier.Space, error) {
	s, err := d.OpenSpace(name, size)
	return &deviceSpace{s, d}, err
}

type deviceSpace struct {
	*host.Space
	dev *device
}

func (s *deviceSpace) Write(ctx context.Context, b int, off int64, src tier.Memory) error {
	if s.dev.broken.Load() {
		return errBroken
	}
	if err := run(&s.dev.onWrite); err != nil {
		return err
	}
	return s.Space.Write(ctx, b, off, src)
}

func (s *deviceSpace) Read(ctx context.Context, b int, off int64, dst tier.Memory) error {
	if err := run(&s.dev.onRead); err != nil {
		return err
	}
	return s.Space.Read(ctx, b, off, dst)
}

func (s *deviceSpace) Copy(ctx context.Context, b int, off int64, src tier.Space, sb int, soff, n int64) error {
	return s.Space.Copy(ctx, b, off, src.(*deviceSpace).Space, sb, soff, n)
}

type fixture struct {
	*span.Store
	dev *device
}

func newStore(t testing.TB) fixture {
	t.Helper()
	ram := host.New(256<<20, nil)
	dev := &device{Tier: host.New(64<<20, nil)}
	st, err := span.NewStore(span.Config{Host: ram, Others: []tier.Tier{dev}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		if u := ram.Usage(); u.Used > 256<<20/8 {
			t.Errorf("%d bytes of RAM still in use", u.Used)
		}
		ram.Close()
		dev.Tier.Close()
		if u := ram.Usage(); u.Used != 0 {
			t.Errorf("%d bytes of RAM still counted after Close", u.Used)
		}
	})
	return fixture{st, dev}
}

func alloc(t testing.TB, st fixture, info span.Info) *span.Span {
	t.Helper()
	s, err := st.Alloc(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// memory returns p as memory that tiers can reach.
func memory(t testing.TB, p []byte) tier.Memory {
	t.Helper()
	r, err := memfd.Create("test", max(int64(len(p)), 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	memfd.Copy(r.Bytes(), p)
	return tier.Memory{Region: r, Len: int64(len(p))}
}

func write(t testing.TB, s *span.Span, off int64, p []byte) {
	t.Helper()
	if _, err := s.Write(t.Context(), off, memory(t, p), false); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, s *span.Span, off, n int64) []byte {
	t.Helper()
	m := memory(t, make([]byte, n))
	if err := s.Read(t.Context(), off, m); err != nil {
		t.Fatal(err)
	}
	return m.Bytes()
}

func pattern(n int, seed uint64) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func openShadow(t testing.TB, s *span.Span) *span.Shadow {
	t.Helper()
	sh, err := s.OpenShadow(0, s.Size, true, nothing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sh.Close)
	return sh
}

var tiers = []coherency.Tier{coherency.Host, coherency.VRAM}

func TestReadBackAcrossBlocks(t *testing.T) {
	st := newStore(t)
	for _, where := range tiers {
		for _, policy := range []coherency.WritePolicy{coherency.WriteBack, coherency.WriteThrough, coherency.WriteAll} {
			t.Run(fmt.Sprintf("%s/%s", where, policy), func(t *testing.T) {
				size := int64(3*block + 777)
				s := alloc(t, st, span.Info{Size: size, Tier: where, Home: coherency.Host, Policy: policy})
				want := make([]byte, size)
				if got := read(t, s, 0, size); !bytes.Equal(got, want) {
					t.Fatal("a new span does not read as zeros")
				}
				for i, r := range []struct{ off, n int64 }{{5, 100}, {block - 3, 7}, {block, block}, {100, 2*block + 50}, {size - 1, 1}} {
					p := pattern(int(r.n), uint64(i))
					copy(want[r.off:], p)
					write(t, s, r.off, p)
					if got := read(t, s, 0, size); !bytes.Equal(got, want) {
						t.Fatalf("after the write of [%d, +%d) the span differs", r.off, r.n)
					}
				}
				if err := s.Free(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// A region given back holds old bytes: a new span must not show them.
func TestReusedMemoryReadsAsZeros(t *testing.T) {
	st := newStore(t)
	for range 3 {
		s := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.Host, Home: coherency.Host})
		if got := read(t, s, 0, 2*block); !bytes.Equal(got, make([]byte, 2*block)) {
			t.Fatal("a new span shows another's bytes")
		}
		d, err := s.MapDirect(t.Context(), 0, 2*block, false, nothing)
		if err != nil {
			t.Fatal(err)
		}
		f, size, err := d.File()
		if err != nil {
			t.Fatal(err)
		}
		seen := make([]byte, size)
		if _, err := f.ReadAt(seen, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(seen, make([]byte, size)) {
			t.Fatal("a direct mapping of a new span shows another's bytes")
		}
		f.Close()
		d.Close(t.Context(), false)
		s.Free()
		s = alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.Host, Home: coherency.Host})
		write(t, s, 0, pattern(2*block, 9))
		s.Free()
	}
}

func TestAllocRefuses(t *testing.T) {
	st := newStore(t)
	alloc(t, st, span.Info{Name: "taken", Size: 1, Tier: coherency.Host, Home: coherency.Host})
	for name, c := range map[string]struct {
		info span.Info
		want error
	}{
		"zero size":     {span.Info{Size: 0, Tier: coherency.Host, Home: coherency.Host}, span.ErrInvalid},
		"negative size": {span.Info{Size: -1, Tier: coherency.Host, Home: coherency.Host}, span.ErrInvalid},
		"absurd size":   {span.Info{Size: 1 << 62, Tier: coherency.Host, Home: coherency.Host}, span.ErrInvalid},
		"name taken":    {span.Info{Name: "taken", Size: 1, Tier: coherency.Host, Home: coherency.Host}, span.ErrExists},
		"bad name":      {span.Info{Name: "a\nb", Size: 1, Tier: coherency.Host, Home: coherency.Host}, span.ErrInvalid},
		"tier absent":   {span.Info{Size: 1, Tier: coherency.Disk, Home: coherency.Host}, tier.ErrAbsent},
		"home absent":   {span.Info{Size: 1, Tier: coherency.Host, Home: coherency.Disk}, tier.ErrAbsent},
		"bad policy":    {span.Info{Size: 1, Tier: coherency.Host, Home: coherency.Host, Policy: 77}, span.ErrInvalid},
		"over budget":   {span.Info{Size: 300 << 20, Tier: coherency.Host, Home: coherency.Host}, tier.ErrBudget},
	} {
		if _, err := st.Alloc(t.Context(), c.info); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
	if u, _ := st.Usage(coherency.Host); u.Used > block {
		t.Errorf("%d bytes are in use after failed allocations", u.Used)
	}
	if n := len(st.List()); n != 1 {
		t.Errorf("%d spans after failed allocations, want 1", n)
	}
}

func TestRanges(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 100, Tier: coherency.Host, Home: coherency.Host})
	m := memory(t, make([]byte, 50))
	for _, off := range []int64{-1, 51, 100, 1 << 62, -1 << 62} {
		if _, err := s.Write(t.Context(), off, m, false); !errors.Is(err, span.ErrRange) {
			t.Errorf("write at %d: %v", off, err)
		}
		if err := s.Read(t.Context(), off, m); !errors.Is(err, span.ErrRange) {
			t.Errorf("read at %d: %v", off, err)
		}
		if _, err := s.Fill(t.Context(), off, 50, 1); !errors.Is(err, span.ErrRange) {
			t.Errorf("fill at %d: %v", off, err)
		}
		if _, err := s.MapDirect(t.Context(), off, 50, true, nothing); !errors.Is(err, span.ErrRange) {
			t.Errorf("map at %d: %v", off, err)
		}
	}
	if _, err := s.Copy(t.Context(), 0, s, 20, 50); !errors.Is(err, span.ErrInvalid) {
		t.Errorf("overlapping copy: %v", err)
	}
}

func TestFillAndCopyAtAnyAlignment(t *testing.T) {
	st := newStore(t)
	for _, to := range tiers {
		for _, from := range tiers {
			t.Run(fmt.Sprintf("%s from %s", to, from), func(t *testing.T) {
				const size = 2*block + 99
				dst := alloc(t, st, span.Info{Size: size, Tier: to, Home: to})
				src := alloc(t, st, span.Info{Size: size, Tier: from, Home: from})
				defer dst.Free()
				defer src.Free()
				want, source := make([]byte, size), make([]byte, size)
				for i, r := range []struct{ off, n int64 }{{0, size}, {3, 2 * block}, {block - 1, 2}, {7, 1}} {
					word := 0x12345678 * uint32(i+1)
					if _, err := src.Fill(t.Context(), r.off, r.n, word); err != nil {
						t.Fatal(err)
					}
					var w [4]byte
					binary.LittleEndian.PutUint32(w[:], word)
					for j := range r.n {
						source[r.off+j] = w[j%4]
					}
				}
				if got := read(t, src, 0, size); !bytes.Equal(got, source) {
					t.Fatal("fill went wrong")
				}
				for _, r := range []struct{ off, srcOff, n int64 }{{0, 0, size}, {5, 900, block}, {block + 3, 1, block - 7}, {1, 2, 3}} {
					done, err := dst.Copy(t.Context(), r.off, src, r.srcOff, r.n)
					if err != nil {
						t.Fatal(err)
					}
					if done.Device != (to == coherency.VRAM && from == coherency.VRAM) {
						t.Errorf("copy to %s: device is %v", to, done.Device)
					}
					copy(want[r.off:r.off+r.n], source[r.srcOff:])
				}
				if got := read(t, dst, 0, size); !bytes.Equal(got, want) {
					t.Fatal("copy went wrong")
				}
				if _, err := dst.Copy(t.Context(), 0, dst, block, 1000); err != nil {
					t.Fatal(err)
				}
				copy(want[:1000], want[block:])
				if _, err := dst.Copy(t.Context(), 5000, dst, 100, 1000); err != nil {
					t.Fatal(err)
				}
				copy(want[5000:6000], want[100:])
				if got := read(t, dst, 0, size); !bytes.Equal(got, want) {
					t.Fatal("copy within the span went wrong")
				}
			})
		}
	}
}

// The document's two-state machine, with what facts C3 rows 14 to 16 correct.
func TestUploadDownloadSyncRelease(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 100, Tier: coherency.Host, Home: coherency.Host})
	state := func(want coherency.State) {
		t.Helper()
		got, err := s.State()
		if err != nil || got != want {
			t.Fatalf("state is %v (%v), want %v", got, err, want)
		}
	}
	write(t, s, 0, []byte("host 1"))
	state(coherency.HostOnly)
	if _, err := s.Upload(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	state(coherency.Synced)
	write(t, s, 0, []byte("host 2"))
	state(coherency.HostDirty)
	if _, err := s.Download(t.Context(), false); !errors.Is(err, coherency.ErrConflict) {
		t.Fatalf("download over host edits: %v", err)
	}
	if got := string(read(t, s, 0, 6)); got != "host 2" {
		t.Fatalf("refused download changed the host: %q", got)
	}
	if _, err := s.Download(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if got := string(read(t, s, 0, 6)); got != "host 1" {
		t.Fatalf("forced download: %q", got)
	}
	state(coherency.Synced)
	for i, sync := range []func(context.Context) (uint64, error){s.Sync, st.Sync} {
		write(t, s, 0, []byte("host 3"))
		state(coherency.HostDirty)
		if epoch, err := sync(t.Context()); err != nil || epoch != uint64(i+1) {
			t.Fatalf("epoch %d, %v", epoch, err)
		}
		state(coherency.Synced)
	}
	if err := s.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	state(coherency.HostOnly)
	if u, _ := st.Usage(coherency.VRAM); u.Used != 0 {
		t.Errorf("%d bytes of device memory in use after release", u.Used)
	}
	if got := string(read(t, s, 0, 6)); got != "host 3" {
		t.Fatalf("after release: %q", got)
	}

	d := alloc(t, st, span.Info{Size: 100, Tier: coherency.VRAM, Home: coherency.Host})
	write(t, d, 0, []byte("device"))
	if _, err := d.Download(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	write(t, d, 0, []byte("edited"))
	if got, _ := d.State(); got != coherency.DeviceDirty {
		t.Fatalf("state is %v", got)
	}
	if _, err := d.Upload(t.Context(), false); !errors.Is(err, coherency.ErrConflict) {
		t.Fatalf("upload over device edits: %v", err)
	}
	if err := d.Release(t.Context()); err != nil { // writes back first
		t.Fatal(err)
	}
	if got := string(read(t, d, 0, 6)); got != "edited" {
		t.Fatalf("release lost the device's edits: %q", got)
	}
}

// A policy never claims what did not happen (facts C3 rows 1 and 2), and its
// debt is paid when the tier works again.
func TestPolicyDebt(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.VRAM, Policy: coherency.WriteThrough})
	sh := openShadow(t, s)
	flush := func() (span.Committed, error) {
		return sh.Flush(t.Context(), 0, span.AnyVersion, []span.Run{{Offset: 0, Length: 4}}, memory(t, []byte("data")), false)
	}
	done, err := flush()
	if err != nil || done.Holders != coherency.MaskOf(coherency.Host, coherency.VRAM) {
		t.Fatalf("flush: held by %v, %v", done.Holders, err)
	}
	st.dev.broken.Store(true)
	done, err = flush()
	if !errors.Is(err, span.ErrDebt) || !errors.Is(err, errBroken) {
		t.Fatalf("flush to a broken home: %v", err)
	}
	if done.Holders != coherency.MaskOf(coherency.Host) || done.Version != 2 {
		t.Fatalf("flush to a broken home: version %d held by %v", done.Version, done.Holders)
	}
	if stat, _ := s.Stat(); stat.Debt != 1 || stat.LastErr == nil {
		t.Fatalf("stat shows debt %d, %v", stat.Debt, stat.LastErr)
	}
	if _, err := st.Sync(t.Context()); !errors.Is(err, errBroken) {
		t.Fatalf("barrier over a broken home: %v", err)
	}
	st.dev.broken.Store(false)
	before, err := st.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stat, _ := s.Stat(); stat.Debt != 0 {
		t.Fatal("debt after a barrier")
	}
	if after, _ := st.Sync(t.Context()); after != before+1 {
		t.Errorf("epochs %d, %d", before, after)
	}
}

// What only a dead tier had is lost, named, and never silently rolled back.
func TestLoss(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.VRAM, Home: coherency.Host})
	write(t, s, 0, []byte("old"))
	if _, err := st.Sync(t.Context()); err != nil { // home holds version 1
		t.Fatal(err)
	}
	write(t, s, 0, []byte("new"))
	write(t, s, block, []byte("only"))
	st.Lose(coherency.VRAM)
	m := memory(t, make([]byte, 3))
	err := s.Read(t.Context(), 0, m)
	var loss *coherency.DataLossError
	if !errors.As(err, &loss) || loss.Lost != 2 || loss.Survivor != 1 {
		t.Fatalf("read of a lost block: %v", err)
	}
	if _, err := s.Write(t.Context(), 1, m, false); !errors.Is(err, coherency.ErrDataLoss) {
		t.Fatalf("partial write to a lost block: %v", err)
	}
	if stat, _ := s.Stat(); stat.Lost != 2 {
		t.Fatalf("stat shows %d lost blocks", stat.Lost)
	}
	write(t, s, block, pattern(block, 1)) // a whole block needs nothing of what was
	if _, err := s.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := string(read(t, s, 0, 3)); got != "old" {
		t.Fatalf("after accepting: %q", got)
	}
	write(t, s, 0, []byte("next"))
	if got := string(read(t, s, 0, 4)); got != "next" {
		t.Fatalf("after writing: %q", got)
	}
}

func TestFreed(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Name: "x", Size: 10, Tier: coherency.Host, Home: coherency.Host})
	if err := s.Free(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Open("x"); !errors.Is(err, span.ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	m := memory(t, make([]byte, 1))
	_, mapErr := s.MapDirect(t.Context(), 0, 1, true, nothing)
	_, lockErr := func() (any, error) { _, _, err := s.Lock(t.Context(), 1, 0, 1, true); return nil, err }()
	_, writeErr := s.Write(t.Context(), 0, m, false)
	for op, err := range map[string]error{
		"free": s.Free(), "read": s.Read(t.Context(), 0, m), "write": writeErr, "map": mapErr, "lock": lockErr,
	} {
		if !errors.Is(err, span.ErrFreed) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// Many goroutines write and read single blocks whole: nobody sees a mixture.
func TestBlocksAreNeverTorn(t *testing.T) {
	st := newStore(t)
	for _, where := range tiers {
		t.Run(where.String(), func(t *testing.T) {
			s := alloc(t, st, span.Info{Size: 2 * block, Tier: where, Home: coherency.Host, Policy: coherency.WriteThrough})
			var wg sync.WaitGroup
			for i := range 4 {
				mine := memory(t, bytes.Repeat([]byte{byte(i + 1)}, block))
				seen := memory(t, make([]byte, block))
				wg.Go(func() {
					for n := range 20 {
						off := int64(n%2) * block
						if i == 3 && n%5 == 0 {
							if err := s.Release(t.Context()); err != nil {
								t.Error(err)
							}
						}
						if _, err := s.Write(t.Context(), off, mine, false); err != nil {
							t.Error(err)
							return
						}
						if err := s.Read(t.Context(), off, seen); err != nil {
							t.Error(err)
							return
						}
						p := seen.Bytes()
						if !bytes.Equal(p[1:], p[:block-1]) {
							t.Error("a block of two writers")
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
