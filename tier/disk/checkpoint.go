// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
)

const (
	// leastLog is how long the log grows before it is worth a checkpoint, in bytes.
	leastLog = 64 << 20
	// mostLogs is how many files of it are.
	mostLogs = 8
)

// rotate begins a new log file. The caller has the log's turn, or is alone.
func (t *Tier) rotate() error {
	next := t.tail.number + 1
	seq := t.state.seq
	fresh, err := newLog(t.dir, t.store, next, seq+2, t.stamp.Load())
	if err != nil {
		return full(err)
	}
	// Until the end's record is durable the new log is none: recovery goes on
	// in the old one.
	end := op{kind: opEnd, version: next}
	certain, err := t.tail.append(appendLogRecord(nil, t.tail.salt, seq+1, seq, 0, end.append(nil)))
	if err != nil {
		_ = fresh.f.Close()
		if !certain {
			return t.fail(err)
		}
		return err
	}
	t.mu.Lock()
	t.state.seq++
	t.logs[next] = fresh
	t.mu.Unlock()
	t.tail = fresh
	return nil
}

// checkpoint moves what lives in the log, makes a new index, and removes what is
// older. Commits go on meanwhile.
func (t *Tier) checkpoint(ctx context.Context) error {
	select {
	case t.logTurn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := t.Err()
	if err == nil {
		err = t.rotate()
	}
	var number uint64
	if err == nil {
		number = t.tail.number
	}
	<-t.logTurn
	if err != nil {
		return err
	}
	if err := t.relocate(ctx, number); err != nil {
		return err
	}
	t.mu.RLock()
	x := t.state.snapshot(number)
	t.mu.RUnlock()
	size, err := writeIndex(t.dir, t.store, x)
	if err != nil {
		return full(err)
	}
	t.covered = x.seq
	select {
	case t.logTurn <- struct{}{}:
		t.checkpointAt = max(leastLog, size)
		<-t.logTurn
	case <-ctx.Done():
	}
	return errors.Join(t.forget(number), t.slots.trim())
}

// forget removes indexes before number, and logs before it unless they have bytes
// of blocks yet.
func (t *Tier) forget(number uint64) error {
	f, err := listFiles(t.dir)
	if err != nil {
		return err
	}
	for _, n := range f.indexes {
		if n < number {
			if err := t.dir.remove(numbered(indexName, n)); err != nil {
				return err
			}
		}
	}
	for _, n := range f.logs {
		t.mu.Lock()
		l := t.logs[n]
		needed := n >= number || l != nil && l.live > 0
		if !needed {
			delete(t.logs, n)
		}
		t.mu.Unlock()
		if needed {
			continue
		}
		if l != nil {
			_ = l.f.Close()
		}
		if err := t.dir.remove(numbered(logName, n)); err != nil {
			return err
		}
	}
	return nil
}
