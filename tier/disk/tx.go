// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
)

// A Tx is changes of durable spans that become durable and published together,
// or not at all. It is not for concurrent use; many may be under way at once,
// and their Commits share writes and fsyncs. Those of one block are serialised
// by the caller, who also sees to it that nobody reads a block while a Commit
// puts it.
type Tx struct {
	t    *Tier
	ops  []op
	fail error // of an argument
	done bool
}

// Begin returns an empty transaction. It ends with Commit or Discard.
func (t *Tier) Begin() *Tx { return &Tx{t: t} }

// Set makes rec the record of the span rec.ID, which it makes a durable one if
// it is not. The size of a span does not change.
func (x *Tx) Set(rec Record) {
	if err := rec.check(); err != nil && x.fail == nil {
		x.fail = fmt.Errorf("record of span %q: %w", rec.label(), err)
	}
	x.ops = append(x.ops, op{kind: opSet, rec: rec, id: rec.ID})
}

// Delete removes a span and its blocks.
func (x *Tx) Delete(id ID) { x.ops = append(x.ops, op{kind: opDelete, id: id}) }

// Mark notes that block b has a version whose bytes Disk does not hold: after a
// crash its loss is known. The next Put ends it, whatever its version.
func (x *Tx) Mark(s *Space, b int, version uint64) {
	x.block(op{kind: opMark, version: version}, s, b)
}

// Put makes st's bytes the block's version. The transaction owns st from now on.
func (x *Tx) Put(st *Staged, version uint64) {
	if st.done && x.fail == nil {
		x.fail = fmt.Errorf("block %d of %q: put or discarded before", st.b, st.space.name)
	}
	st.done = true
	o := op{kind: opPut, version: version, slot: st.slot, staged: st}
	if st.slot == 0 {
		o.kind, o.runs, o.data = opPatch, st.runs, st.patch
	}
	x.block(o, st.space, st.b)
}

// Version makes v the span's version, unless that is higher.
func (x *Tx) Version(s *Space, v uint64) {
	x.ops = append(x.ops, op{kind: opVersion, id: s.sp.id, version: v, space: s.sp})
}

// Epoch makes n the epoch, unless that is higher.
func (x *Tx) Epoch(n uint64) { x.ops = append(x.ops, op{kind: opEpoch, version: n}) }

func (x *Tx) block(o op, s *Space, b int) {
	if (s.t != x.t || s.sp.ephemeral || s.sp.blockLen(b) == 0) && x.fail == nil {
		x.fail = fmt.Errorf("block %d of %q: not a block of a durable span of this tier", b, s.name)
	}
	o.id, o.block, o.space = s.sp.id, uint32(b), s.sp
	x.ops = append(x.ops, o)
}

// Discard ends the transaction with nothing changed. It does nothing after
// Commit.
func (x *Tx) Discard() {
	if !x.done {
		x.done = true
		x.release()
	}
}

// release gives back what was to be put.
func (x *Tx) release() {
	for i := range x.ops {
		if st := x.ops[i].staged; st != nil {
			st.free()
		}
	}
}

// Commit makes all of the transaction durable and published, or, if it returns
// an error, none of it. The context bounds waiting only. It fails with
// tier.ErrBudget if the file system is full, ErrStale, ErrUnknown, or, for good,
// with ErrFailed. The transaction ends, and what was to be put is discarded,
// either way.
func (x *Tx) Commit(ctx context.Context) error {
	if x.done {
		return errors.New("tier/disk: commit: the transaction has ended")
	}
	x.done = true
	c, err := x.prepare(ctx)
	if err == nil && len(c.ops) > 0 {
		err = x.t.commit(ctx, c)
	}
	if err != nil {
		// What the disk may still name must not be overwritten.
		if x.t.Err() == nil {
			x.release()
		}
		return fmt.Errorf("tier/disk: commit of %d changes: %w", len(x.ops), err)
	}
	return nil
}

// maxLate slots become durable at the same time as the record that names them,
// which spares a commit one fsync. More do before: others wait for the log.
const maxLate = 8

// prepare writes what the record will name, and encodes it.
func (x *Tx) prepare(ctx context.Context) (*commit, error) {
	t := x.t
	if x.fail != nil {
		return nil, x.fail
	}
	if err := t.Err(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	recs, err := x.records()
	if err != nil {
		return nil, err
	}
	head := t.page()
	defer t.pages.Put(head)
	slots := 0
	late := len(t.syncTurn) == 0 // a sync under way may take long: others would wait
	for i := range x.ops {
		o := &x.ops[i]
		if o.kind != opPut {
			continue
		}
		slots++
		o.stamp = t.stamp.Add(1)
		h := header{
			store: t.store, block: o.block, version: o.version, stamp: o.stamp, length: uint32(o.space.blockLen(int(o.block))),
			rec: recs[o.id], sums: o.staged.sums,
		}
		o.sum = h.encode(head[:])
		if _, err := t.slots.f.Writev([][]byte{head[:]}, slotOffset(o.slot)); err != nil {
			return nil, full(err)
		}
	}
	late = late && slots <= maxLate
	if slots > 0 && !late {
		if err := t.syncBlocks(ctx); err != nil {
			return nil, err
		}
	}
	c := &commit{ops: x.ops, done: make(chan struct{})}
	if slots > 0 && late {
		c.flags = flagSlots
	}
	for i := range x.ops {
		c.payload = x.ops[i].append(c.payload)
	}
	if len(c.payload) > maxRecord {
		return nil, fmt.Errorf("its record has %d bytes, the limit is %d: commit less at once", len(c.payload), maxRecord)
	}
	return c, nil
}

// records checks that what the transaction changes is there and not stale, and
// returns the records of the spans it puts blocks of.
func (x *Tx) records() (map[ID]Record, error) {
	recs := make(map[ID]Record)
	x.t.mu.RLock()
	defer x.t.mu.RUnlock()
	for i := range x.ops {
		o := &x.ops[i]
		if o.kind == opSet {
			recs[o.id] = o.rec
			if sp := x.t.state.spans[o.id]; sp != nil && sp.rec.Size != o.rec.Size {
				return nil, fmt.Errorf("span %q: size %d cannot become %d", sp.rec.label(), sp.rec.Size, o.rec.Size)
			}
		}
	}
	for i := range x.ops {
		o := &x.ops[i]
		if o.space == nil {
			continue
		}
		if _, set := recs[o.id]; !set {
			if o.space.gone || !o.space.known {
				return nil, fmt.Errorf("span %q: %w", o.space.rec.label(), ErrUnknown)
			}
			recs[o.id] = o.space.rec
		}
		if o.staged != nil && o.staged.staleLocked() {
			return nil, fmt.Errorf("block %d of span %q: %w", o.block, o.space.rec.label(), ErrStale)
		}
	}
	return recs, nil
}
