// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// Abandon ends the tier as the end of its process would: nothing is written.
func (t *Tier) Abandon() error {
	t.stop()
	t.work.Wait()
	closed := errClosed
	t.failed.CompareAndSwap(nil, &closed)
	return errors.Join(t.closeFiles(), t.lock.Close())
}

// Checkpoint makes a checkpoint now.
func (t *Tier) Checkpoint() error { return t.checkpoint(context.Background()) }

// Populate makes spans of blocks that are said to be in slots.
func Populate(t *Tier, spans, blocks int) error {
	t.mu.Lock()
	for n := range spans {
		rec := Record{Name: fmt.Sprint("span ", n), Size: int64(blocks) << 20, Published: true}
		binary.LittleEndian.PutUint32(rec.ID[:], uint32(n))
		t.state.apply(&op{kind: opSet, id: rec.ID, rec: rec}, 0, nil, 0, nil)
		for b := range blocks {
			slot := uint32(n*blocks + b + 1)
			t.state.apply(&op{kind: opPut, id: rec.ID, block: uint32(b), version: 1, slot: slot, sum: slot, stamp: 1}, 0, nil, 0, nil)
		}
	}
	t.mu.Unlock()
	t.slots.fresh = uint32(spans*blocks) + 1
	return errors.Join(t.slots.f.Truncate(slotOffset(t.slots.fresh)), t.Checkpoint())
}
