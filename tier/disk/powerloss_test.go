// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// A world is what one writer has made of its spans.
type world struct {
	spans map[ID]*island
	start int // moment at which its commit began; it returned at ack, or never
	ack   int
}

// An island is one span of one block.
type island struct {
	rec     Record
	bytes   []byte
	version uint64
	marked  uint64
}

// A writer changes spans that nobody else does, and remembers every state.
type writer struct {
	n      byte
	r      *rand.Rand
	t      *Tier
	d      *memDisk
	memory tier.Memory
	spaces map[ID]*Space
	worlds []world
	made   int
}

func (w *writer) now() *world { return &w.worlds[len(w.worlds)-1] }

// step commits a random change of some spans.
func (w *writer) step() error {
	next := world{spans: make(map[ID]*island)}
	for id, i := range w.now().spans {
		next.spans[id] = i
	}
	x := w.t.Begin()
	ctx := context.Background()
	for id, old := range w.now().spans {
		i := *old
		switch w.r.IntN(7) {
		case 0, 1, 2:
			runs := []Run{{0, uint32(len(i.bytes))}}
			if w.r.IntN(3) > 0 {
				off := w.r.IntN(len(i.bytes))
				runs[0] = Run{uint32(off), uint32(1 + w.r.IntN(len(i.bytes)-off))}
			}
			p := w.memory.Slice(0, int64(runs[0].Length))
			w.fill(p.Bytes())
			st, err := w.spaces[id].Stage(ctx, 0, runs, p)
			if err != nil {
				return err
			}
			i.bytes = bytes.Clone(i.bytes)
			copy(i.bytes[runs[0].Offset:], p.Bytes())
			i.version, i.marked = max(i.version, i.marked)+1, 0
			x.Put(st, i.version)
		case 3:
			if w.r.IntN(6) == 0 {
				x.Delete(id)
				delete(next.spans, id)
				continue
			}
			i.marked = max(i.version, i.marked) + 1
			x.Mark(w.spaces[id], 0, i.marked)
		case 4:
			i.rec.Version++
			x.Version(w.spaces[id], i.rec.Version)
		default:
			continue
		}
		next.spans[id] = &i
	}
	if len(next.spans) < 3 {
		w.made++
		size := int64(20_000)
		if w.r.IntN(3) > 0 {
			size = 70_000 + w.r.Int64N(5_000)
		}
		i := &island{rec: Record{Size: size, Name: fmt.Sprint(w.n, w.made), Published: true, Tier: coherency.Disk, Home: coherency.Disk}}
		i.rec.ID[0] = w.n
		binary.LittleEndian.PutUint32(i.rec.ID[1:], uint32(w.made))
		i.bytes = make([]byte, size)
		s, err := w.t.Durable(i.rec)
		if err != nil {
			return err
		}
		w.spaces[i.rec.ID] = s
		x.Set(i.rec)
		next.spans[i.rec.ID] = i
	}
	next.start = w.d.moment()
	w.worlds = append(w.worlds, next)
	err := x.Commit(ctx)
	if err == nil {
		w.now().ack = w.d.moment()
	}
	return err
}

func (w *writer) fill(p []byte) {
	x := w.r.Uint64() | 1
	for i := range p {
		if i%8 == 0 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		p[i] = byte(x >> (i % 8 * 8))
	}
}

// verify checks that a tier that was opened after a crash at moment k has one of
// the states that the writer may find, and returns which.
func (w *writer) verify(t *Tier, k int) (int, error) {
	first := 0
	for i := range w.worlds {
		if w.worlds[i].ack > 0 && w.worlds[i].ack <= k {
			first = i
		}
	}
	var errs []error
	for i := first; i < len(w.worlds) && (i == first || w.worlds[i].start < k); i++ {
		err := w.equal(t, &w.worlds[i])
		if err == nil {
			return i, nil
		}
		errs = append(errs, fmt.Errorf("state %d: %w", i, err))
	}
	return 0, fmt.Errorf("writer %d, %d states, of which %d returned: %v", w.n, len(w.worlds), first+1, errs)
}

// equal tells how what the tier has of the writer's spans differs from a state.
func (w *writer) equal(t *Tier, want *world) error {
	n := 0
	for _, rec := range t.Recovered() {
		if rec.ID[0] != w.n {
			continue
		}
		n++
		i := want.spans[rec.ID]
		if i == nil {
			return fmt.Errorf("span %q is there", rec.Name)
		}
		if rec.Version != i.rec.Version || rec.Name != i.rec.Name || rec.Size != i.rec.Size {
			return fmt.Errorf("span %+v, want %+v", rec, i.rec)
		}
		sp := t.state.spans[rec.ID]
		if st := sp.at(0); st.version != i.version || st.marked != i.marked {
			return fmt.Errorf("span %q: version %d, marked %d, want %d, %d", rec.Name, st.version, st.marked, i.version, i.marked)
		}
		got := make([]byte, rec.Size)
		if err := t.readBlock(context.Background(), sp, 0, 0, got); err != nil {
			return err
		}
		if !bytes.Equal(got, i.bytes) {
			return fmt.Errorf("span %q: other bytes", rec.Name)
		}
	}
	if n != len(want.spans) {
		return fmt.Errorf("%d spans, want %d", n, len(want.spans))
	}
	return nil
}

// resume makes the writer go on from a state that a crash left, in another
// directory.
func (w *writer) resume(t *Tier, d *memDisk, at int) (*writer, error) {
	state := w.worlds[at]
	state.start, state.ack = 0, 1
	r := &writer{n: w.n, r: w.r, t: t, d: d, memory: w.memory, spaces: make(map[ID]*Space), worlds: []world{state}, made: w.made + 100}
	for id, i := range state.spans {
		s, err := t.Durable(i.rec)
		if err != nil {
			return nil, err
		}
		r.spaces[id] = s
	}
	return r, nil
}

// run lets the writers work at the same time, with a checkpoint now and then.
func run(t *testing.T, tr *Tier, writers []*writer, steps int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, w := range writers {
		wg.Go(func() {
			for i := range steps {
				if err := w.step(); err != nil {
					t.Error(err)
					return
				}
				if w.n == 1 && i%7 == 6 {
					if err := tr.checkpoint(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func (t *Tier) abandon() {
	t.stop()
	t.work.Wait()
}

// Power is lost at every moment, in several ways; then again, soon after the
// directory was opened. Every commit that returned is there, whole, and of the
// one that had not returned all or nothing.
func TestPowerLoss(t *testing.T) {
	seeds, stride := 2, 8
	if os.Getenv("MEMSPAN_SLOW") != "" {
		seeds, stride = 12, 1
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { powerLoss(t, seed, stride) })
	}
}

func powerLoss(t *testing.T, seed uint64, stride int) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seed, 1))
	region, err := memfd.Create("powerloss", 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer region.Close()
	d := newMemDisk()
	tr, err := openDirectory(ctx, d, Config{})
	if err != nil {
		t.Fatal(err)
	}
	var writers []*writer
	for n := range byte(2) {
		writers = append(writers, &writer{
			n: n, r: rand.New(rand.NewPCG(seed, uint64(n)+10)), t: tr, d: d, spaces: make(map[ID]*Space),
			memory: tier.Memory{Region: region, Off: int64(n) << 20, Len: 1 << 20},
			worlds: []world{{ack: 1}},
		})
	}
	run(t, tr, writers, 25)
	tr.abandon()
	for k := r.IntN(stride); k <= d.moment(); k += 1 + r.IntN(2*stride-1) {
		for how, keep := range keepers(r) {
			image := d.crash(k, keep)
			after, err := openDirectory(ctx, image, Config{})
			if err != nil {
				t.Fatalf("after %d of %d events, way %d: %v", k, len(d.events), how, err)
			}
			for _, w := range writers {
				if _, err := w.verify(after, k); err != nil {
					t.Fatalf("after %d of %d events, way %d: %v", k, len(d.events), how, err)
				}
			}
			if r.IntN(40) == 0 {
				again(t, after, image, writers, k, r)
			}
			after.abandon()
		}
		if r.IntN(10) == 0 {
			image := d.kill(k)
			after, err := openDirectory(ctx, image, Config{})
			if err != nil {
				t.Fatalf("killed after %d of %d events: %v", k, len(d.events), err)
			}
			again(t, after, image, writers, k, r)
			after.abandon()
		}
	}
}

// again goes on after a crash, and loses power once more.
func again(t *testing.T, tr *Tier, d *memDisk, before []*writer, k int, r *rand.Rand) {
	ctx := context.Background()
	var writers []*writer
	for _, w := range before {
		at, err := w.verify(tr, k)
		if err != nil {
			t.Fatal(err)
		}
		next, err := w.resume(tr, d, at)
		if err != nil {
			t.Fatal(err)
		}
		writers = append(writers, next)
	}
	first := d.moment()
	run(t, tr, writers, 4)
	for range 8 {
		k := first + r.IntN(d.moment()+1-first)
		for how, keep := range keepers(r) {
			after, err := openDirectory(ctx, d.crash(k, keep), Config{})
			if err != nil {
				t.Fatalf("again, after %d of %d events, way %d: %v", k, len(d.events), how, err)
			}
			for _, w := range writers {
				if _, err := w.verify(after, k); err != nil {
					t.Fatalf("again, after %d of %d events, way %d: %v", k, len(d.events), how, err)
				}
			}
			after.abandon()
		}
	}
}
