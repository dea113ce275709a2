// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

var ctx = context.Background()

// A modelSpan is what a durable span ought to be.
type modelSpan struct {
	rec    disk.Record
	blocks map[int][]byte
	states map[int]disk.BlockState
}

func (m *modelSpan) clone() *modelSpan {
	return &modelSpan{m.rec, maps.Clone(m.blocks), maps.Clone(m.states)}
}

// A machine does the same to a tier and to a model of it.
type machine struct {
	*rapid.T
	cfg    disk.Config
	tier   *disk.Tier
	model  map[disk.ID]*modelSpan
	spaces map[disk.ID]*disk.Space
	epoch  uint64
	memory tier.Memory
	made   int
}

func (m *machine) ids() []disk.ID {
	ids := slices.Collect(maps.Keys(m.model))
	slices.SortFunc(ids, func(a, b disk.ID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// fill makes n bytes that nobody else makes.
func (m *machine) fill(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(rapid.Uint8().Draw(m.T, "seed")), byte(n), byte(n >> 8)})
	r.Read(p)
	return p
}

func (m *machine) runs(length int64) (runs []disk.Run, total int) {
	if rapid.IntRange(0, 3).Draw(m.T, "whole") == 0 {
		return []disk.Run{{Offset: 0, Length: uint32(length)}}, int(length)
	}
	at := int64(0)
	for range rapid.IntRange(1, 4).Draw(m.T, "runs") {
		if at >= length {
			break
		}
		off := at + rapid.Int64Range(0, length-at-1).Draw(m.T, "offset")
		most := length - off
		if rapid.Bool().Draw(m.T, "short") {
			most = min(most, 5000)
		}
		if rapid.Bool().Draw(m.T, "shorter") {
			most = min(most, 5)
		}
		n := rapid.Int64Range(1, most).Draw(m.T, "length")
		runs = append(runs, disk.Run{Offset: uint32(off), Length: uint32(n)})
		total += int(n)
		at = off + n
	}
	return runs, total
}

// commit does a random transaction.
func (m *machine) commit() {
	x := m.tier.Begin()
	next := maps.Clone(m.model)
	epoch := m.epoch
	change := func(id disk.ID) *modelSpan {
		if next[id] == m.model[id] {
			next[id] = next[id].clone()
		}
		return next[id]
	}
	touched := make(map[disk.ID]map[int]bool)
	for range rapid.IntRange(1, 5).Draw(m.T, "operations") {
		ids := m.ids()
		kind := rapid.IntRange(0, 9).Draw(m.T, "operation")
		if len(ids) == 0 || kind == 0 {
			m.made++
			size := rapid.Int64Range(1, 3<<20).Draw(m.T, "size")
			if rapid.Bool().Draw(m.T, "small") {
				size = rapid.Int64Range(1, 10_000).Draw(m.T, "size")
			}
			rec := record("", size)
			rec.Name = string(rune('a' + m.made%26))
			rec.Published = rapid.IntRange(0, 4).Draw(m.T, "published") > 0
			s, err := m.tier.Durable(rec)
			if err != nil {
				m.Fatalf("durable: %v", err)
			}
			m.spaces[rec.ID] = s
			x.Set(rec)
			next[rec.ID] = &modelSpan{rec, make(map[int][]byte), make(map[int]disk.BlockState)}
			m.model[rec.ID] = nil // known from here on
			continue
		}
		id := rapid.SampledFrom(ids).Draw(m.T, "span")
		if next[id] == nil {
			continue
		}
		s := m.spaces[id]
		switch kind {
		case 1:
			if rapid.IntRange(0, 2).Draw(m.T, "delete") == 0 {
				x.Delete(id)
				next[id] = nil
			}
		case 2:
			sp := change(id)
			sp.rec.Name = string(rune('A' + m.made%26))
			sp.rec.Published = !sp.rec.Published
			x.Set(sp.rec)
		case 3:
			epoch++
			x.Epoch(epoch)
		case 4:
			sp := change(id)
			sp.rec.Version++
			x.Version(s, sp.rec.Version)
		default:
			sp := change(id)
			b := rapid.IntRange(0, int((sp.rec.Size-1)>>20)).Draw(m.T, "block")
			if touched[id][b] {
				continue
			}
			if touched[id] == nil {
				touched[id] = make(map[int]bool)
			}
			touched[id][b] = true
			st := sp.states[b]
			version := max(st.Version, st.Marked) + 1
			if kind == 5 {
				x.Mark(s, b, version)
				st.Marked = version
				sp.states[b] = st
				continue
			}
			x.Put(m.stage(s, sp, b), version)
			sp.states[b] = disk.BlockState{Version: version, Held: true}
		}
	}
	for id := range next {
		if next[id] == nil {
			delete(next, id)
		}
	}
	if rapid.IntRange(0, 9).Draw(m.T, "discard") == 0 {
		x.Discard()
		for id, sp := range m.model {
			if sp == nil {
				delete(m.model, id)
				m.spaces[id].Close()
			}
		}
		return
	}
	if err := x.Commit(ctx); err != nil {
		m.Fatalf("commit: %v", err)
	}
	m.model, m.epoch = next, epoch
}

// stage stages a random change of a block, in one of the ways there are.
func (m *machine) stage(s *disk.Space, sp *modelSpan, b int) *disk.Staged {
	length := min(1<<20, sp.rec.Size-int64(b)<<20)
	block := make([]byte, length)
	copy(block, sp.blocks[b])
	sp.blocks[b] = block
	if rapid.Bool().Draw(m.T, "pending") {
		for range rapid.IntRange(1, 3).Draw(m.T, "writes") {
			off := rapid.Int64Range(0, length-1).Draw(m.T, "offset")
			p := m.fill(rapid.IntRange(1, int(length-off)).Draw(m.T, "length"))
			copy(block[off:], p)
			copy(m.memory.Bytes(), p)
			if err := s.Write(ctx, b, off, m.memory.Slice(0, int64(len(p)))); err != nil {
				m.Fatalf("write: %v", err)
			}
		}
		return s.Take(b)
	}
	runs, total := m.runs(length)
	p := m.fill(total)
	copy(m.memory.Bytes(), p)
	st, err := s.Stage(ctx, b, runs, m.memory.Slice(0, int64(total)))
	if err != nil {
		m.Fatalf("stage: %v", err)
	}
	for _, r := range runs {
		copy(block[r.Offset:r.Offset+r.Length], p)
		p = p[r.Length:]
	}
	return st
}

// reopen ends the tier in some way, and opens it again.
func (m *machine) reopen() {
	var err error
	switch rapid.IntRange(0, 2).Draw(m.T, "end") {
	case 0:
		err = m.tier.Close()
	case 1:
		if err := m.tier.Checkpoint(); err != nil {
			m.Fatalf("checkpoint: %v", err)
		}
		err = m.tier.Abandon()
	default:
		err = m.tier.Abandon()
	}
	if err != nil {
		m.Fatalf("end: %v", err)
	}
	m.open()
}

func (m *machine) open() {
	m.tier = openTier(m, m.cfg)
	for id, sp := range m.model {
		if !sp.rec.Published {
			delete(m.model, id)
		}
	}
	clear(m.spaces)
	for _, rec := range m.tier.Recovered() {
		sp := m.model[rec.ID]
		if sp == nil {
			m.Fatalf("recovered %v, which nobody committed", rec)
		}
		if !rec.Created.Equal(sp.rec.Created) {
			m.Fatalf("created %v, want %v", rec.Created, sp.rec.Created)
		}
		rec.Created = sp.rec.Created
		if rec != sp.rec {
			m.Fatalf("recovered %v, want %v", rec, sp.rec)
		}
		s, err := m.tier.Durable(rec)
		if err != nil {
			m.Fatalf("durable: %v", err)
		}
		m.spaces[rec.ID] = s
	}
	if len(m.spaces) != len(m.model) {
		m.Fatalf("%d spans recovered, want %d", len(m.spaces), len(m.model))
	}
	if e := m.tier.Epoch(); e != m.epoch {
		m.Fatalf("epoch %d, want %d", e, m.epoch)
	}
	m.check()
}

// check compares everything with the model.
func (m *machine) check() {
	var used int64
	for id, sp := range m.model {
		s := m.spaces[id]
		states := maps.Collect(s.Blocks())
		if !maps.Equal(states, sp.states) {
			m.Fatalf("blocks are %v, want %v", states, sp.states)
		}
		for b := range int((sp.rec.Size-1)>>20) + 1 {
			length := min(1<<20, sp.rec.Size-int64(b)<<20)
			want := sp.blocks[b]
			if want == nil {
				want = make([]byte, length)
			} else {
				used += (length + 4095) &^ 4095
			}
			holds(m, s, b, want, m.memory)
		}
	}
	if u := m.tier.Usage().Used; u != used {
		m.Fatalf("%d bytes in use, want %d", u, used)
	}
}

// readPart reads a random part of a random block.
func (m *machine) readPart() {
	ids := m.ids()
	if len(ids) == 0 {
		return
	}
	id := rapid.SampledFrom(ids).Draw(m.T, "span")
	sp := m.model[id]
	b := rapid.IntRange(0, int((sp.rec.Size-1)>>20)).Draw(m.T, "block")
	length := min(1<<20, sp.rec.Size-int64(b)<<20)
	off := rapid.Int64Range(0, length-1).Draw(m.T, "offset")
	n := rapid.Int64Range(1, min(length-off, 20_000)).Draw(m.T, "length")
	dst := m.memory.Slice(3, n)
	if err := m.spaces[id].Read(ctx, b, off, dst); err != nil {
		m.Fatalf("read: %v", err)
	}
	want := make([]byte, n)
	if p := sp.blocks[b]; p != nil {
		copy(want, p[off:])
	}
	if !slices.Equal(dst.Bytes(), want) {
		m.Fatalf("bytes [%d, +%d) of block %d differ", off, n, b)
	}
}

// Whatever is committed is there, before and after the tier is opened again, and
// nothing else.
func TestModel(t *testing.T) {
	r, err := memfd.Create("model", 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatalf("%v", err)
		}
		defer os.RemoveAll(dir)
		m := &machine{
			T:      rt,
			cfg:    disk.Config{Dir: dir},
			model:  make(map[disk.ID]*modelSpan),
			spaces: make(map[disk.ID]*disk.Space),
			memory: tier.Memory{Region: r, Len: 2 << 20},
		}
		m.tier = openTier(rt, m.cfg)
		defer func() { m.tier.Close() }()
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			switch rapid.IntRange(0, 6).Draw(rt, "step") {
			case 6:
				if err := m.tier.Checkpoint(); err != nil {
					rt.Fatalf("checkpoint: %v", err)
				}
				m.check()
			case 0:
				m.reopen()
			case 1:
				m.readPart()
			default:
				m.commit()
			}
		}
		m.check()
		m.reopen()
	})
}
