// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// A site is a directory with a bit of everything, and what every version of
// every block in it was.
type site struct {
	d      *memDisk
	latest map[place]uint64
	was    map[place]map[uint64][]byte
	marked map[place]uint64
	closed bool
}

// newSite makes a directory of spans with slots, with patches in an old log, an
// older one, and the present one; closed in order, or by the end of its process.
func newSite(t *testing.T, closed bool) *site {
	t.Helper()
	ctx := context.Background()
	region, err := memfd.Create("site", tier.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	defer region.Close()
	s := &site{d: newMemDisk(), latest: make(map[place]uint64), was: make(map[place]map[uint64][]byte), marked: make(map[place]uint64), closed: closed}
	tr, err := openDirectory(ctx, s.d, Config{})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 3))
	var spaces []*Space
	put := func(x *Tx, n, b, off, length int) {
		sp := spaces[n]
		p := place{sp.sp.rec.ID, b}
		m := tier.Memory{Region: region, Len: int64(length)}
		for i := range m.Bytes() {
			m.Bytes()[i] = byte(r.Uint32())
		}
		st, err := sp.Stage(ctx, b, []Run{{uint32(off), uint32(length)}}, m)
		if err != nil {
			t.Fatal(err)
		}
		block := make([]byte, sp.sp.blockLen(b))
		copy(block, s.was[p][s.latest[p]])
		copy(block[off:], m.Bytes())
		v := max(s.latest[p], s.marked[p]) + 1
		s.latest[p] = v
		delete(s.marked, p)
		if s.was[p] == nil {
			s.was[p] = make(map[uint64][]byte)
		}
		s.was[p][v] = block
		x.Put(st, v)
	}
	commit := func(change func(x *Tx)) {
		x := tr.Begin()
		change(x)
		if err := x.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for n, size := range []int64{100_000, 1<<20 + 70_000, 300, 80_000} {
		rec := Record{ID: ID{9, byte(n)}, Name: fmt.Sprintf("span %d", n), Size: size, Published: true}
		sp, err := tr.Durable(rec)
		if err != nil {
			t.Fatal(err)
		}
		spaces = append(spaces, sp)
		commit(func(x *Tx) { x.Set(rec) })
	}
	commit(func(x *Tx) { put(x, 0, 0, 0, 100_000); put(x, 1, 1, 0, 70_000) })
	commit(func(x *Tx) { put(x, 1, 0, 0, 1<<20) })
	commit(func(x *Tx) { put(x, 0, 0, 5_000, 100); put(x, 2, 0, 0, 50) })
	if err := tr.checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	commit(func(x *Tx) { put(x, 3, 0, 0, 80_000); put(x, 1, 1, 100, 5_000) })
	commit(func(x *Tx) { put(x, 0, 0, 0, 100_000) })
	commit(func(x *Tx) { put(x, 0, 0, 9_000, 3_000); put(x, 2, 0, 20, 50); put(x, 3, 0, 7, 100) })
	commit(func(x *Tx) {
		x.Epoch(7)
		s.marked[place{ID{9, 3}, 0}] = 9
		x.Mark(spaces[3], 0, 9)
	})
	commit(func(x *Tx) { put(x, 1, 0, 1_000, 70_000) })
	if closed {
		tr.stop()
		tr.work.Wait()
		if err := tr.checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
	} else {
		tr.abandon()
	}
	return s
}

// copy returns the directory as it is.
func (s *site) copy() *memDisk { return s.d.crash(len(s.d.events), func() bool { return true }) }

func (d *memDisk) flip(name string, at int64, bit int) {
	f := d.files[name]
	p := make([]byte, 1)
	f.load(p, at)
	p[0] ^= 1 << bit
	page := f.pages[at/4096]
	if page == nil {
		page = make([]byte, 4096)
		f.pages[at/4096] = page
	}
	page[at%4096] = p[0]
}

// serves checks that what the tier serves is what was written, of the latest
// version; or that the block says it is lost. With older allowed, it may be of
// an earlier version; with rebuilt, marks may be forgotten.
func (s *site) serves(t *Tier, older, rebuilt bool) error {
	for p, want := range s.latest {
		sp := t.state.spans[p.id]
		if sp == nil {
			if older {
				continue
			}
			return fmt.Errorf("span %x is gone", p.id)
		}
		got := make([]byte, sp.blockLen(p.b))
		err := t.readBlock(context.Background(), sp, p.b, 0, got)
		if errors.Is(err, tier.ErrCorrupt) {
			continue
		}
		if err != nil {
			return err
		}
		st := sp.at(p.b)
		if st.version == 0 {
			if st.marked >= want || older {
				continue
			}
			return fmt.Errorf("block %v: version 0, marked %d, want %d", p, st.marked, want)
		}
		if !bytes.Equal(got, s.was[p][st.version]) {
			return fmt.Errorf("block %v: other bytes than version %d had", p, st.version)
		}
		if st.version != want && st.marked < want && !older {
			return fmt.Errorf("block %v: version %d, want %d", p, st.version, want)
		}
		if m := s.marked[p]; st.marked < m && !older && !rebuilt {
			return fmt.Errorf("block %v: marked %d, want %d", p, st.marked, m)
		}
	}
	return nil
}

// examine checks a damaged directory in every way, and returns its faults.
func (s *site) examine(t *testing.T, d *memDisk) []Fault {
	t.Helper()
	ctx := context.Background()
	before := len(d.events)
	r, err := checkDirectory(ctx, d, false)
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	if len(d.events) != before {
		t.Fatalf("a check without repair changed the directory")
	}
	// What opens serves no bad byte, and, if nothing is wrong, everything.
	if tr, err := openDirectory(ctx, d.crash(len(d.events), func() bool { return true }).adopt(d), Config{}); err == nil {
		if err := s.serves(tr, false, false); err != nil {
			t.Fatalf("opened as it is, with faults %v: %v", r.Faults, err)
		}
		tr.abandon()
	} else if len(r.Faults) == 0 {
		t.Fatalf("no faults, but it does not open: %v", err)
	}
	if len(r.Faults) == 0 {
		return nil
	}
	r, err = checkDirectory(ctx, d, true)
	if err != nil {
		t.Fatalf("repair of %v: %v", r.Faults, err)
	}
	again, err := checkDirectory(ctx, d, false)
	if err != nil || len(again.Faults) > 0 {
		t.Fatalf("after repair of %v: %v, %v", r.Faults, again.Faults, err)
	}
	older, rebuilt := false, false
	for _, f := range r.Faults {
		if !f.Repaired {
			t.Fatalf("fault %v was not repaired", f)
		}
		older = older || strings.Contains(f.Repair, "lost")
		rebuilt = rebuilt || f.Repair == repairIndex
	}
	if rebuilt && len(r.Faults) > 1 {
		older = true
	}
	tr, err := openDirectory(ctx, d, Config{})
	if err != nil {
		t.Fatalf("open after repair of %v: %v", r.Faults, err)
	}
	defer tr.abandon()
	if err := s.serves(tr, older, rebuilt); err != nil {
		t.Fatalf("after repair of %v: %v", r.Faults, err)
	}
	return r.Faults
}

// adopt returns d's copy with the bytes that d has, damage included.
func (c *memDisk) adopt(d *memDisk) *memDisk {
	c.files = make(map[string]*memFile)
	for name, f := range d.files {
		g := &memFile{d: c, id: f.id, name: name, pages: make(map[int64][]byte), size: f.size}
		for n, page := range f.pages {
			g.pages[n] = bytes.Clone(page)
		}
		c.files[name] = g
	}
	return c
}

// Every kind of region that says something is damaged, and it is found, said
// where, and repaired.
func TestPlantedFaults(t *testing.T) {
	for _, closed := range []bool{true, false} {
		s := newSite(t, closed)
		f, err := listFiles(s.d)
		if err != nil {
			t.Fatal(err)
		}
		if len(f.indexes) != 1 || len(f.logs) != 1 {
			t.Fatalf("files %+v", f)
		}
		index, log := numbered(indexName, f.indexes[0]), numbered(logName, f.logs[0])
		slot := func(n uint32, at int64) int64 { return slotOffset(n) + at }
		sp := slotOf(t, s.d, place{ID{9, 1}, 0})
		other := slotOf(t, s.d, place{ID{9, 3}, 0})
		flips := map[string]struct {
			file string
			at   int64
		}{
			"format's first line":  {formatName, 3},
			"format's store":       {formatName, 50},
			"slot's magic":         {blocksName, slot(sp, 1)},
			"slot's version":       {blocksName, slot(sp, 40)},
			"slot's span":          {blocksName, slot(sp, headerRecord+1)},
			"slot's sums":          {blocksName, slot(sp, headerSums+100)},
			"slot's padding":       {blocksName, slot(sp, 2000)},
			"slot's first byte":    {blocksName, slot(sp, headerSize)},
			"slot's last byte":     {blocksName, slot(sp, stride-1)},
			"log's header":         {log, 41},
			"log's header padding": {log, 3000},
			"index's header":       {index, 33},
		}
		for i, name := range sectionNames {
			p, err := readWhole(s.d, index)
			if err != nil {
				t.Fatal(err)
			}
			at := int64(indexHeaderSize)
			for j := range i {
				at += int64(binary.LittleEndian.Uint64(p[64+16*j:]))
			}
			if binary.LittleEndian.Uint64(p[64+16*i:]) > 0 {
				flips["index's "+name] = struct {
					file string
					at   int64
				}{index, at + 9}
			}
		}
		// The first record has a header, operations, and bytes of a patch, in
		// the middle; the last one has, too.
		if !closed {
			l, err := openLog(s.d, s.store(t), f.logs[0])
			if err != nil {
				t.Fatal(err)
			}
			_, err = l.replay(nil, func(r record, at int64) error {
				flips[fmt.Sprintf("record %d's magic", r.seq)] = struct {
					file string
					at   int64
				}{log, at + 1}
				flips[fmt.Sprintf("record %d's length", r.seq)] = struct {
					file string
					at   int64
				}{log, at + 9}
				flips[fmt.Sprintf("record %d's sequence", r.seq)] = struct {
					file string
					at   int64
				}{log, at + 17}
				for _, part := range []int64{0, 1, 20, int64(len(r.payload)) / 2, int64(len(r.payload)) - 1} {
					flips[fmt.Sprintf("record %d's payload at %d", r.seq, part)] = struct {
						file string
						at   int64
					}{log, at + recordHeader + part}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for name, flip := range flips {
			t.Run(fmt.Sprintf("closed=%v/%s", closed, name), func(t *testing.T) {
				d := s.copy()
				d.flip(flip.file, flip.at, int(flip.at)%8)
				faults := s.examine(t, d)
				if len(faults) == 0 {
					t.Fatal("not found")
				}
				if faults[0].File != flip.file {
					t.Errorf("found in %s: %v", faults[0].File, faults)
				}
			})
		}
		others := map[string]func(d *memDisk){
			"truncate blocks to half": func(d *memDisk) { cut(d, blocksName, d.files[blocksName].size/2) },
			"truncate blocks to 0":    func(d *memDisk) { cut(d, blocksName, 0) },
			"truncate blocks by 1":    func(d *memDisk) { cut(d, blocksName, d.files[blocksName].size-1) },
			"truncate index":          func(d *memDisk) { cut(d, index, d.files[index].size-10) },
			"truncate index to 0":     func(d *memDisk) { cut(d, index, 0) },
			"truncate log to 0":       func(d *memDisk) { cut(d, log, 0) },
			"truncate format":         func(d *memDisk) { cut(d, formatName, 30) },
			"remove format":           func(d *memDisk) { delete(d.files, formatName) },
			"remove index":            func(d *memDisk) { delete(d.files, index) },
			"remove log":              func(d *memDisk) { delete(d.files, log) },
			"remove blocks":           func(d *memDisk) { delete(d.files, blocksName) },
			"swap blocks":             func(d *memDisk) { swap(d, sp, other) },
			"index and log": func(d *memDisk) {
				delete(d.files, index)
				delete(d.files, log)
			},
			"index and a block": func(d *memDisk) {
				delete(d.files, index)
				d.flip(blocksName, slot(sp, headerSize+77), 3)
			},
		}
		for name, damage := range others {
			t.Run(fmt.Sprintf("closed=%v/%s", closed, name), func(t *testing.T) {
				d := s.copy()
				damage(d)
				if len(s.examine(t, d)) == 0 {
					t.Fatal("not found")
				}
			})
		}
		t.Run(fmt.Sprintf("closed=%v/nothing", closed), func(t *testing.T) {
			if faults := s.examine(t, s.copy()); len(faults) > 0 {
				t.Fatal(faults)
			}
		})
	}
}

func (s *site) store(t *testing.T) ID {
	p, err := readWhole(s.d, formatName)
	if err != nil {
		t.Fatal(err)
	}
	id, err := decodeFormat(p)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func slotOf(t *testing.T, d *memDisk, p place) uint32 {
	t.Helper()
	s := &salvage{t: newTier(d, Config{}), lost: make(map[place]uint64)}
	if err := s.load(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s.t.state.spans[p.id].at(p.b).slot
}

func cut(d *memDisk, name string, size int64) {
	d.files[name].apply(&event{kind: evTruncate, n: size}, nil)
}

func swap(d *memDisk, a, b uint32) {
	f := d.files[blocksName]
	p, q := make([]byte, stride), make([]byte, stride)
	f.load(p, slotOffset(a))
	f.load(q, slotOffset(b))
	f.apply(&event{kind: evWrite, off: slotOffset(a), data: q}, nil)
	f.apply(&event{kind: evWrite, off: slotOffset(b), data: p}, nil)
}

// Damage anywhere: what is not reported has done no harm, and nothing bad is
// ever served.
func TestRandomDamage(t *testing.T) {
	r, count := rand.New(rand.NewPCG(5, 5)), 60
	if os.Getenv("MEMSPAN_SLOW") != "" {
		count = 3000
	}
	for _, closed := range []bool{true, false} {
		s := newSite(t, closed)
		for n := range count {
			d := s.copy()
			for range 1 + r.IntN(2) {
				names, _ := d.list()
				name := names[r.IntN(len(names))]
				at := r.Int64N(d.files[name].size)
				if r.IntN(2) == 0 {
					at = r.Int64N(min(at+1, 20_000))
				}
				for range 1 + r.IntN(8) {
					d.flip(name, min(at+r.Int64N(8), d.files[name].size-1), r.IntN(8))
				}
			}
			t.Run(fmt.Sprintf("closed=%v/%d", closed, n), func(t *testing.T) { s.examine(t, d) })
		}
	}
}
