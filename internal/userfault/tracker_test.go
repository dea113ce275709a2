// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package userfault_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/userfault"
)

var page = os.Getpagesize()

// A region is pages mapped twice: tracked and armed, and the alias.
type region struct {
	*userfault.Tracker
	mem, alias []byte
}

func newTracker(t testing.TB) *userfault.Tracker {
	t.Helper()
	tr, err := userfault.New()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// tracked returns a region of n pages.
func tracked(t testing.TB, n int) region {
	t.Helper()
	tr := newTracker(t)
	a := memfd.NewArena("test")
	p, err := a.Take(int64(n * page))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(p.Close(), a.Close()); err != nil {
			t.Error(err)
		}
	})
	mem, err := p.Alias(p.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tr.Track(mem), tr.Arm(mem)); err != nil {
		t.Fatal(err)
	}
	return region{tr, mem, p.Bytes()}
}

// collect returns what was written to n bytes from off on.
func (r region) collect(t testing.TB, off, n int) []userfault.Range {
	t.Helper()
	got, err := r.Collect(r.mem, off, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// pages flattens ranges to page numbers.
func pages(ranges []userfault.Range) map[int]bool {
	set := map[int]bool{}
	for _, r := range ranges {
		for p := r.Start / page; p < r.End/page; p++ {
			set[p] = true
		}
	}
	return set
}

func TestCollectFindsWrittenPagesOnce(t *testing.T) {
	m := tracked(t, 8)
	if got := m.collect(t, 0, len(m.mem)); len(got) != 0 {
		t.Errorf("nothing written, collected %v", got)
	}
	_ = m.mem[3*page] // reading is not writing
	m.mem[1*page] = 1
	m.mem[2*page+5] = 1
	m.mem[7*page+page-1] = 1
	got := m.collect(t, 0, len(m.mem))
	want := []userfault.Range{{Start: page, End: 3 * page}, {Start: 7 * page, End: 8 * page}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("collected %v, want %v", got, want)
	}
	if got := m.collect(t, 0, len(m.mem)); len(got) != 0 {
		t.Errorf("collected twice: %v", got)
	}
	m.mem[2*page] = 2
	if got := pages(m.collect(t, 0, len(m.mem))); len(got) != 1 || !got[2] {
		t.Errorf("second write of a page: collected %v", got)
	}
}

// What is stored while disarmed is not looked for once it is armed again.
func TestDisarm(t *testing.T) {
	m := tracked(t, 8)
	m.mem[1*page] = 1
	if err := m.Disarm(m.mem); err != nil {
		t.Fatal(err)
	}
	m.mem[2*page] = 1
	if err := m.Arm(m.mem); err != nil {
		t.Fatal(err)
	}
	m.mem[3*page] = 1
	if got := pages(m.collect(t, 0, len(m.mem))); len(got) != 1 || !got[3] {
		t.Errorf("collected %v, want page 3", got)
	}
	if err := m.Disarm(m.mem[page/2 : page/2+page]); err == nil {
		t.Error("half a page was disarmed")
	}
}

func TestCollectLeavesTheRestAlone(t *testing.T) {
	m := tracked(t, 8)
	for p := range 8 {
		m.mem[p*page] = 1
	}
	if got := pages(m.collect(t, 2*page, 3*page)); len(got) != 3 || !got[2] || !got[3] || !got[4] {
		t.Errorf("collected %v, want pages 2 to 4", got)
	}
	if got := pages(m.collect(t, 0, len(m.mem))); len(got) != 5 || got[2] || got[3] || got[4] {
		t.Errorf("collected %v, want all but pages 2 to 4", got)
	}
}

// More isolated pages than one scan can return.
func TestCollectManyRanges(t *testing.T) {
	m := tracked(t, 5000)
	for p := 1; p < 5000; p += 2 {
		m.mem[p*page] = 1
	}
	got := m.collect(t, 0, len(m.mem))
	if len(got) != 2500 {
		t.Fatalf("%d ranges, want 2500", len(got))
	}
	for i, r := range got {
		if r.Start != (2*i+1)*page || r.End != r.Start+page {
			t.Fatalf("range %d is %v", i, r)
		}
	}
	if got := m.collect(t, 0, len(m.mem)); len(got) != 0 {
		t.Errorf("%d ranges were not armed again", len(got))
	}
}

func TestOnlyTheTrackedMappingCounts(t *testing.T) {
	m := tracked(t, 4)
	copy(m.alias, bytes.Repeat([]byte{7}, len(m.alias)))
	if got := m.collect(t, 0, len(m.mem)); len(got) != 0 {
		t.Errorf("writes through the alias were collected: %v", got)
	}
	if m.mem[2*page] != 7 {
		t.Error("the mappings show different bytes")
	}
}

// A page written and then dropped from the page table, as reclaim does, is
// still known to be written.
func TestPageTakenOutOfThePageTable(t *testing.T) {
	m := tracked(t, 4)
	m.mem[page] = 1
	if err := unix.Madvise(m.mem, unix.MADV_DONTNEED); err != nil { // a shared mapping loses its entries, not its bytes
		t.Fatal(err)
	}
	if got := pages(m.collect(t, 0, len(m.mem))); !got[1] {
		t.Errorf("collected %v, page 1 was written", got)
	}
	if m.mem[page] != 1 {
		t.Error("byte lost")
	}
}

func TestKernelWritesAreSeen(t *testing.T) {
	m := tracked(t, 4)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(m.mem[2*page : 2*page+5]); err != nil {
		t.Fatal(err)
	}
	if got := pages(m.collect(t, 0, len(m.mem))); len(got) != 1 || !got[2] {
		t.Errorf("collected %v, want page 2", got)
	}
}

func TestArmForgets(t *testing.T) {
	m := tracked(t, 4)
	m.mem[0], m.mem[page] = 1, 1
	if err := m.Arm(m.mem[:page]); err != nil {
		t.Fatal(err)
	}
	if got := pages(m.collect(t, 0, len(m.mem))); len(got) != 1 || !got[1] {
		t.Errorf("collected %v, want page 1", got)
	}
}

// Two writers count up words while the collector copies the pages it is told
// of; when all is still, the copy must be exact.
func TestNoWriteIsLost(t *testing.T) {
	m := tracked(t, 64)
	twin := make([]byte, len(m.mem))
	take := func() int {
		ranges := m.collect(t, 0, len(m.mem))
		for _, r := range ranges {
			copy(twin[r.Start:r.End], m.alias[r.Start:r.End])
		}
		return len(ranges)
	}
	var stop atomic.Bool
	var wrote atomic.Int64
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for i := uint64(1); !stop.Load(); i++ {
				off := rnd.IntN(len(m.mem)/16)*16 + 8*w
				binary.LittleEndian.PutUint64(m.mem[off:], i)
				if wrote.Add(1)%16 == 0 {
					runtime.Gosched() // with one processor all take turns at less than a slice's end
				}
			}
		})
	}
	for scans, found := 0, 0; scans < 200 || found < 1000 || wrote.Load() < 20000; scans++ {
		found += take()
		runtime.Gosched()
	}
	stop.Store(true)
	wg.Wait()
	take()
	if !bytes.Equal(twin, m.mem) {
		t.Error("the copy of the collected pages differs from the mapping")
	}
}

func TestBadRanges(t *testing.T) {
	m := tracked(t, 4)
	for _, r := range [][2]int{{1, page}, {0, 1}, {-page, page}, {0, 5 * page}, {page, 4 * page}, {page, int(^uint(0)>>1) &^ (page - 1)}} {
		if _, err := m.Collect(m.mem, r[0], r[1], nil); err == nil {
			t.Errorf("Collect(%d, %d) of %d bytes: no error", r[0], r[1], len(m.mem))
		}
	}
	for _, mem := range [][]byte{m.mem[1:], m.mem[:1], m.alias} {
		if err := m.Arm(mem); err == nil {
			t.Errorf("Arm of %d bytes at %p: no error", len(mem), mem)
		}
		if _, err := m.Collect(mem, 0, len(mem), nil); err == nil {
			t.Errorf("Collect of %d bytes at %p: no error", len(mem), mem)
		}
	}
	for _, mem := range [][]byte{m.mem[1:], nil} {
		if err := m.Track(mem); err == nil {
			t.Errorf("Track of %d bytes: no error", len(mem))
		}
	}
	if err := newTracker(t).Track(m.mem); err == nil {
		t.Error("tracked by two trackers")
	}
}

func TestClose(t *testing.T) {
	m := tracked(t, 2)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := m.Collect(m.mem, 0, page, nil); err == nil {
		t.Error("Collect after Close: no error")
	}
	if err := m.Arm(m.mem); err == nil {
		t.Error("Arm after Close: no error")
	}
	m.mem[0] = 1
}

// One tracker keeps the pages of many mappings apart, while others come and go;
// where one has gone, nothing is tracked any more.
func TestManyMappings(t *testing.T) {
	tr := newTracker(t)
	a := memfd.NewArena("test")
	defer a.Close()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(2, uint64(g)))
			for range 100 {
				n := 1 + rnd.IntN(16)
				p, err := a.Take(int64(n * page))
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(tr.Track(p.Bytes()), tr.Arm(p.Bytes())); err != nil {
					t.Error(err)
				}
				want := map[int]bool{}
				for range n / 2 {
					k := rnd.IntN(n)
					p.Bytes()[k*page], want[k] = 1, true
				}
				got, err := tr.Collect(p.Bytes(), 0, n*page, nil)
				if err != nil {
					t.Error(err)
				}
				if got := pages(got); !maps.Equal(got, want) {
					t.Errorf("collected pages %v of %d, written were %v", got, n, want)
				}
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p, err := a.Take(int64(page))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := tr.Arm(p.Bytes()); err == nil {
		t.Error("memory that nobody tracks was armed: it is where a mapping was")
	}
}

func TestProbeErrorIsTyped(t *testing.T) {
	if err := userfault.Probe(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Probe: %v does not wrap errors.ErrUnsupported", err)
	}
}
