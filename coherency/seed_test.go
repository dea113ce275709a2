// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"slices"
	"testing"
)

// The 19 tests of seeds/002, in its order and under its names but for three:
// sparse_vec_roundtrip is in package sparsevec; the epochs of sync_protocol, and
// sync_protocol_policy, are in package span, whose spans have the policy and
// whose store counts the barriers. Four of them assert a hole of the original
// (facts C3 rows 1, 2, 3 and 18); they assert the corrected behaviour.
// rows_test.go has the table of all rows.

// The agents of most tests.
const (
	gpu  = Agent(0)
	ram  = Agent(1)
	disk = Agent(2)
)

var threeTiers = []AgentInfo{{Tier: VRAM}, {Tier: Host}, {Tier: Disk}}

// resident returns a block that lives at home, as the original's
// host_resident and disk_resident.
func resident(t testing.TB, home Agent, policy WritePolicy) *Manager {
	t.Helper()
	return manager(t, Config{Agents: threeTiers, Home: home, Policy: policy, Blocks: 1, Zeroed: home.bit()})
}

func manager(t testing.TB, c Config) *Manager {
	t.Helper()
	m, err := NewManager(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// acquire brings block b to a, as a caller that carries plans out.
func acquire(t testing.TB, m *Manager, b int, a Agent) {
	t.Helper()
	c, hit, err := m.Acquire(b, a)
	if err != nil {
		t.Fatal(err)
	}
	if !hit {
		complete(t, m, c)
	}
	if !m.Valid(b, a) {
		t.Fatalf("block %d at agent %d is not valid after it was acquired", b, a)
	}
}

func complete(t testing.TB, m *Manager, c Copy) {
	t.Helper()
	if valid, err := m.Complete(c, true); err != nil || !valid {
		t.Fatalf("Complete(%+v) = %v, %v", c, valid, err)
	}
}

// begin begins a write of a part of block b at a.
func begin(t testing.TB, m *Manager, b int, a Agent) {
	t.Helper()
	for {
		c, ready, err := m.BeginWrite(b, a, false, AnyVersion)
		if err != nil {
			t.Fatal(err)
		}
		if ready {
			return
		}
		complete(t, m, c)
	}
}

// write writes a part of block b at a.
func write(t testing.TB, m *Manager, b int, a Agent) Commit {
	t.Helper()
	begin(t, m, b, a)
	return commit(t, m, b, a)
}

func commit(t testing.TB, m *Manager, b int, a Agent) Commit {
	t.Helper()
	c, err := m.Commit(b, a)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func evict(t testing.TB, m *Manager, b int, a Agent) {
	t.Helper()
	for {
		c, done, err := m.Evict(b, a)
		if err != nil {
			t.Fatal(err)
		}
		if done {
			return
		}
		complete(t, m, c)
	}
}

func TestCoherencyStateChecks(t *testing.T) {
	type checks struct{ host, device, sync bool }
	for s, want := range map[State]checks{
		HostOnly:    {host: true},
		DeviceOnly:  {device: true},
		Synced:      {host: true, device: true},
		HostDirty:   {host: true, sync: true},
		DeviceDirty: {device: true, sync: true},
	} {
		if got := (checks{s.HostIsCurrent(), s.DeviceIsCurrent(), s.NeedsSync()}); got != want {
			t.Errorf("%v: %+v, want %+v", s, got, want)
		}
	}
}

func TestCoherentEngramNew(t *testing.T) {
	m := resident(t, ram, WriteBack)
	if s := m.State(0); s != HostOnly {
		t.Errorf("state is %v", s)
	}
	if m.Valid(0, gpu) || !m.Valid(0, ram) {
		t.Error("a new block is not on the host alone")
	}
}

func TestCoherentEngramModifyMarksDirty(t *testing.T) {
	m := resident(t, ram, WriteBack)
	if s := m.State(0); s != HostOnly {
		t.Errorf("state is %v", s)
	}
	write(t, m, 0, ram)
	acquire(t, m, 0, gpu)
	if s := m.State(0); s != Synced {
		t.Errorf("state is %v after an upload", s)
	}
	write(t, m, 0, ram)
	if s := m.State(0); s != HostDirty {
		t.Errorf("state is %v after a write at the host", s)
	}
}

func TestCoherencyManager(t *testing.T) {
	var stats Stats
	for range 2 {
		s, _ := resident(t, ram, WriteBack).Stats()
		stats.Add(s)
	}
	if want := (Stats{Total: 2, HostOnly: 2}); stats != want {
		t.Errorf("stats are %+v, want %+v", stats, want)
	}
}

func TestTierPriority(t *testing.T) {
	for i, tier := range []Tier{VRAM, Host, Disk} {
		if tier.Priority() != i {
			t.Errorf("%v has priority %d, want %d", tier, tier.Priority(), i)
		}
	}
}

func TestTierMaskOperations(t *testing.T) {
	mask := NoTiers
	if mask.Any() || mask.Count() != 0 {
		t.Error("the empty set has members")
	}
	mask.Add(Host)
	if !mask.Has(Host) || mask.Has(VRAM) || mask.Count() != 1 {
		t.Errorf("after adding host: %v", mask)
	}
	mask.Add(VRAM)
	if !mask.Has(Host) || !mask.Has(VRAM) || mask.Count() != 2 {
		t.Errorf("after adding vram: %v", mask)
	}
	mask.Remove(Host)
	if mask.Has(Host) || !mask.Has(VRAM) || mask.Count() != 1 {
		t.Errorf("after removing host: %v", mask)
	}
	if got := slices.Collect(MaskOf(Disk, VRAM).All()); !slices.Equal(got, []Tier{VRAM, Disk}) {
		t.Errorf("All yields %v", got)
	}
}

func TestTierMaskFastest(t *testing.T) {
	mask := NoTiers
	if _, ok := mask.Fastest(); ok {
		t.Error("the empty set has a fastest tier")
	}
	for _, tier := range []Tier{Disk, Host, VRAM} {
		mask.Add(tier)
		if got, ok := mask.Fastest(); !ok || got != tier {
			t.Errorf("fastest of %v is %v", mask, got)
		}
	}
}

func TestTierMaskUnion(t *testing.T) {
	union := MaskOf(Host).Union(MaskOf(Disk))
	if !union.Has(Host) || !union.Has(Disk) || union.Has(VRAM) {
		t.Errorf("union is %v", union)
	}
	if got := union.Intersect(MaskOf(Host, VRAM)); got != MaskOf(Host) {
		t.Errorf("intersection is %v", got)
	}
}

func TestTieredStateNew(t *testing.T) {
	m := resident(t, ram, WriteBack)
	if info := m.Block(0); info.Holders != MaskOf(Host) || info.Debt || info.Lost || info.Busy {
		t.Errorf("a new block: %+v", info)
	}
}

func TestTieredStateWriteBack(t *testing.T) {
	m := resident(t, ram, WriteBack)
	c := write(t, m, 0, gpu)
	if c.Push != 0 {
		t.Errorf("write-back pushes to %#x", c.Push)
	}
	info := m.Block(0)
	if info.Holders != MaskOf(VRAM) || info.Stale != MaskOf(Host) {
		t.Errorf("held by %v, stale at %v", info.Holders, info.Stale)
	}
	if info.Replicas[gpu].State != Modified || !info.Debt || info.Owner != gpu {
		t.Errorf("the writer is %v, debt: %v, owner: %d", info.Replicas[gpu].State, info.Debt, info.Owner)
	}
}

// Row 1: the original calls home valid and the block clean before a byte got
// there.
func TestTieredStateWriteThrough(t *testing.T) {
	m := resident(t, ram, WriteThrough)
	c := write(t, m, 0, gpu)
	if c.Push != ram.bit() {
		t.Fatalf("write-through pushes to %#x, want home", c.Push)
	}
	if !m.Valid(0, gpu) || m.Valid(0, ram) || !m.Block(0).Debt {
		t.Fatal("home is valid before the copy to it arrived")
	}
	plan, _, err := m.Acquire(0, ram)
	if err != nil {
		t.Fatal(err)
	}
	if m.Valid(0, ram) || !m.Block(0).Debt {
		t.Fatal("home is valid before the copy to it arrived")
	}
	if valid, err := m.Complete(plan, false); valid || err != nil || !m.Block(0).Debt {
		t.Fatalf("a failed copy: valid: %v, %v, debt: %v", valid, err, m.Block(0).Debt)
	}
	acquire(t, m, 0, ram)
	info := m.Block(0)
	if info.Holders != MaskOf(VRAM, Host) || info.Debt || info.HomeVersion != c.Version {
		t.Errorf("after home acknowledged: %+v", info)
	}
}

// Row 2: the original keeps every old copy valid with nothing sent, and forgets
// the debt.
func TestTieredStateWriteAll(t *testing.T) {
	m := resident(t, ram, WriteAll)
	acquire(t, m, 0, gpu)
	acquire(t, m, 0, disk)
	c := write(t, m, 0, ram)
	if c.Push != AgentsOf(gpu, disk) {
		t.Fatalf("write-all pushes to %#x, want all that had a copy", c.Push)
	}
	if info := m.Block(0); info.Holders != MaskOf(Host) || info.Stale != MaskOf(VRAM, Disk) {
		t.Fatalf("before the push: held by %v, stale at %v", info.Holders, info.Stale)
	}
	for a := range c.Push.All() {
		acquire(t, m, 0, a)
	}
	if info := m.Block(0); info.Holders != MaskOf(VRAM, Host, Disk) || info.Debt || info.Owner != NoAgent {
		t.Errorf("after the push: %+v", info)
	}

	// A copy whose push failed is due the next version all the same, and home
	// is even if it had none.
	m = manager(t, Config{Agents: threeTiers, Home: disk, Policy: WriteAll, Blocks: 1, Zeroed: ram.bit()})
	write(t, m, 0, gpu)
	if c := write(t, m, 0, gpu); c.Push != AgentsOf(ram, disk) {
		t.Errorf("pushes to %#x, want the stale copy and home", c.Push)
	}
}

func TestHasValidCopy(t *testing.T) {
	m := resident(t, ram, WriteBack)
	if !m.Valid(0, ram) || m.Valid(0, gpu) || m.Valid(0, disk) {
		t.Errorf("held by %v", m.Block(0).Holders)
	}
	if m.Holders(0) != ram.bit() {
		t.Errorf("held by agents %#x", m.Holders(0))
	}
}

func TestTieredStateSync(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, gpu)
	if debts := slices.Collect(m.Debts()); !slices.Equal(debts, []int{0}) {
		t.Fatalf("debts are %v", debts)
	}
	acquire(t, m, 0, ram)
	info := m.Block(0)
	if info.Holders != MaskOf(VRAM, Host) || info.Debt {
		t.Errorf("after the sync: %+v", info)
	}
	for range m.Debts() {
		t.Error("there is a debt after the sync")
	}
}

func TestTieredStateInvalidate(t *testing.T) {
	m := resident(t, ram, WriteBack)
	acquire(t, m, 0, gpu)
	if !m.Valid(0, gpu) {
		t.Error("not valid after it was acquired")
	}
	evict(t, m, 0, gpu)
	if m.Valid(0, gpu) || !m.Valid(0, ram) {
		t.Errorf("after the eviction held by %v", m.Block(0).Holders)
	}
}

// Row 3: the original's block that is written at home is dirty for ever.
func TestTieredBlock(t *testing.T) {
	m := resident(t, ram, WriteBack)
	if m.Version(0) != 0 {
		t.Errorf("a new block is at version %d", m.Version(0))
	}
	if c := write(t, m, 0, ram); c.Version != 1 || m.Version(0) != 1 {
		t.Errorf("version %d after a write", c.Version)
	}
	if info := m.Block(0); info.Debt || info.Replicas[ram].State != Exclusive {
		t.Errorf("a write at home: debt: %v, %v", info.Debt, info.Replicas[ram].State)
	}
}

func TestSyncProtocol(t *testing.T) {
	var q SyncQueue
	if q.Len() != 0 {
		t.Errorf("a new queue: %d waiting", q.Len())
	}
	q.Queue(Sync{Block: 1, From: gpu, Target: ram, Version: 1})
	q.Queue(Sync{Block: 2, From: ram, Target: disk, Version: 1})
	if q.Len() != 2 {
		t.Errorf("%d waiting, want 2", q.Len())
	}
	if got := q.Drain(); len(got) != 2 || q.Len() != 0 {
		t.Errorf("drained %v, %d still waiting", got, q.Len())
	}
}
