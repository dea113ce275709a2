// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// What may travel in the log: more is cheaper in a slot, with its fsync.
const (
	maxPatch     = 64 << 10
	maxPatchRuns = 4096
	// maxPatches of one block are read one by one; the next is merged with them.
	maxPatches = 512
)

// A Staged is bytes of a durable block that nobody sees until a [Tx] puts them.
// Its methods are not for concurrent use.
type Staged struct {
	space  *Space
	b      int
	runs   []Run  // what the caller changed, in the order it did
	patch  []byte // the runs' bytes, if there is no slot
	slot   uint32
	sums   []uint32 // of the slot's pages
	merged bool     // the slot has bytes that were published as version base
	base   uint64
	charge int64 // counted for it: the block had no contents
	done   bool  // put or discarded
}

// Space returns the space of the block.
func (st *Staged) Space() *Space { return st.space }

// Block returns the block's number.
func (st *Staged) Block() int { return st.b }

// Stale reports whether the block was published anew since, and these bytes
// were merged with the old ones: Commit would refuse them, Restage helps.
func (st *Staged) Stale() bool {
	t := st.space.t
	t.mu.RLock()
	defer t.mu.RUnlock()
	return st.staleLocked()
}

func (st *Staged) staleLocked() bool {
	return st.merged && !st.space.sp.gone && st.space.sp.at(st.b).version != st.base
}

// Discard forgets the bytes. It does nothing after the first time, or after
// Put.
func (st *Staged) Discard() {
	if st.done {
		return
	}
	st.done = true
	st.free()
}

// free gives back what the bytes took.
func (st *Staged) free() {
	t := st.space.t
	t.mu.Lock()
	t.staged -= st.charge
	t.stagedPatches -= int64(len(st.patch))
	t.mu.Unlock()
	if st.slot != 0 {
		t.slots.give(st.slot)
	}
}

// Stage writes the bytes that the block will have if these runs of the
// published ones are replaced, where nobody sees them before a [Tx] puts them.
// The runs are ascending and within the block; data holds their bytes, one run
// after the other, and must not change during the call.
//
// It may be called by several goroutines, for one block too, without any lock on
// the block, and be put much later. It fails with tier.ErrBudget if the budget
// or the file system is full.
func (s *Space) Stage(ctx context.Context, b int, runs []Run, data tier.Memory) (*Staged, error) {
	if err := s.check(ctx, b, 0, 0); err != nil {
		return nil, s.wrap(err, "stage", b, 0, 0)
	}
	var st *Staged
	err := checkRuns(runs, s.sp.blockLen(b), data.Len)
	if s.sp.ephemeral {
		err = errors.New("the space is ephemeral: write to it")
	}
	if err == nil {
		err = memoryGuard(func() (err error) {
			st, err = s.stage(ctx, b, nil, append([]Run(nil), runs...), data.Bytes())
			return err
		})
	}
	return st, s.wrap(err, "stage", b, 0, data.Len)
}

func checkRuns(runs []Run, length, total int64) error {
	end, sum := int64(0), int64(0)
	for _, r := range runs {
		if int64(r.Offset) < end || r.Length == 0 || int64(r.Offset)+int64(r.Length) > length {
			return fmt.Errorf("run [%d, +%d) is empty, does not follow the one before, or is outside the block's %d bytes", r.Offset, r.Length, length)
		}
		end = int64(r.Offset) + int64(r.Length)
		sum += int64(r.Length)
	}
	if sum != total || total == 0 {
		return fmt.Errorf("runs of %d bytes have %d", sum, total)
	}
	return nil
}

// stage stages runs over what is published, or over prior, which stays.
func (s *Space) stage(ctx context.Context, b int, prior *Staged, runs []Run, data []byte) (_ *Staged, err error) {
	t, length := s.t, s.sp.blockLen(b)
	st := &Staged{space: s, b: b, runs: runs}
	inPatch := prior == nil || prior.slot == 0
	size, count := len(data), len(runs)
	if prior != nil {
		size, count = size+len(prior.patch), count+len(prior.runs)
		st.runs = append(append([]Run(nil), prior.runs...), runs...)
	}
	whole := len(runs) == 1 && int64(runs[0].Length) == length
	if whole {
		st.runs = runs
	}
	if err := t.charge(st); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			st.Discard()
		}
	}()
	if inPatch && size <= maxPatch && count <= maxPatchRuns && t.patchRoom(s.sp, b, int64(size)) {
		st.runs = append([]Run(nil), runs...)
		if prior != nil {
			st.runs = append(append([]Run(nil), prior.runs...), runs...)
			st.patch = append(st.patch, prior.patch...)
		}
		st.patch = append(st.patch, data...)
		return st, nil
	}
	if whole {
		return st, t.fillSlot(st, data)
	}
	buf := t.buffer()
	defer t.putBuffer(buf)
	block := buf[:length]
	if prior != nil && prior.slot != 0 {
		st.merged, st.base = prior.merged, prior.base
		err = prior.read(block)
	} else {
		var c content
		c, err = t.readVersion(ctx, s.sp, b, 0, block)
		st.merged, st.base = true, c.version
		if err == nil && prior != nil {
			scatter(block, prior.runs, prior.patch)
		}
	}
	if err != nil {
		return nil, err
	}
	scatter(block, runs, data)
	return st, t.fillSlot(st, block)
}

// scatter puts the bytes of runs where they belong in a block.
func scatter(block []byte, runs []Run, data []byte) {
	for _, r := range runs {
		memfd.Copy(block[r.Offset:r.Offset+r.Length], data)
		data = data[r.Length:]
	}
}

// charge counts a block that has no contents yet against the budget.
func (t *Tier) charge(st *Staged) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	sp := st.space.sp
	if sp.gone {
		return errGone
	}
	if !sp.content(st.b).empty() {
		return nil
	}
	n := sp.charge(st.b)
	if err := t.roomLocked(n); err != nil {
		return err
	}
	st.charge = n
	t.staged += n
	return nil
}

// roomLocked tells whether n more bytes fit the budget. The caller holds mu.
func (t *Tier) roomLocked(n int64) error {
	if used := t.state.used + t.staged; t.budget > 0 && used > t.budget-n {
		return fmt.Errorf("%d bytes more than the %d in use exceed the budget of %d: %w", n, used, t.budget, tier.ErrBudget)
	}
	return nil
}

// maxStagedPatches bounds the memory that patches take before they are
// committed: beyond it they go to slots.
const maxStagedPatches = 64 << 20

// patchRoom takes room for n bytes of a patch of block b, if there is.
func (t *Tier) patchRoom(sp *spanState, b int, n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stagedPatches > maxStagedPatches-n || len(sp.patches[b]) >= maxPatches {
		return false
	}
	t.stagedPatches += n
	return true
}

// fillSlot writes a block's data to a fresh slot. The header follows when the
// block's version is known.
func (t *Tier) fillSlot(st *Staged, block []byte) error {
	slot, err := t.slots.take()
	if err != nil {
		return err
	}
	st.slot = slot
	st.sums = pageSums(make([]uint32, 0, len(block)/pageSize+1), block)
	if _, err = t.slots.f.Writev([][]byte{block}, slotOffset(slot)+headerSize); err != nil {
		return full(err)
	}
	// The fsync of a long flush finds most of it written already.
	_ = t.slots.f.StartWriteback(slotOffset(slot)+headerSize, int64(len(block)))
	return nil
}

// read returns the bytes of a block that was staged in a slot.
func (st *Staged) read(block []byte) error {
	t := st.space.t
	at := slotOffset(st.slot) + headerSize
	if err := t.readFull(st.space.sp, st.b, [][]byte{block}, at); err != nil {
		return err
	}
	for i, sum := range pageSums(nil, block) {
		if sum != st.sums[i] {
			return t.corrupt(st.space.sp, st.b, blocksName, at+int64(i)*pageSize, fmt.Sprintf("page %d of staged data", i),
				fmt.Sprintf("checksum %#x", st.sums[i]), fmt.Sprintf("%#x", sum))
		}
	}
	return nil
}

// Restage stages the same changes over what is published now, and discards st.
// The caller sees to it that the block is not published meanwhile. If it fails,
// st is as it was.
func (st *Staged) Restage(ctx context.Context) (*Staged, error) {
	s := st.space
	if st.done {
		return nil, s.wrap(errors.New("it was put or discarded"), "restage", st.b, 0, 0)
	}
	fresh, err := st.restage(ctx)
	if err != nil {
		return nil, s.wrap(err, "restage", st.b, 0, 0)
	}
	if fresh != st {
		st.Discard()
	}
	return fresh, nil
}

func (st *Staged) restage(ctx context.Context) (*Staged, error) {
	if !st.merged {
		return st, nil
	}
	s := st.space
	if err := s.check(ctx, st.b, 0, 0); err != nil {
		return nil, err
	}
	old := s.t.buffer()
	defer s.t.putBuffer(old)
	block := old[:s.sp.blockLen(st.b)]
	if err := st.read(block); err != nil {
		return nil, err
	}
	fresh := &Staged{space: s, b: st.b, runs: st.runs, merged: true}
	if err := s.t.charge(fresh); err != nil {
		return nil, err
	}
	buf := s.t.buffer()
	defer s.t.putBuffer(buf)
	now := buf[:len(block)]
	c, err := s.t.readVersion(ctx, s.sp, st.b, 0, now)
	if err == nil {
		fresh.base = c.version
		for _, r := range st.runs {
			copy(now[r.Offset:r.Offset+r.Length], block[r.Offset:])
		}
		err = s.t.fillSlot(fresh, now)
	}
	if err != nil {
		fresh.Discard()
		return nil, err
	}
	return fresh, nil
}

// publishEphemeral replaces runs of an ephemeral block.
func (t *Tier) publishEphemeral(ctx context.Context, sp *spanState, b int, runs []Run, data []byte) error {
	block := data
	if int64(len(data)) != sp.blockLen(b) {
		buf := t.buffer()
		defer t.putBuffer(buf)
		block = buf[:sp.blockLen(b)]
		if err := t.readBlock(ctx, sp, b, 0, block); err != nil {
			return err
		}
		scatter(block, runs, data)
	}
	head := t.page()
	defer t.pages.Put(head)
	h := header{
		store: t.store, block: uint32(b), ephemeral: true, stamp: t.stamp.Add(1), length: uint32(len(block)),
		rec: Record{Size: sp.size}, sums: pageSums(make([]uint32, 0, blockPages), block),
	}
	sum := h.encode(head[:])
	slot, err := t.slots.take()
	if err != nil {
		return err
	}
	if _, err := t.slots.f.Writev([][]byte{head[:], block}, slotOffset(slot)); err != nil {
		t.slots.give(slot)
		return full(err)
	}
	t.mu.Lock()
	if sp.gone || sp.at(b).marked == 0 {
		t.mu.Unlock()
		t.slots.give(slot)
		return errGone
	}
	st := sp.ref(b)
	old := st.slot
	st.slot, st.sum = slot, sum
	t.mu.Unlock()
	if old != 0 {
		t.slots.give(old)
	}
	return nil
}
