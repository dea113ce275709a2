// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package userfault_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/userfault"
)

var page = os.Getpagesize()

// tracked returns n pages mapped twice: tracked and armed, and the alias.
func tracked(t testing.TB, n int) (*userfault.Tracker, []byte, []byte) {
	t.Helper()
	if err := userfault.Probe(); err != nil {
		t.Skip(err)
	}
	r, err := memfd.Create("test", int64(n*page))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	mem, err := r.Alias(r.Size())
	if err != nil {
		t.Fatal(err)
	}
	tr, err := userfault.Track(mem)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	if err := tr.Arm(0, len(mem)); err != nil {
		t.Fatal(err)
	}
	return tr, mem, r.Bytes()
}

func collect(t testing.TB, tr *userfault.Tracker, off, n int) []userfault.Range {
	t.Helper()
	got, err := tr.Collect(off, n, nil)
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
	tr, mem, _ := tracked(t, 8)
	if got := collect(t, tr, 0, len(mem)); len(got) != 0 {
		t.Errorf("nothing written, collected %v", got)
	}
	_ = mem[3*page] // reading is not writing
	mem[1*page] = 1
	mem[2*page+5] = 1
	mem[7*page+page-1] = 1
	got := collect(t, tr, 0, len(mem))
	want := []userfault.Range{{Start: page, End: 3 * page}, {Start: 7 * page, End: 8 * page}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("collected %v, want %v", got, want)
	}
	if got := collect(t, tr, 0, len(mem)); len(got) != 0 {
		t.Errorf("collected twice: %v", got)
	}
	mem[2*page] = 2
	if got := pages(collect(t, tr, 0, len(mem))); len(got) != 1 || !got[2] {
		t.Errorf("second write of a page: collected %v", got)
	}
}

// What is stored while disarmed is not looked for once it is armed again.
func TestDisarm(t *testing.T) {
	tr, mem, _ := tracked(t, 8)
	mem[1*page] = 1
	if err := tr.Disarm(0, len(mem)); err != nil {
		t.Fatal(err)
	}
	mem[2*page] = 1
	if err := tr.Arm(0, len(mem)); err != nil {
		t.Fatal(err)
	}
	mem[3*page] = 1
	if got := pages(collect(t, tr, 0, len(mem))); len(got) != 1 || !got[3] {
		t.Errorf("collected %v, want page 3", got)
	}
	if err := tr.Disarm(page/2, page); err == nil {
		t.Error("half a page was disarmed")
	}
}

func TestCollectLeavesTheRestAlone(t *testing.T) {
	tr, mem, _ := tracked(t, 8)
	for p := range 8 {
		mem[p*page] = 1
	}
	if got := pages(collect(t, tr, 2*page, 3*page)); len(got) != 3 || !got[2] || !got[3] || !got[4] {
		t.Errorf("collected %v, want pages 2 to 4", got)
	}
	if got := pages(collect(t, tr, 0, len(mem))); len(got) != 5 || got[2] || got[3] || got[4] {
		t.Errorf("collected %v, want all but pages 2 to 4", got)
	}
}

// More isolated pages than one scan can return.
func TestCollectManyRanges(t *testing.T) {
	tr, mem, _ := tracked(t, 5000)
	for p := 1; p < 5000; p += 2 {
		mem[p*page] = 1
	}
	got := collect(t, tr, 0, len(mem))
	if len(got) != 2500 {
		t.Fatalf("%d ranges, want 2500", len(got))
	}
	for i, r := range got {
		if r.Start != (2*i+1)*page || r.End != r.Start+page {
			t.Fatalf("range %d is %v", i, r)
		}
	}
	if got := collect(t, tr, 0, len(mem)); len(got) != 0 {
		t.Errorf("%d ranges were not armed again", len(got))
	}
}

func TestOnlyTheTrackedMappingCounts(t *testing.T) {
	tr, mem, alias := tracked(t, 4)
	copy(alias, bytes.Repeat([]byte{7}, len(alias)))
	if got := collect(t, tr, 0, len(mem)); len(got) != 0 {
		t.Errorf("writes through the alias were collected: %v", got)
	}
	if mem[2*page] != 7 {
		t.Error("the mappings show different bytes")
	}
}

// A page written and then dropped from the page table, as reclaim does, is
// still known to be written.
func TestPageTakenOutOfThePageTable(t *testing.T) {
	tr, mem, _ := tracked(t, 4)
	mem[page] = 1
	if err := unix.Madvise(mem, unix.MADV_DONTNEED); err != nil { // a shared mapping loses its entries, not its bytes
		t.Fatal(err)
	}
	if got := pages(collect(t, tr, 0, len(mem))); !got[1] {
		t.Errorf("collected %v, page 1 was written", got)
	}
	if mem[page] != 1 {
		t.Error("byte lost")
	}
}

func TestKernelWritesAreSeen(t *testing.T) {
	tr, mem, _ := tracked(t, 4)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(mem[2*page : 2*page+5]); err != nil {
		t.Fatal(err)
	}
	if got := pages(collect(t, tr, 0, len(mem))); len(got) != 1 || !got[2] {
		t.Errorf("collected %v, want page 2", got)
	}
}

func TestArmForgets(t *testing.T) {
	tr, mem, _ := tracked(t, 4)
	mem[0], mem[page] = 1, 1
	if err := tr.Arm(0, page); err != nil {
		t.Fatal(err)
	}
	if got := pages(collect(t, tr, 0, len(mem))); len(got) != 1 || !got[1] {
		t.Errorf("collected %v, want page 1", got)
	}
}

// Two writers count up words while the collector copies the pages it is told
// of; when all is still, the copy must be exact.
func TestNoWriteIsLost(t *testing.T) {
	tr, mem, alias := tracked(t, 64)
	twin := make([]byte, len(mem))
	take := func() int {
		ranges := collect(t, tr, 0, len(mem))
		for _, r := range ranges {
			copy(twin[r.Start:r.End], alias[r.Start:r.End])
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
				off := rnd.IntN(len(mem)/16)*16 + 8*w
				binary.LittleEndian.PutUint64(mem[off:], i)
				wrote.Add(1)
			}
		})
	}
	for scans, found := 0, 0; scans < 200 || found < 1000 || wrote.Load() < 20000; scans++ {
		found += take()
	}
	stop.Store(true)
	wg.Wait()
	take()
	if !bytes.Equal(twin, mem) {
		t.Error("the copy of the collected pages differs from the mapping")
	}
}

func TestBadRanges(t *testing.T) {
	tr, mem, _ := tracked(t, 2)
	for _, r := range [][2]int{{1, page}, {0, 1}, {-page, page}, {0, 3 * page}, {page, 2 * page}, {page, int(^uint(0)>>1) &^ (page - 1)}} {
		if _, err := tr.Collect(r[0], r[1], nil); err == nil {
			t.Errorf("Collect(%d, %d) of %d bytes: no error", r[0], r[1], len(mem))
		}
		if err := tr.Arm(r[0], r[1]); err == nil {
			t.Errorf("Arm(%d, %d) of %d bytes: no error", r[0], r[1], len(mem))
		}
	}
	if _, err := userfault.Track(mem[1:]); err == nil {
		t.Error("Track of an unaligned slice: no error")
	}
	if _, err := userfault.Track(nil); err == nil {
		t.Error("Track of nothing: no error")
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if err := tr.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := tr.Collect(0, page, nil); err == nil {
		t.Error("Collect after Close: no error")
	}
}

func TestProbeErrorIsTyped(t *testing.T) {
	if err := userfault.Probe(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Probe: %v does not wrap errors.ErrUnsupported", err)
	}
}
