// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"cmp"
	"math"
	"slices"
)

// A slotHeader is a header that was found in a slot.
type slotHeader struct {
	header
	slot, sum uint32
}

// slots returns the headers of committed blocks that want wants.
func (s *salvage) slots(want func(h *header) bool) []slotHeader {
	size, err := s.t.slots.f.Size()
	if err != nil {
		return nil
	}
	var found []slotHeader
	p := make([]byte, headerSize)
	for slot := uint32(1); slotOffset(slot) < size; slot++ {
		if _, err := s.t.slots.f.Readv([][]byte{p}, slotOffset(slot)); err != nil {
			continue
		}
		h, sum, err := decodeHeader(p)
		if err != nil && s.rebuilt && slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
			s.r.add(&CorruptError{Block: -1, File: blocksName, Offset: slotOffset(slot), What: "a slot's header", Found: err.Error()}, repairUnknown)
			s.suspect = true
		}
		if err == nil && !h.ephemeral && want(&h) {
			h.sums = nil
			found = append(found, slotHeader{h, slot, sum})
		}
	}
	return found
}

// chain returns the first of the consecutive numbers that end with the last log.
func (s *salvage) chain() (first uint64) {
	logs := s.files.logs
	for i := len(logs) - 1; i >= 0; i-- {
		if first != 0 && logs[i] != first-1 {
			break
		}
		first = logs[i]
	}
	return first
}

// rebuild makes the state from what the slots' headers say. The logs that are
// there are repeated over it: all of them, for what is in old ones may not have
// come to a slot yet.
func (s *salvage) rebuild() error {
	s.rebuilt = true
	s.base = make(map[place]uint64)
	s.deleted = make(map[ID]bool)
	named := make(map[[2]uint32]bool) // slots that records of the chain name
	chain := s.chain()
	if chain == 0 {
		s.r.add(&CorruptError{Block: -1, File: logName, What: "the log", Expected: "a file", Found: "none"}, repairUnknown)
		s.suspect = true
	}
	since := uint64(math.MaxUint64)
	for _, n := range s.files.logs {
		l, err := s.openLog(n)
		if err != nil {
			return err
		}
		if n < chain {
			continue
		}
		if n == chain {
			since = l.stamp
		}
		quiet := &salvage{t: s.t}
		quiet.log(l, 0, func(o *op, r record, at int64, whole bool) {
			if o.kind == opPut || o.kind == opFold {
				named[[2]uint32{o.slot, o.sum}] = true
			}
		})
	}
	best := make(map[place]slotHeader)
	newest := make(map[ID]slotHeader)
	for _, h := range s.slots(func(h *header) bool { return h.store == s.t.store }) {
		if h.stamp > since && !named[[2]uint32{h.slot, h.sum}] {
			continue // its commit never returned
		}
		p := place{h.rec.ID, int(h.block)}
		if old, ok := best[p]; !ok || cmp.Or(cmp.Compare(h.version, old.version), cmp.Compare(h.stamp, old.stamp)) > 0 {
			best[p] = h
		}
		if old, ok := newest[p.id]; !ok || h.stamp > old.stamp {
			newest[p.id] = h
		}
	}
	st := &s.t.state
	for id, h := range newest {
		st.spans[id] = newSpanState(h.rec)
		st.spans[id].known = true
		st.spans[id].rec.Published = true
	}
	for p, h := range best {
		sp := st.spans[p.id]
		if sp.blockLen(p.b) == 0 {
			continue
		}
		*sp.ref(p.b) = blockState{version: h.version, slot: h.slot, sum: h.sum}
		st.used += sp.charge(p.b)
		st.stamp = max(st.stamp, h.stamp)
		s.base[p] = h.version
	}
	return nil
}

// again repeats an operation over a rebuilt state.
func (s *salvage) again(o *op, r record, at int64, l *logFile, inChain bool) {
	st := &s.t.state
	switch o.kind {
	case opSet, opCopy:
		sp := st.spans[o.id]
		if s.deleted[o.id] || sp != nil && (o.kind == opCopy || !inChain) {
			return
		}
		st.apply(&op{kind: opSet, id: o.id, rec: o.rec}, r.seq, l, at, nil)
	case opDelete:
		s.deleted[o.id] = true
		st.apply(o, r.seq, l, at, nil)
	case opPatch, opCarry:
		sp := st.spans[o.id]
		p := place{o.id, int(o.block)}
		if sp == nil || sp.blockLen(p.b) == 0 || o.version <= s.base[p] {
			return
		}
		list := sp.patches[p.b]
		had := !sp.content(p.b).empty()
		fresh := newPatch(o, r.seq, l, at)
		if o.kind == opCarry {
			list = append([]patch{fresh}, after(list, o.upto)...)
		} else {
			list = over(list, fresh)
		}
		sp.setPatches(p.b, list)
		ref := sp.ref(p.b)
		ref.reach(max(ref.version, o.version))
		if !had {
			st.used += sp.charge(p.b)
		}
	case opPut, opFold:
		st.stamp = max(st.stamp, o.stamp)
		sp, p := st.spans[o.id], place{o.id, int(o.block)}
		switch {
		case !inChain || sp == nil || sp.blockLen(p.b) == 0:
		case s.base[p] < o.version:
			s.lost[p] = max(s.lost[p], o.version) // its slot is none any more
		case o.kind == opPut:
			sp.ref(p.b).marked = 0
		}
	case opMark:
		if inChain {
			st.apply(o, r.seq, l, at, nil)
		}
	default:
		st.apply(o, r.seq, l, at, nil)
	}
}
