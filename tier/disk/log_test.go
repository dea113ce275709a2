// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"testing"
)

// What stands behind the record that ends a log is not read: the rest of commits
// that a loss of power tore, before recovery began the next log, may look whole.
func TestNothingFollowsTheEnd(t *testing.T) {
	ctx := context.Background()
	d := newMemDisk()
	tr, err := openDirectory(ctx, d, Config{})
	if err != nil {
		t.Fatal(err)
	}
	epoch := func(tr *Tier, n uint64) {
		t.Helper()
		x := tr.Begin()
		x.Epoch(n)
		if err := x.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	epoch(tr, 1)
	old := tr.tail
	at, salt, seq := old.tail, old.salt, tr.state.seq
	tr.logTurn <- struct{}{}
	if err := tr.rotate(); err != nil {
		t.Fatal(err)
	}
	<-tr.logTurn
	// Of a batch whose first record stood where the end does, the second.
	rest := op{kind: opEpoch, version: 77}
	size := old.tail - at
	if _, err := old.f.Writev([][]byte{appendLogRecord(nil, salt, seq+2, seq, 0, rest.append(nil))}, at+size); err != nil {
		t.Fatal(err)
	}
	if err := old.f.Sync(); err != nil {
		t.Fatal(err)
	}
	epoch(tr, 2)
	tr.abandon()
	report, err := checkDirectory(ctx, d.crash(d.moment(), func() bool { return true }), false)
	if err != nil || len(report.Faults) > 0 {
		t.Errorf("checked: %+v, %v", report, err)
	}
	after, err := openDirectory(ctx, d.crash(d.moment(), func() bool { return true }), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Epoch(); n != 2 {
		t.Errorf("epoch %d, want 2", n)
	}
	after.abandon()
}
