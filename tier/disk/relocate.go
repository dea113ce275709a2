// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"cmp"
	"context"
	"slices"
)

const (
	// foldShare: patches that hold this part of a block are folded into a slot.
	foldShare = 4
	// maxCarried bounds the bytes of patches that live in logs.
	maxCarried = 1 << 30
	// relocateBatch bounds what one commit of relocations writes, in bytes.
	relocateBatch = 32 << 20
)

// A relocation is a block whose patches are in logs that are to go.
type relocation struct {
	sp   *spanState
	id   ID
	b    int
	size int64 // of the patches
}

// relocate takes the patches out of logs before number: those that hold a good
// part of their block go into a fresh slot with the rest of it, others into the
// present log. Blocks that cannot be read are left, and the logs with them.
func (t *Tier) relocate(ctx context.Context, number uint64) error {
	list := t.relocations(number)
	carried := int64(0)
	for _, r := range list {
		carried += r.size
	}
	var batch []op
	size := int64(0)
	flush := func() error {
		err := t.commitRelocated(ctx, batch)
		batch, size = nil, 0
		return err
	}
	for _, r := range list { // the fullest first
		if t.Err() != nil || ctx.Err() != nil {
			break
		}
		fold := r.size*foldShare >= r.sp.blockLen(r.b) || carried > maxCarried
		o, n, err := t.relocateBlock(ctx, r, fold)
		if err != nil {
			t.log.Warn("a block's patches stay in an old log", "dir", t.dirName, "err", err)
			continue
		}
		if fold {
			carried -= r.size
		}
		if o.kind == 0 {
			continue
		}
		batch = append(batch, o)
		if size += n; size >= relocateBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// relocations returns the blocks with patches in logs before number, those with
// the most first.
func (t *Tier) relocations(number uint64) []relocation {
	var list []relocation
	t.mu.RLock()
	for id, sp := range t.state.spans {
		for b, patches := range sp.patches {
			if !sp.known || !slices.ContainsFunc(patches, func(p patch) bool { return p.log.number < number }) {
				continue
			}
			r := relocation{sp: sp, id: id, b: b}
			for _, p := range patches {
				r.size += int64(p.size)
			}
			list = append(list, r)
		}
	}
	t.mu.RUnlock()
	slices.SortFunc(list, func(a, b relocation) int {
		return cmp.Or(cmp.Compare(b.size, a.size), slices.Compare(a.id[:], b.id[:]), cmp.Compare(a.b, b.b))
	})
	return list
}

// relocateBlock returns the operation that takes the place of a block's patches,
// having written the slot it needs, if any, and how many bytes that takes. The
// operation's kind is 0 if there is nothing left to do.
func (t *Tier) relocateBlock(ctx context.Context, r relocation, fold bool) (o op, n int64, err error) {
	t.mu.RLock()
	gone := r.sp.gone
	var c content
	if !gone {
		c = r.sp.content(r.b)
	}
	o = op{id: r.id, block: uint32(r.b), space: r.sp, version: c.version, upto: t.state.seq, from: c.slot, fromSum: c.sum}
	o.rec = r.sp.rec
	t.mu.RUnlock()
	if gone || len(c.patches) == 0 {
		return op{}, 0, nil
	}
	buf := t.buffer()
	defer t.putBuffer(buf)
	block := buf[:r.sp.blockLen(r.b)]
	runs := union(c.patches)
	fold = fold || len(runs) > maxPatchRuns
	if !fold {
		c.slot = 0 // only the patches are wanted
	}
	if err := t.readContent(r.sp, r.b, c, 0, block); err != nil {
		now, gone := t.contentOf(r.sp, r.b)
		if gone != nil || now.slot != o.from || now.sum != o.fromSum || len(after(now.patches, o.upto)) == len(now.patches) {
			return op{}, 0, nil // replaced meanwhile
		}
		return op{}, 0, err
	}
	if !fold {
		o.kind, o.runs = opCarry, runs
		for _, run := range runs {
			o.data = append(o.data, block[run.Offset:run.Offset+run.Length]...)
		}
		return o, int64(len(o.data)), nil
	}
	o.kind, o.stamp = opFold, t.stamp.Add(1)
	if o.slot, err = t.slots.take(); err != nil {
		return op{}, 0, err
	}
	head := t.page()
	defer t.pages.Put(head)
	h := header{
		store: t.store, block: o.block, version: o.version, stamp: o.stamp, length: uint32(len(block)),
		rec: o.rec, sums: pageSums(make([]uint32, 0, blockPages), block),
	}
	o.sum = h.encode(head[:])
	if _, err := t.slots.f.Writev([][]byte{head[:], block}, slotOffset(o.slot)); err != nil {
		t.slots.give(o.slot)
		return op{}, 0, full(err)
	}
	return o, headerSize + int64(len(block)), nil
}

// commitRelocated makes relocations durable and publishes them.
func (t *Tier) commitRelocated(ctx context.Context, ops []op) error {
	if len(ops) == 0 {
		return nil
	}
	c := &commit{ops: ops, done: make(chan struct{})}
	var slots []uint32
	copied := make(map[ID]bool)
	for i := range ops {
		o := &ops[i]
		if o.kind == opFold {
			slots = append(slots, o.slot)
		} else if !copied[o.id] {
			copied[o.id] = true
			c.payload = (&op{kind: opCopy, rec: o.rec}).append(c.payload)
		}
		c.payload = o.append(c.payload)
	}
	var err error
	if len(slots) > 0 {
		err = t.syncBlocks(ctx)
	}
	if err == nil {
		err = t.commit(ctx, c)
	}
	if err != nil && t.Err() == nil {
		t.slots.give(slots...)
	}
	return err
}

// union returns the bytes that patches have, as ascending runs with gaps between
// them.
func union(patches []patch) []Run {
	var all []Run
	for _, p := range patches {
		all = append(all, p.runs...)
	}
	slices.SortFunc(all, func(a, b Run) int { return cmp.Compare(a.Offset, b.Offset) })
	var runs []Run
	for _, r := range all {
		if n := len(runs); n > 0 && r.Offset <= runs[n-1].Offset+runs[n-1].Length {
			runs[n-1].Length = max(runs[n-1].Length, r.Offset+r.Length-runs[n-1].Offset)
			continue
		}
		runs = append(runs, r)
	}
	return runs
}
