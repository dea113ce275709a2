// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"encoding/hex"
	"io"
	"io/fs"
	"slices"
)

// lose makes a block a known loss.
func (s *salvage) lose(p place) {
	st := &s.t.state
	sp := st.spans[p.id]
	if sp == nil || sp.blockLen(p.b) == 0 {
		return
	}
	ref := sp.ref(p.b)
	if !sp.content(p.b).empty() {
		st.used -= sp.charge(p.b)
	}
	sp.setPatches(p.b, nil)
	*ref = blockState{marked: max(s.lost[p], ref.version, ref.marked)}
}

// repair writes what was salvaged as a whole directory.
func (s *salvage) repair(ctx context.Context) (err error) {
	t := s.t
	for p := range s.lost {
		s.lose(p)
	}
	s.nameOnce()
	if err := writeWhole(t.dir, formatName, encodeFormat(t.store)); err != nil {
		return err
	}
	if _, none := t.slots.f.(noFile); none {
		if t.slots.f, err = t.dir.open(blocksName, true); err != nil {
			return err
		}
	}
	number := max(slices.Max(append(s.files.logs, 0)), slices.Max(append(s.files.indexes, 0))) + 1
	if t.tail, err = newLog(t.dir, t.store, number, t.state.seq+1, t.stamp.Load()); err != nil {
		return err
	}
	t.logs[number] = t.tail
	// What the old logs have of blocks comes into the new one, and into slots
	// that are beyond all others: nothing is overwritten before it is there.
	size, err := t.slots.f.Size()
	if err != nil {
		return err
	}
	t.slots.fresh = uint32((size+stride-1)/stride) + 1
	if err := t.relocate(ctx, number); err != nil {
		return err
	}
	if _, err := writeIndex(t.dir, t.store, t.state.snapshot(number)); err != nil {
		return err
	}
	used, err := t.state.slotsUsed()
	if err != nil {
		return err
	}
	t.slots.warm, t.slots.cold = nil, nil
	if err := t.slots.found(used); err != nil {
		return err
	}
	if err := t.slots.f.Sync(); err != nil {
		return err
	}
	return t.forget(number)
}

// nameOnce gives spans that were rebuilt with the name of another one their id
// behind it.
func (s *salvage) nameOnce() {
	if !s.rebuilt {
		return
	}
	byName := make(map[string]bool)
	for _, sp := range s.t.state.spans {
		if sp.rec.Name != "" && byName[sp.rec.Name] {
			sp.rec.Name += "~" + hex.EncodeToString(sp.rec.ID[:4])
		}
		byName[sp.rec.Name] = true
	}
}

// noFile is a file that is missing.
type noFile struct{}

func (noFile) Readv([][]byte, int64) (int, error)  { return 0, io.EOF }
func (noFile) Writev([][]byte, int64) (int, error) { return 0, fs.ErrNotExist }
func (noFile) Sync() error                         { return nil }
func (noFile) Size() (int64, error)                { return 0, nil }
func (noFile) Truncate(int64) error                { return fs.ErrNotExist }
func (noFile) Allocate(int64, int64) error         { return fs.ErrNotExist }
func (noFile) Punch(int64, int64) error            { return fs.ErrNotExist }
func (noFile) StartWriteback(int64, int64) error   { return nil }
func (noFile) WillNeed(int64, int64) error         { return nil }
func (noFile) Close() error                        { return nil }
