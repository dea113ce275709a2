// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// A rig is a tier on a memDisk with one span and what its first block holds.
type rig struct {
	*testing.T
	d       *memDisk
	t       *Tier
	rec     Record
	s       *Space
	memory  tier.Memory
	want    []byte
	version uint64
}

func newRig(t *testing.T, size int64) *rig {
	t.Helper()
	region, err := memfd.Create("rig", tier.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { region.Close() })
	r := &rig{T: t, d: newMemDisk(), memory: tier.Memory{Region: region, Len: tier.BlockSize}}
	r.rec = Record{ID: ID{1}, Name: "rig", Size: size, Published: true}
	r.want = make([]byte, min(size, tier.BlockSize))
	r.open()
	x := r.t.Begin()
	x.Set(r.rec)
	r.ok(x.Commit(r.Context()))
	return r
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// open opens the directory as it is, as after the end of a process.
func (r *rig) open() {
	r.Helper()
	if r.t != nil {
		r.t.abandon()
	}
	var err error
	r.t, err = openDirectory(context.Background(), r.d, Config{})
	r.ok(err)
	r.s, err = r.t.Durable(r.rec)
	r.ok(err)
	r.Cleanup(r.t.abandon)
}

// stage stages n bytes of value v at off of block 0.
func (r *rig) stage(off, n int, v byte) *Staged {
	r.Helper()
	m := r.memory.Slice(0, int64(n))
	for i := range m.Bytes() {
		m.Bytes()[i] = v
	}
	st, err := r.s.Stage(r.Context(), 0, []Run{{uint32(off), uint32(n)}}, m)
	r.ok(err)
	return st
}

// put commits n bytes of value v at off of block 0.
func (r *rig) put(off, n int, v byte) {
	r.Helper()
	x := r.t.Begin()
	r.version++
	x.Put(r.stage(off, n, v), r.version)
	r.ok(x.Commit(r.Context()))
	for i := range n {
		r.want[off+i] = v
	}
}

// holds checks block 0.
func (r *rig) holds() {
	r.Helper()
	got := make([]byte, len(r.want))
	r.ok(r.t.readBlock(r.Context(), r.s.sp, 0, 0, got))
	if !bytes.Equal(got, r.want) {
		i := 0
		for got[i] == r.want[i] {
			i++
		}
		r.Fatalf("byte %d is %d, want %d", i, got[i], r.want[i])
	}
	for _, st := range r.s.Blocks() {
		if st.Version != r.version {
			r.Fatalf("version %d, want %d", st.Version, r.version)
		}
	}
}

// Whatever is committed while a block's patches are being moved prevails, now
// and after a restart.
func TestCommitsDuringRelocation(t *testing.T) {
	between := map[string]func(*rig){
		"nothing":           func(*rig) {},
		"patch beside":      func(r *rig) { r.put(70_000, 50, 8) },
		"patch over":        func(r *rig) { r.put(1_000, 5_000, 8) },
		"patch within":      func(r *rig) { r.put(1_001, 1, 8) },
		"whole block":       func(r *rig) { r.put(0, len(r.want), 8) },
		"whole, then patch": func(r *rig) { r.put(0, len(r.want), 8); r.put(1_500, 100, 9) },
		"another relocation": func(r *rig) {
			r.put(1_200, 5, 8)
			r.ok(r.t.checkpoint(r.Context()))
			r.put(1_300, 5, 8)
		},
		"deletion": func(r *rig) {
			x := r.t.Begin()
			x.Delete(r.rec.ID)
			r.ok(x.Commit(r.Context()))
		},
	}
	for name, commit := range between {
		for _, fold := range []bool{false, true} {
			for _, based := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/fold=%v/slot=%v", name, fold, based), func(t *testing.T) {
					r := newRig(t, 100_000)
					if based {
						r.put(0, 100_000, 1)
					}
					r.put(1_000, 2_000, 2)
					r.put(2_500, 1_000, 3)
					list := r.t.relocations(r.t.tail.number + 1)
					if len(list) != 1 {
						t.Fatalf("%d blocks to relocate", len(list))
					}
					o, _, err := r.t.relocateBlock(r.Context(), list[0], fold)
					r.ok(err)
					commit(r)
					r.ok(r.t.commitRelocated(r.Context(), []op{o}))
					if name == "deletion" {
						if n := len(r.t.Recovered()); n != 0 {
							t.Fatalf("%d spans", n)
						}
						return
					}
					r.holds()
					r.open()
					r.holds()
					r.ok(r.t.checkpoint(r.Context()))
					r.holds()
				})
			}
		}
	}
}

// Of two commits in one write of the log the first was lost with the power, the
// second was not: neither is there, and the second does not come back behind a
// later commit of the first one's length.
func TestLostRecordBeforeOneThatWasWritten(t *testing.T) {
	r := newRig(t, 100_000)
	r.put(0, 1_000, 1)
	r.t.logTurn <- struct{}{} // commits wait
	results := make(chan error)
	for i := range 2 {
		x := r.t.Begin()
		x.Put(r.stage(2_000*i, 1_000, 7), r.version+1+uint64(i))
		c, err := x.prepare(r.Context())
		r.ok(err)
		r.t.queue = append(r.t.queue, c)
		go func() { <-c.done; results <- c.err }()
	}
	first := r.d.moment()
	r.t.writeBatch()
	<-r.t.logTurn
	r.ok(errors.Join(<-results, <-results))
	write := r.d.events[first]
	if write.kind != evWrite || len(write.data)%(2*sector) != 0 {
		t.Fatalf("event %+v", write)
	}
	sectorsOfFirst, n := len(write.data)/sector/2, 0
	r.d = r.d.crash(first+1, func() bool {
		n++ // other writes come before
		return n > sectorsOfFirst
	})
	r.open()
	r.holds()
	r.put(2_000, 1_000, 9)
	r.d = r.d.crash(r.d.moment(), func() bool { return false })
	r.open()
	r.holds()
}

// A block was put and its span deleted in one write of the log, and the slot wiped,
// when the power was lost, and with it the note that both were durable: the
// deletion stands, though the slot does not hold what the put says.
func TestSlotWipedByTheSameBatch(t *testing.T) {
	r := newRig(t, 100_000)
	r.t.logTurn <- struct{}{} // commits wait
	put, del := r.t.Begin(), r.t.Begin()
	put.Put(r.stage(0, 100_000, 1), 1)
	del.Delete(r.rec.ID)
	for _, x := range []*Tx{put, del} {
		c, err := x.prepare(r.Context())
		r.ok(err)
		r.t.queue = append(r.t.queue, c)
	}
	if r.t.queue[0].flags != flagSlots {
		t.Fatal("the slot was synced before")
	}
	r.t.writeBatch()
	<-r.t.logTurn
	for i := len(r.d.events) - 1; ; i-- {
		if e := r.d.events[i]; e.kind == evWrite && len(e.data) == sector {
			r.d.events = slices.Delete(r.d.events, i, i+1) // the note
			break
		}
	}
	d := r.d.crash(len(r.d.events), func() bool { return true })
	after, err := openDirectory(r.Context(), d, Config{})
	r.ok(err)
	defer after.abandon()
	if n := len(after.Recovered()); n != 0 {
		t.Errorf("%d spans", n)
	}
}

// Blocks are read right while their patches are moved, their slots freed and
// used for others.
func TestReadDuringRelocation(t *testing.T) {
	r := newRig(t, 100_000)
	r.put(0, 100_000, 1)
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		got := make([]byte, 100_000)
		for ctx.Err() == nil {
			if err := r.t.readBlock(context.Background(), r.s.sp, 0, 0, got); err != nil {
				done <- err
				return
			}
			if !bytes.Equal(got[50_000:], r.want[50_000:]) {
				done <- errors.New("other bytes")
				return
			}
		}
		done <- nil
	}()
	e, err := r.t.Open(t.Context(), "swap", 100_000, 0)
	r.ok(err)
	r.ok(e.Reserve(t.Context(), 0))
	for i := range 100 {
		r.put(10*i, 30_000, 1)
		r.ok(r.t.checkpoint(t.Context()))
		r.ok(e.Fill(t.Context(), 0, 0, 100_000, uint32(i)))
	}
	stop()
	r.ok(<-done)
}

// However many small changes a block has, what a read has to gather is bounded.
func TestManyPatches(t *testing.T) {
	r := newRig(t, 100_000)
	for i := range 2 * maxPatches {
		r.put(i*90, 10, byte(i+1))
		if n := len(r.s.sp.patches[0]); n > maxPatches {
			t.Fatalf("%d patches", n)
		}
	}
	r.holds()
	r.open()
	r.holds()
}

// A checkpoint that fails is not tried again with every commit.
func TestFailingCheckpoint(t *testing.T) {
	r := newRig(t, 100_000)
	tries := 0
	r.d.fault = func(e *event) (int, error) {
		if e.kind == evCreate {
			tries++
			return 0, syscall.ENOSPC
		}
		return 0, nil
	}
	r.t.checkpointAt = r.t.tail.tail
	r.put(0, 10, 1)
	deadline := time.Now().Add(2 * time.Minute)
	for wait := true; wait; { // for the goroutine that tries
		if time.Now().After(deadline) {
			t.Fatal("the next try is not put off")
		}
		r.t.logTurn <- struct{}{}
		wait = r.t.checkpointAt <= r.t.tail.tail
		<-r.t.logTurn
	}
	for i := range 50 {
		r.put(i, 10, 2)
	}
	r.t.abandon()
	if tries != 1 {
		t.Errorf("%d checkpoints were tried", tries)
	}
	r.d.fault = nil
	r.open()
	r.holds()
}

// A directory that was only looked at is not written again.
func TestCloseWithoutChanges(t *testing.T) {
	r := newRig(t, 100_000)
	r.put(0, 10, 1)
	r.ok(r.t.Close())
	before := r.d.moment()
	r.open()
	r.holds()
	r.ok(r.t.Close())
	for _, e := range r.d.events[before:] {
		if e.kind == evWrite || e.kind == evCreate {
			t.Fatalf("%+v", e)
		}
	}
}
