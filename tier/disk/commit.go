// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// A commit is a transaction on its way into the log.
type commit struct {
	ops     []op
	flags   uint32 // of the record
	payload []byte
	done    chan struct{} // closed when err is what became of it
	err     error
}

// Err returns why the tier takes no more changes, or nil. It is an ErrFailed.
func (t *Tier) Err() error {
	if p := t.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail ends all changes: nobody knows what the disk holds.
func (t *Tier) fail(cause error) error {
	err := fmt.Errorf("%w: %w: open it anew to go on with what the disk holds", ErrFailed, cause)
	if t.failed.CompareAndSwap(nil, &err) {
		t.log.Error("the disk tier failed, no more changes are taken", "dir", t.dirName, "err", cause)
	}
	return t.Err()
}

// syncBlocks makes durable what was written to slots before it was called. Calls
// that wait share the next fsync. Only one runs at a time: it is told of errors
// that concern what others have written, and they must not go on.
func (t *Tier) syncBlocks(ctx context.Context) error {
	t.mu.Lock()
	want := t.syncsBegun + 1
	t.mu.Unlock()
	select {
	case t.syncTurn <- struct{}{}:
		defer func() { <-t.syncTurn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := t.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	if t.syncsBegun >= want {
		t.mu.Unlock()
		return nil
	}
	t.syncsBegun++
	t.mu.Unlock()
	if err := t.slots.f.Sync(); err != nil {
		return t.fail(err)
	}
	return nil
}

// maxBatch bounds what one write of the log holds, unless one record alone is
// larger.
const maxBatch = 16 << 20

// commit brings c into the log, together with others that wait, and publishes
// it.
func (t *Tier) commit(ctx context.Context, c *commit) error {
	t.queueMu.Lock()
	t.queue = append(t.queue, c)
	t.queueMu.Unlock()
	ended := ctx.Done()
	for {
		select {
		case <-c.done:
			return c.err
		case t.logTurn <- struct{}{}:
			t.writeBatch()
			<-t.logTurn
		case <-ended:
			if t.withdraw(c) {
				return context.Cause(ctx)
			}
			ended = nil // it is being written: the outcome is near
		}
	}
}

// withdraw takes c out of the queue, if it is there.
func (t *Tier) withdraw(c *commit) bool {
	t.queueMu.Lock()
	defer t.queueMu.Unlock()
	i := slices.Index(t.queue, c)
	if i < 0 {
		return false
	}
	t.queue = slices.Delete(t.queue, i, i+1)
	return true
}

// nextBatch takes from the queue what is to be written at once.
func (t *Tier) nextBatch() []*commit {
	t.queueMu.Lock()
	defer t.queueMu.Unlock()
	n, size := 0, 0
	for n < len(t.queue) && (n == 0 || size+len(t.queue[n].payload) <= maxBatch) {
		size += len(t.queue[n].payload)
		n++
	}
	batch := slices.Clone(t.queue[:n])
	t.queue = slices.Delete(t.queue, 0, n)
	return batch
}

// writeBatch writes commits that wait. The caller has the log's turn.
func (t *Tier) writeBatch() {
	batch := t.nextBatch()
	if len(batch) == 0 {
		return
	}
	err := t.Err()
	if err == nil {
		err = t.write(batch)
	}
	for _, c := range batch {
		c.err = err
		close(c.done)
	}
}

// write appends the records of commits to the log, all with one fsync, and
// publishes them.
func (t *Tier) write(batch []*commit) error {
	seq := t.state.seq // changes only in the log's turn
	buf := t.batch[:0]
	bases := make([]int64, len(batch))
	for i, c := range batch {
		bases[i] = t.tail.tail + int64(len(buf)) + recordHeader
		buf = appendLogRecord(buf, t.tail.salt, seq+1+uint64(i), seq, c.flags, c.payload)
	}
	if cap(buf) <= 2*maxBatch {
		t.batch = buf
	}
	var slots chan error
	if slices.ContainsFunc(batch, func(c *commit) bool { return c.flags&flagSlots != 0 }) {
		slots = make(chan error, 1)
		go func() { slots <- t.syncBlocks(context.Background()) }()
	}
	certain, err := t.tail.append(buf)
	if slots != nil {
		if serr := <-slots; serr != nil {
			return serr // for good: the record may be there, or not
		}
	}
	if err != nil && !certain {
		return t.fail(err)
	}
	if err != nil {
		return err
	}
	// Before any slot is wiped that these records have replaced.
	t.tail.note(seq + uint64(len(batch)))
	t.publish(batch, bases)
	if t.tail.tail > t.checkpointAt {
		select {
		case t.wake <- struct{}{}:
		default: // it is awake
		}
	}
	return nil
}

// publish applies records that are durable.
func (t *Tier) publish(batch []*commit, bases []int64) {
	var freed []uint32
	t.mu.Lock()
	for i, c := range batch {
		t.state.seq++
		for j := range c.ops {
			o := &c.ops[j]
			if st := o.staged; st != nil {
				t.staged -= st.charge
				t.stagedPatches -= int64(len(st.patch))
			}
			freed = t.state.apply(o, t.state.seq, t.tail, bases[i], freed)
		}
	}
	t.mu.Unlock()
	t.slots.give(freed...)
}

var errClosed = errors.New("the tier is closed")
