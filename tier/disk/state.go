// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"os"
	"slices"

	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/tier"
)

// A blockState is what is kept in memory of an idle block: 24 bytes.
type blockState struct {
	version uint64 // of the bytes here
	marked  uint64 // a version that is not here, or 0; ephemeral: 1 if reserved
	slot    uint32 // 0: none
	sum     uint32 // of the slot's header, which has the sums of the data
}

// A patch is bytes that take the place of a block's earlier ones. They are in
// the log.
type patch struct {
	log  *logFile
	off  int64 // of the bytes in the log's file
	size uint32
	sum  uint32 // of the bytes
	seq  uint64 // of the record; of one that was carried, the carrying one's
	runs []Run
}

// A content is where the bytes of a block are: a slot, or zeros, and over it
// patches, oldest first. It never changes; blocks change contents.
type content struct {
	version   uint64
	slot, sum uint32
	patches   []patch
}

func (c content) empty() bool { return c.slot == 0 && len(c.patches) == 0 }

func (c content) same(o content) bool {
	return c.slot == o.slot && c.sum == o.sum && slices.EqualFunc(c.patches, o.patches, func(a, b patch) bool {
		return a.log == b.log && a.off == b.off
	})
}

// chunkBlocks bounds what the blocks cost that a span does not use.
const chunkBlocks = 64

// A spanState is the state of one span, or of an ephemeral space. The tier's mu
// guards it, but for what never changes.
type spanState struct {
	id   ID
	size int64

	rec       Record
	ephemeral bool
	known     bool // its record is durable
	gone      bool // deleted, or closed
	open      bool // there is a Space
	chunks    [][]blockState
	patches   map[int][]patch
}

func newSpanState(rec Record) *spanState {
	blocks := (rec.Size-1)/tier.BlockSize + 1
	return &spanState{id: rec.ID, size: rec.Size, rec: rec, chunks: make([][]blockState, (blocks-1)/chunkBlocks+1)}
}

func (s *spanState) blocks() int { return int((s.size-1)/tier.BlockSize + 1) }

// blockLen returns the length of block b, 0 if there is no such block.
func (s *spanState) blockLen(b int) int64 {
	if b < 0 || b >= s.blocks() {
		return 0
	}
	return min(tier.BlockSize, s.size-int64(b)*tier.BlockSize)
}

// charge is what a block with contents counts against the budget.
func (s *spanState) charge(b int) int64 { return (s.blockLen(b) + pageSize - 1) &^ (pageSize - 1) }

func (s *spanState) at(b int) blockState {
	if c := s.chunks[b/chunkBlocks]; c != nil {
		return c[b%chunkBlocks]
	}
	return blockState{}
}

// ref returns block b's state for changing.
func (s *spanState) ref(b int) *blockState {
	c := &s.chunks[b/chunkBlocks]
	if *c == nil {
		*c = make([]blockState, min(chunkBlocks, s.blocks()-b/chunkBlocks*chunkBlocks))
	}
	return &(*c)[b%chunkBlocks]
}

func (s *spanState) content(b int) content {
	st := s.at(b)
	return content{version: st.version, slot: st.slot, sum: st.sum, patches: s.patches[b]}
}

// setPatches replaces the list of block b's patches, which nobody changes in
// place: readers use it without a lock.
func (s *spanState) setPatches(b int, list []patch) {
	for _, p := range s.patches[b] {
		p.log.live--
	}
	for _, p := range list {
		p.log.live++
	}
	if len(list) == 0 {
		delete(s.patches, b)
		return
	}
	if s.patches == nil {
		s.patches = make(map[int][]patch)
	}
	s.patches[b] = list
}

// State is what the log's records change: the durable spans.
type state struct {
	spans map[ID]*spanState
	epoch uint64
	seq   uint64 // of the last record applied
	stamp uint64 // the highest of any slot's header
	used  int64  // bytes that blocks with contents count, of ephemeral spaces too
}

// apply carries out an operation of the record seq, whose payload begins at byte
// base of log. Slots that nothing names any longer are appended to freed.
//
// It must do the same to the same state whenever it is called: recovery repeats
// what happened.
func (s *state) apply(o *op, seq uint64, log *logFile, base int64, freed []uint32) []uint32 {
	switch o.kind {
	case opEpoch:
		s.epoch = max(s.epoch, o.version)
		return freed
	case opEnd, opCopy:
		return freed
	case opSet:
		sp := s.spans[o.id]
		if sp == nil {
			sp = newSpanState(o.rec)
			s.spans[o.id] = sp
		}
		version := max(sp.rec.Version, o.rec.Version)
		sp.rec, sp.known = o.rec, true
		sp.rec.Version, sp.rec.Size = version, sp.size
		return freed
	}
	sp := s.spans[o.id]
	known := sp != nil && sp.known
	if o.kind == opPut || o.kind == opFold {
		s.stamp = max(s.stamp, o.stamp)
		if !known || sp.blockLen(int(o.block)) == 0 {
			return append(freed, o.slot)
		}
	}
	if !known {
		return freed
	}
	b := int(o.block)
	switch o.kind {
	case opDelete:
		return s.drop(sp, freed)
	case opVersion:
		sp.rec.Version = max(sp.rec.Version, o.version)
		return freed
	}
	if sp.blockLen(b) == 0 {
		return freed
	}
	st := sp.ref(b)
	had := !sp.content(b).empty()
	switch o.kind {
	case opMark:
		if o.version > st.version {
			st.marked = max(st.marked, o.version)
		}
	case opPut:
		if st.slot != 0 {
			freed = append(freed, st.slot)
		}
		sp.setPatches(b, nil)
		st.slot, st.sum = o.slot, o.sum
		st.reach(o.version)
	case opPatch:
		sp.setPatches(b, over(sp.patches[b], newPatch(o, seq, log, base)))
		st.reach(o.version)
	case opFold:
		if st.slot != o.from || st.sum != o.fromSum {
			return append(freed, o.slot) // published anew meanwhile
		}
		if st.slot != 0 {
			freed = append(freed, st.slot)
		}
		st.slot, st.sum = o.slot, o.sum
		sp.setPatches(b, after(sp.patches[b], o.upto))
	case opCarry:
		old := sp.patches[b]
		if rest := after(old, o.upto); len(rest) < len(old) {
			sp.setPatches(b, append([]patch{newPatch(o, seq, log, base)}, rest...))
		}
	}
	if !had && !sp.content(b).empty() {
		s.used += sp.charge(b)
	}
	return freed
}

// reach notes that the block's bytes are of a version, the last there is: puts
// of a block are serialised, and what comes after this one is marked anew.
func (st *blockState) reach(version uint64) { st.version, st.marked = version, 0 }

func newPatch(o *op, seq uint64, log *logFile, base int64) patch {
	return patch{log: log, off: base + o.dataOff, size: uint32(len(o.data)), sum: crc32c.Checksum(o.data), seq: seq, runs: o.runs}
}

// over returns the patches with one more, without those that it covers.
func over(list []patch, p patch) []patch {
	fresh := make([]patch, 0, len(list)+1)
	for _, q := range list {
		if !covers(p.runs, q.runs) {
			fresh = append(fresh, q)
		}
	}
	return append(fresh, p)
}

// covers reports whether each run of q is within one of p.
func covers(p, q []Run) bool {
	if len(p)*len(q) > 1<<12 {
		return false // not worth the search
	}
	for _, r := range q {
		if !slices.ContainsFunc(p, func(c Run) bool {
			return c.Offset <= r.Offset && r.Offset+r.Length <= c.Offset+c.Length
		}) {
			return false
		}
	}
	return true
}

// after returns the patches of records later than seq.
func after(list []patch, seq uint64) []patch {
	var rest []patch
	for _, p := range list {
		if p.seq > seq {
			rest = append(rest, p)
		}
	}
	return rest
}

// drop removes a span and its blocks.
func (s *state) drop(sp *spanState, freed []uint32) []uint32 {
	for b, st := range sp.each() {
		if st.slot != 0 {
			freed = append(freed, st.slot)
		}
		if st.slot != 0 || len(sp.patches[b]) > 0 || sp.ephemeral && st.marked != 0 {
			s.used -= sp.charge(b)
		}
	}
	for b := range sp.patches {
		sp.setPatches(b, nil)
	}
	sp.gone, sp.known = true, false
	sp.chunks = nil
	if !sp.ephemeral {
		delete(s.spans, sp.rec.ID)
	}
	return freed
}

// each yields the blocks that have a state.
func (s *spanState) each() func(yield func(int, blockState) bool) {
	return func(yield func(int, blockState) bool) {
		for i, c := range s.chunks {
			for j, st := range c {
				if st != (blockState{}) && !yield(i*chunkBlocks+j, st) {
					return
				}
			}
		}
	}
}

// dropUnpublished removes the spans that were never, or are not any more, found
// by anybody.
func (s *state) dropUnpublished() {
	for _, sp := range s.spans {
		if !sp.rec.Published {
			s.drop(sp, nil)
		}
	}
}

// slotsUsed returns the slots that blocks are in, ascending, or the error that
// two are in one.
func (s *state) slotsUsed() ([]uint32, error) {
	var all []uint32
	for _, sp := range s.spans {
		for _, st := range sp.each() {
			if st.slot != 0 {
				all = append(all, st.slot)
			}
		}
	}
	slices.Sort(all)
	for i := 1; i < len(all); i++ {
		if all[i] == all[i-1] {
			return nil, &CorruptError{Block: -1, File: blocksName, Offset: slotOffset(all[i]),
				What: fmt.Sprintf("slot %d", all[i]), Expected: "one block", Found: "two blocks that are said to be in it"}
		}
	}
	return all, nil
}

// errGone is the error of calls for a space whose span was deleted or that was
// closed.
var errGone = fmt.Errorf("it was closed or deleted: %w", os.ErrClosed)
