// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"errors"
	"slices"
	"testing"
)

// The rows of facts C3 and the tests that hold their correct behaviour.
//
//	 1 TestTieredStateWriteThrough       16 TestStaleIsNeverServed
//	 2 TestTieredStateWriteAll           17 TestVersionCountsCommits
//	 3 TestTieredBlock                   18 TestSyncProtocolEpoch, package span
//	 4 TestOwnerKeepsItsDuty             19 TestTransientStates, TestSearch
//	 5 TestPrefetchOfCleanBlock          20 TestSyncQueue
//	 6 TestPlanNamesSourceAndVersion     21 TestWriteIsBracketed
//	 7 TestEvictWritesBack               22 a span's blocks have one size: package span
//	 8 TestOwnerKeepsItsDuty             23 TestFailedWriteBackKeepsCopy
//	 9 TestCompletionIsChecked           24 TestEvictWritesBack, TestPins
//	10 TestHomeAckClearsDebt             25 memory is the tiers': Evict's done, package span
//	11 TestWrittenAwayFromHome           26 TestCompletionIsChecked (tickets); spaces: package tier
//	12 TestPartialWriteFetches           27 TestDebtsGoOn; collecting errors: package span
//	13 TestSecondWriterHasFirstsBytes    28 blocks; ranges and sums: packages span and wire
//	14 TestHostWriteKeepsDevices         29 TestDeath, TestAccept, machines of TestSearch
//	15 TestAdoptIsForce                  30 package sparsevec; ids: package span

func TestOwnerKeepsItsDuty(t *testing.T) {
	m := resident(t, disk, WriteBack)
	write(t, m, 0, gpu)
	acquire(t, m, 0, ram)
	info := m.Block(0)
	if info.Replicas[gpu].State != Owned || info.Replicas[ram].State != Shared || info.Owner != gpu || !info.Debt {
		t.Fatalf("after a copy that did not go home: %+v", info)
	}
	evict(t, m, 0, gpu)
	info = m.Block(0)
	if info.Replicas[ram].State != Modified || info.Owner != ram || !info.Debt {
		t.Fatalf("after the owner left: %+v", info)
	}
	acquire(t, m, 0, disk)
	acquire(t, m, 0, gpu)
	evict(t, m, 0, gpu)
	if info := m.Block(0); info.Owner != NoAgent || info.Debt || info.Replicas[ram].State != Shared {
		t.Errorf("nothing is owed, but: %+v", info)
	}
}

func TestPrefetchOfCleanBlock(t *testing.T) {
	m := resident(t, disk, WriteBack)
	write(t, m, 0, disk)
	acquire(t, m, 0, gpu)
	if info := m.Block(0); info.Holders != MaskOf(VRAM, Disk) || info.Debt {
		t.Errorf("after the prefetch: %+v", info)
	}
	if _, hit, err := m.Acquire(0, gpu); !hit || err != nil {
		t.Errorf("a second one: hit: %v, %v", hit, err)
	}
}

func TestPlanNamesSourceAndVersion(t *testing.T) {
	m := resident(t, disk, WriteBack)
	write(t, m, 0, disk)
	write(t, m, 0, ram)
	c, hit, err := m.Acquire(0, gpu)
	if want := (Copy{Block: 0, Src: ram, Dst: gpu, Version: 2, Ticket: c.Ticket}); err != nil || hit || c != want {
		t.Fatalf("plan is %+v, %v, %v; want %+v", c, hit, err, want)
	}
	write(t, m, 0, ram)
	if valid, err := m.Complete(c, true); valid || err != nil || m.Valid(0, gpu) {
		t.Errorf("a copy whose source was written meanwhile counted: %v, %v", valid, err)
	}
}

// What Source and WriteBackTo foretell is what Acquire and Evict plan.
func TestPlansAreForetold(t *testing.T) {
	m := resident(t, disk, WriteBack)
	if got := m.WriteBackTo(0, disk); got != NoAgent {
		t.Errorf("zeros are written back to %d", got)
	}
	if got := m.Source(0, gpu); got != NoAgent {
		t.Errorf("zeros come from %d", got)
	}
	write(t, m, 0, gpu)
	if got := m.Source(0, gpu); got != gpu {
		t.Errorf("what the GPU has comes from %d", got)
	}
	for _, dst := range []Agent{ram, disk} {
		want := m.Source(0, dst)
		c, _, err := m.Acquire(0, dst)
		if err != nil || c.Src != want || want != gpu {
			t.Errorf("to %d: foretold %d, planned %+v, %v", dst, want, c, err)
		}
		if _, err := m.Complete(c, false); err != nil {
			t.Fatal(err)
		}
	}
	want := m.WriteBackTo(0, gpu)
	c, done, err := m.Evict(0, gpu)
	if err != nil || done || c.Dst != want || want != disk {
		t.Errorf("eviction: foretold %d, planned %+v, %v, %v", want, c, done, err)
	}
	complete(t, m, c)
	if got := m.WriteBackTo(0, gpu); got != NoAgent {
		t.Errorf("a copy that disk has too is written back to %d", got)
	}
}

func TestNearestSource(t *testing.T) {
	agents := []AgentInfo{{VRAM, 0}, {Host, 0}, {Disk, 0}, {VRAM, 1}, {Host, 1}, {Disk, 1}}
	for _, test := range []struct {
		name    string
		holders AgentMask
		to      Agent
		want    Agent
	}{
		{"same node before nearer tier", AgentsOf(2, 4), 0, 2},
		{"nearer tier", AgentsOf(1, 2), 0, 1},
		{"faster of two as near", AgentsOf(0, 2), 1, 0},
		{"disk from RAM before VRAM", AgentsOf(0, 1), 2, 1},
		{"other node if it must be", AgentsOf(3, 4), 1, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := manager(t, Config{Agents: agents, Blocks: 1})
			first := true
			for a := range test.holders.All() {
				if first {
					write(t, m, 0, a)
					first = false
				}
				acquire(t, m, 0, a)
			}
			for a := range agents { // whoever helped on the way
				if a := Agent(a); m.Valid(0, a) && !test.holders.Has(a) {
					evict(t, m, 0, a)
				}
			}
			if c, _, err := m.Acquire(0, test.to); err != nil || c.Src != test.want {
				t.Errorf("source is agent %d, %v; want %d", c.Src, err, test.want)
			}
		})
	}
}

func TestEvictWritesBack(t *testing.T) {
	m := resident(t, disk, WriteBack)
	write(t, m, 0, gpu)
	c, done, err := m.Evict(0, gpu)
	if err != nil || done || c.Src != gpu || c.Dst != disk {
		t.Fatalf("evicting the only copy: %+v, %v, %v", c, done, err)
	}
	if _, _, err := m.Evict(0, gpu); !errors.Is(err, ErrBusy) {
		t.Errorf("while it is written back: %v", err)
	}
	complete(t, m, c)
	if _, done, err := m.Evict(0, gpu); !done || err != nil {
		t.Fatalf("evicting a copy that home has: %v, %v", done, err)
	}
	if _, done, err := m.Evict(0, gpu); !done || err != nil {
		t.Errorf("evicting what is not there: %v, %v", done, err)
	}

	// Home too may be asked to make room: the nearest takes the copy.
	c, done, err = m.Evict(0, disk)
	if err != nil || done || c.Src != disk || c.Dst != ram {
		t.Fatalf("evicting home's only copy: %+v, %v, %v", c, done, err)
	}
	complete(t, m, c)
	if _, done, err := m.Evict(0, disk); !done || err != nil {
		t.Fatal(done, err)
	}
	if info := m.Block(0); !info.Debt || info.Owner != ram || info.Replicas[ram].State != Modified {
		t.Errorf("after home's copy was evicted: %+v", info)
	}

	lone := manager(t, Config{Agents: threeTiers[:1], Blocks: 1})
	write(t, lone, 0, 0)
	if _, _, err := lone.Evict(0, 0); !errors.Is(err, ErrLastCopy) {
		t.Errorf("evicting the only copy of the only agent: %v", err)
	}
	if !lone.Valid(0, 0) {
		t.Error("the refused eviction took the copy")
	}
}

func TestFailedWriteBackKeepsCopy(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, gpu)
	before := m.Block(0)
	c, _, err := m.Evict(0, gpu)
	if err != nil {
		t.Fatal(err)
	}
	if valid, err := m.Complete(c, false); valid || err != nil {
		t.Fatal(valid, err)
	}
	after := m.Block(0)
	if after.Replicas[gpu] != before.Replicas[gpu] || !after.Debt || after.Busy {
		t.Errorf("after a write-back that failed: %+v", after)
	}
	if info := m.Block(0); !info.Replicas[ram].Held || info.Replicas[ram].State != Invalid {
		t.Errorf("RAM, which is replaced whole or not at all, after a copy that failed: %+v", info)
	}
	write(t, m, 0, ram)
	c, _, err = m.Acquire(0, gpu)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Complete(c, false); err != nil {
		t.Fatal(err)
	}
	if m.Block(0).Replicas[gpu].Held {
		t.Error("device memory that was half overwritten counts as a version")
	}

	// Disk replaces a block whole or not at all: it keeps what it had, and that
	// survives the death of the only copy.
	m = resident(t, disk, WriteBack)
	write(t, m, 0, disk)
	write(t, m, 0, gpu)
	c, _, err = m.Acquire(0, disk)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Counts(c) {
		t.Error("a copy under way does not count")
	}
	m.Lose(gpu)
	if m.Counts(c) {
		t.Error("a copy whose source died counts")
	}
	if _, err := m.Complete(c, false); err != nil {
		t.Fatal(err)
	}
	if info := m.Block(0); !info.Lost || info.Survivor != 1 || !info.Replicas[disk].Held {
		t.Errorf("after the source of a copy to disk died: %+v", info)
	}
}

func TestCompletionIsChecked(t *testing.T) {
	m := resident(t, disk, WriteBack)
	write(t, m, 0, ram)
	old, _, err := m.Acquire(0, gpu)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Complete(Copy{Src: disk, Dst: gpu, Version: 1, Ticket: old.Ticket}, true); !errors.Is(err, ErrState) {
		t.Errorf("completing with another source: %v", err)
	}
	complete(t, m, old)
	evict(t, m, 0, gpu)
	if valid, err := m.Complete(old, true); valid || err != nil {
		t.Errorf("completing twice: %v, %v", valid, err)
	}
	c, _, err := m.Acquire(0, gpu)
	if err != nil {
		t.Fatal(err)
	}
	if valid, err := m.Complete(old, true); valid || err != nil || m.Valid(0, gpu) {
		t.Errorf("an old completion counted for a new copy: %v, %v", valid, err)
	}
	complete(t, m, c)
	for _, c := range []Copy{{Block: 1}, {Block: -1}, {Dst: 3}, {Dst: NoAgent}} {
		if _, err := m.Complete(c, true); !errors.Is(err, ErrRange) {
			t.Errorf("Complete(%+v): %v", c, err)
		}
	}
}

func TestHomeAckClearsDebt(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, gpu)
	acquire(t, m, 0, ram)
	info := m.Block(0)
	if info.Debt || info.HomeVersion != info.Version || info.Replicas[gpu].State != Shared || info.Replicas[ram].State != Shared {
		t.Errorf("after home acknowledged: %+v", info)
	}
}

func TestWrittenAwayFromHome(t *testing.T) {
	m := manager(t, Config{Agents: threeTiers, Home: disk, Blocks: 1})
	write(t, m, 0, gpu)
	if info := m.Block(0); info.Version != 1 || info.HomeVersion != 0 || !info.Debt {
		t.Errorf("a block that was created away from home: %+v", info)
	}
}

func TestPartialWriteFetches(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, ram)
	c, ready, err := m.BeginWrite(0, gpu, false, AnyVersion)
	if err != nil || ready || c.Src != ram || c.Dst != gpu {
		t.Fatalf("writing a part of a block that is not there: %+v, %v, %v", c, ready, err)
	}
	complete(t, m, c)
	if _, ready, err := m.BeginWrite(0, gpu, false, AnyVersion); !ready || err != nil {
		t.Fatal(ready, err)
	}
	commit(t, m, 0, gpu)
	if _, ready, err := m.BeginWrite(0, disk, true, AnyVersion); !ready || err != nil {
		t.Errorf("writing the whole block: ready: %v, %v", ready, err)
	}

	// Of a block never written the rest is zeros.
	m = resident(t, ram, WriteBack)
	if c, ready, err := m.BeginWrite(0, gpu, false, 0); err != nil || ready || c.Src != NoAgent || c.Version != 0 {
		t.Errorf("writing a part of a block never written: %+v, %v, %v", c, ready, err)
	}
}

func TestSecondWriterHasFirstsBytes(t *testing.T) {
	m := resident(t, disk, WriteBack)
	write(t, m, 0, gpu)
	c, ready, err := m.BeginWrite(0, ram, false, AnyVersion)
	if err != nil || ready || c.Src != gpu {
		t.Fatalf("the second writer: %+v, %v, %v", c, ready, err)
	}
	complete(t, m, c)
	begin(t, m, 0, ram)
	if _, _, err := m.BeginWrite(0, gpu, true, AnyVersion); !errors.Is(err, ErrBusy) {
		t.Errorf("two writers at once: %v", err)
	}
	commit(t, m, 0, ram)
	if info := m.Block(0); info.Owner != ram || info.Holders != MaskOf(Host) {
		t.Errorf("after the second: %+v", info)
	}
}

func TestHostWriteKeepsDevices(t *testing.T) {
	m := resident(t, ram, WriteBack)
	base := m.Version(0)
	write(t, m, 0, gpu)
	_, _, err := m.BeginWrite(0, ram, false, base)
	if !errors.Is(err, ErrConflict) {
		t.Errorf("a change based on version %d of a block at %d: %v", base, m.Version(0), err)
	}
	if c, ready, err := m.BeginWrite(0, ram, false, AnyVersion); err != nil || ready || c.Src != gpu {
		t.Errorf("one based on any: %+v, %v, %v", c, ready, err)
	}
}

func TestAdoptIsForce(t *testing.T) {
	m := resident(t, ram, WriteThrough)
	write(t, m, 0, ram)
	write(t, m, 0, gpu)
	c, err := m.Adopt(0, ram)
	if err != nil || c.Version != 3 || c.Push != 0 {
		t.Fatalf("Adopt = %+v, %v", c, err)
	}
	if info := m.Block(0); info.Holders != MaskOf(Host) || info.Debt || m.State(0) != HostDirty {
		t.Errorf("after the host's bytes were adopted: %+v", info)
	}
	if c, err := m.Adopt(0, ram); err != nil || c != (Commit{Version: 3}) {
		t.Errorf("adopting the current bytes: %+v, %v", c, err)
	}
	if c, err := m.Adopt(0, gpu); err != nil || c != (Commit{Version: 4, Push: ram.bit()}) {
		t.Errorf("adopting the device's: %+v, %v", c, err)
	}
	if _, err := m.Adopt(0, disk); !errors.Is(err, ErrState) {
		t.Errorf("adopting nothing: %v", err)
	}
}

func TestStaleIsNeverServed(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, gpu)
	c, hit, err := m.Acquire(0, ram)
	if err != nil || hit || c.Src != gpu {
		t.Errorf("reading a stale copy: %+v, hit: %v, %v", c, hit, err)
	}
}

func TestVersionCountsCommits(t *testing.T) {
	m := resident(t, ram, WriteBack)
	acquire(t, m, 0, gpu)
	begin(t, m, 0, gpu)
	if err := m.Abort(0, gpu, false); err != nil {
		t.Fatal(err)
	}
	evict(t, m, 0, gpu)
	if v := m.Version(0); v != 0 {
		t.Errorf("version %d before any write", v)
	}
	for i := range uint64(3) {
		if c := write(t, m, 0, gpu); c.Version != i+1 {
			t.Errorf("write %d made version %d", i+1, c.Version)
		}
		acquire(t, m, 0, ram)
	}
}

func TestTransientStates(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, ram)
	c, _, err := m.Acquire(0, gpu)
	if err != nil {
		t.Fatal(err)
	}
	if info := m.Block(0); !info.Busy || info.Writer != NoAgent {
		t.Errorf("while a copy is under way: %+v", info)
	}
	if _, _, err := m.Acquire(0, gpu); !errors.Is(err, ErrBusy) {
		t.Errorf("a second copy into it: %v", err)
	}
	if _, _, err := m.BeginWrite(0, gpu, true, AnyVersion); !errors.Is(err, ErrBusy) {
		t.Errorf("writing where a copy is arriving: %v", err)
	}
	if err := m.Discard(0, ram); !errors.Is(err, ErrBusy) {
		t.Errorf("discarding what a copy is read from: %v", err)
	}
	complete(t, m, c)

	begin(t, m, 0, ram)
	info := m.Block(0)
	if info.Writer != ram || info.Replicas[ram].Held || info.Replicas[gpu].State != Shared {
		t.Errorf("while it is written: %+v", info)
	}
	if s := m.State(0); s != Synced {
		t.Errorf("state is %v before the commit", s)
	}
	if _, _, err := m.Acquire(0, disk); err != nil {
		t.Errorf("a sharer does not serve reads while another is written: %v", err)
	}
	if _, _, err := m.Acquire(0, ram); !errors.Is(err, ErrBusy) {
		t.Errorf("filling what is being written: %v", err)
	}
	if err := m.Pin(0, ram); !errors.Is(err, ErrState) {
		t.Errorf("pinning what is being written: %v", err)
	}
	if _, _, err := m.Evict(0, gpu); !errors.Is(err, ErrBusy) {
		t.Errorf("evicting what an abort may need: %v", err)
	}
	if _, err := m.Adopt(0, gpu); !errors.Is(err, ErrBusy) {
		t.Errorf("adopting beside a writer: %v", err)
	}
	commit(t, m, 0, ram)

	only := resident(t, ram, WriteBack)
	write(t, only, 0, ram)
	begin(t, only, 0, ram)
	if _, _, err := only.Acquire(0, gpu); !errors.Is(err, ErrBusy) {
		t.Errorf("reading the only copy while it is written: %v", err)
	}
}

func TestWriteIsBracketed(t *testing.T) {
	m := resident(t, ram, WriteBack)
	if _, err := m.Commit(0, gpu); !errors.Is(err, ErrState) {
		t.Errorf("Commit without BeginWrite: %v", err)
	}
	if err := m.Abort(0, gpu, true); !errors.Is(err, ErrState) {
		t.Errorf("Abort without BeginWrite: %v", err)
	}
	begin(t, m, 0, gpu)
	if _, err := m.Commit(0, ram); !errors.Is(err, ErrState) {
		t.Errorf("Commit by another: %v", err)
	}
	if m.Valid(0, gpu) {
		t.Error("bytes being written are valid")
	}
	commit(t, m, 0, gpu)

	begin(t, m, 0, gpu)
	if err := m.Abort(0, gpu, false); err != nil || !m.Valid(0, gpu) || m.Version(0) != 1 {
		t.Errorf("a clean abort: %v, %+v", err, m.Block(0))
	}
	begin(t, m, 0, gpu)
	if err := m.Abort(0, gpu, true); err != nil {
		t.Fatal(err)
	}
	if info := m.Block(0); !info.Lost || info.Replicas[gpu].Held {
		t.Errorf("the only copy was damaged: %+v", info)
	}
}

func TestDebtsGoOn(t *testing.T) {
	m := manager(t, Config{Agents: threeTiers, Home: disk, Blocks: 4})
	for _, b := range []int{3, 0, 2} {
		write(t, m, b, gpu)
	}
	var met []int
	for b := range m.Debts() {
		met = append(met, b)
		if b != 2 { // the copy of block 2 fails; the others go on
			acquire(t, m, b, disk)
		}
	}
	if !slices.Equal(met, []int{0, 2, 3}) {
		t.Errorf("debts were %v", met)
	}
	if left := slices.Collect(m.Debts()); !slices.Equal(left, []int{2}) {
		t.Errorf("debts left are %v", left)
	}
}
