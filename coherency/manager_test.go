// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"encoding"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestDeath(t *testing.T) {
	m := manager(t, Config{Agents: threeTiers, Home: disk, Blocks: 5, Zeroed: AgentsOf(ram, disk)})
	write(t, m, 0, gpu) // VRAM alone
	write(t, m, 1, gpu) // VRAM and home
	acquire(t, m, 1, disk)
	write(t, m, 2, gpu) // VRAM owes it, RAM has it too
	acquire(t, m, 2, ram)
	begin(t, m, 3, gpu) // being written over zeros
	write(t, m, 4, ram) // not there at all

	if lost := m.Lose(gpu); lost != 1 {
		t.Errorf("%d blocks lost, want 1", lost)
	}
	for b, want := range []bool{0: true, 4: false} {
		if got := m.Block(b).Lost; got != want {
			t.Errorf("block %d is lost: %v", b, got)
		}
	}
	_, _, err := m.Acquire(0, ram)
	var loss *DataLossError
	if !errors.Is(err, ErrDataLoss) || !errors.As(err, &loss) || *loss != (DataLossError{Block: 0, Lost: 1, Survivor: 0}) {
		t.Errorf("reading what is lost: %v", err)
	}
	if _, _, err := m.BeginWrite(0, ram, false, AnyVersion); !errors.Is(err, ErrDataLoss) {
		t.Errorf("writing a part of what is lost: %v", err)
	}
	if info := m.Block(0); info.Debt || info.Owner != NoAgent {
		t.Errorf("a lost block: %+v", info)
	}
	if info := m.Block(1); info.Debt || info.Replicas[disk].State != Exclusive {
		t.Errorf("a block that home had: %+v", info)
	}
	if info := m.Block(2); info.Owner != ram || info.Replicas[ram].State != Modified {
		t.Errorf("a block whose owner died: %+v", info)
	}
	if _, err := m.Commit(3, gpu); !errors.Is(err, ErrState) {
		t.Errorf("a dead writer's commit: %v", err)
	}
	if m.Lose(gpu) != 0 {
		t.Error("died twice")
	}

	// A write of the whole block needs nothing of what was lost.
	if _, ready, err := m.BeginWrite(0, gpu, true, 1); !ready || err != nil {
		t.Fatal(ready, err)
	}
	if c := commit(t, m, 0, gpu); c.Version != 2 || m.Block(0).Lost {
		t.Errorf("version %d, lost: %v", c.Version, m.Block(0).Lost)
	}
}

func TestDeathOfBothEnds(t *testing.T) {
	for _, dead := range []Agent{ram, gpu} {
		m := resident(t, disk, WriteBack)
		write(t, m, 0, ram)
		c, _, err := m.Acquire(0, gpu)
		if err != nil {
			t.Fatal(err)
		}
		m.Lose(dead)
		if _, _, err := m.Acquire(0, gpu); !errors.Is(err, ErrBusy) && !errors.Is(err, ErrDataLoss) {
			t.Errorf("agent %d died: filling again what a copy still goes to: %v", dead, err)
		}
		if valid, err := m.Complete(c, true); valid || err != nil {
			t.Errorf("agent %d died: its copy counted: %v, %v", dead, valid, err)
		}
		if m.Block(0).Busy {
			t.Errorf("agent %d died: still busy", dead)
		}
	}
}

func TestAccept(t *testing.T) {
	m := resident(t, disk, WriteThrough)
	if _, _, err := m.Accept(0); !errors.Is(err, ErrState) {
		t.Errorf("accepting no loss: %v", err)
	}
	write(t, m, 0, ram) // 1: RAM and disk
	acquire(t, m, 0, disk)
	write(t, m, 0, ram) // 2: RAM
	write(t, m, 0, gpu) // 3: VRAM
	m.Lose(gpu)
	if info := m.Block(0); !info.Lost || info.Survivor != 2 || info.Version != 3 {
		t.Fatalf("after the loss: %+v", info)
	}
	if _, _, err := m.Evict(0, ram); !errors.Is(err, ErrLastCopy) {
		t.Errorf("evicting what survived: %v", err)
	}
	if _, done, err := m.Evict(0, disk); !done || err != nil {
		t.Errorf("evicting what is older: %v, %v", done, err)
	}
	v, from, err := m.Accept(0)
	if v != 4 || from != ram || err != nil {
		t.Fatalf("accepted version %d from %d, %v", v, from, err)
	}
	if info := m.Block(0); info.Lost || !info.Debt || info.Owner != ram {
		t.Errorf("after it was accepted: %+v", info)
	}

	// Home is preferred to others that have the same.
	m = resident(t, disk, WriteBack)
	acquire(t, m, 0, ram)
	write(t, m, 0, gpu)
	m.Lose(gpu)
	if _, from, err := m.Accept(0); from != disk || err != nil {
		t.Errorf("accepted from %d, %v", from, err)
	}

	// Where nothing survives, zeros do: a debt that is paid by filling.
	m = manager(t, Config{Agents: threeTiers, Home: disk, Blocks: 1})
	write(t, m, 0, gpu)
	m.Lose(gpu)
	if v, from, err := m.Accept(0); v != 2 || from != NoAgent || err != nil {
		t.Fatalf("accepted version %d from %d, %v", v, from, err)
	}
	if info := m.Block(0); info.Lost || !info.Debt {
		t.Errorf("after zeros were accepted: %+v", info)
	}
	c, _, err := m.Acquire(0, disk)
	if err != nil || c.Src != NoAgent || c.Version != 2 {
		t.Fatalf("paying: %+v, %v", c, err)
	}
	complete(t, m, c)
	if m.Block(0).Debt {
		t.Error("the debt is still there")
	}
}

// A copy that still arrives at the other holder of what survives may yet take
// it away.
func TestSurvivorUnderArrival(t *testing.T) {
	m := resident(t, disk, WriteBack)
	write(t, m, 0, disk)
	acquire(t, m, 0, ram)
	write(t, m, 0, gpu)
	c, _, err := m.Acquire(0, disk)
	if err != nil {
		t.Fatal(err)
	}
	m.Lose(gpu)
	if _, _, err := m.Evict(0, ram); !errors.Is(err, ErrLastCopy) {
		t.Errorf("evicting what survives for sure: %v", err)
	}
	if _, _, err := m.Accept(0); !errors.Is(err, ErrBusy) {
		t.Errorf("accepting where a copy arrives: %v", err)
	}
	if _, err := m.Complete(c, false); err != nil {
		t.Fatal(err)
	}
	if _, done, err := m.Evict(0, ram); !done || err != nil {
		t.Errorf("evicting what disk has too: %v, %v", done, err)
	}
}

func TestUnclean(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, ram)
	m.MarkUnclean(0)
	acquire(t, m, 0, gpu)
	if !m.Block(0).Unclean {
		t.Error("not unclean")
	}
	write(t, m, 0, gpu)
	if m.Block(0).Unclean {
		t.Error("the next version is unclean")
	}
}

func TestPins(t *testing.T) {
	m := manager(t, Config{Agents: threeTiers, Home: ram, Blocks: 2, Zeroed: ram.bit()})
	if err := m.Pin(0, gpu); !errors.Is(err, ErrState) {
		t.Errorf("pinning nothing: %v", err)
	}
	pinned := func(b int) bool {
		_, done, err := m.Evict(b, ram)
		derr := m.Discard(b, ram)
		if (err == nil) != done || errors.Is(err, ErrPinned) != errors.Is(derr, ErrPinned) {
			t.Errorf("Evict: %v, %v; Discard: %v", done, err, derr)
		}
		return errors.Is(err, ErrPinned)
	}
	for range 2 {
		if err := m.Pin(0, ram); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.PinAll(ram); err != nil {
		t.Fatal(err)
	}
	for _, unpin := range []func(){func() { m.Unpin(0, ram) }, func() { m.UnpinAll(ram) }, func() { m.Unpin(0, ram) }} {
		if !pinned(0) || !m.Block(0).Pinned {
			t.Error("a pinned copy can be taken away")
		}
		if r := m.Block(0).Replicas; !r[ram].Pinned || r[gpu].Pinned {
			t.Errorf("which copy is pinned: %+v", r)
		}
		unpin()
	}
	if m.Block(0).Pinned || pinned(0) {
		t.Error("still pinned")
	}
	if err := m.PinAll(ram); !errors.Is(err, ErrState) {
		t.Errorf("pinning a span whose blocks are not all there: %v", err)
	}
	for _, unpin := range []func(){func() { m.Unpin(0, ram) }, func() { m.UnpinAll(ram) }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("unpinning what is not pinned did not panic")
				}
			}()
			unpin()
		}()
	}
}

func TestState(t *testing.T) {
	m := manager(t, Config{Agents: threeTiers, Home: ram, Blocks: 2, Zeroed: ram.bit()})
	states := func(want, span State) {
		t.Helper()
		if got := m.State(0); got != want {
			t.Errorf("state is %v, want %v", got, want)
		}
		if got := m.SpanState(); got != span {
			t.Errorf("the span's is %v, want %v", got, span)
		}
	}
	states(HostOnly, HostOnly)
	write(t, m, 0, gpu)
	states(DeviceOnly, DeviceOnly) // RAM's zeros are a copy of nothing
	acquire(t, m, 0, ram)
	states(Synced, Synced)
	write(t, m, 0, ram)
	states(HostDirty, HostDirty)
	acquire(t, m, 0, gpu)
	write(t, m, 0, gpu)
	states(DeviceDirty, DeviceDirty)
	write(t, m, 1, ram)
	states(DeviceDirty, DeviceDirty) // neither side is current throughout
	acquire(t, m, 0, ram)
	states(Synced, HostDirty)
	evict(t, m, 0, gpu)
	evict(t, m, 1, gpu)
	states(HostOnly, HostOnly)
	write(t, m, 0, gpu)
	m.Lose(gpu)
	states(DeviceDirty, DeviceDirty) // the host must not be read

	m = manager(t, Config{Agents: threeTiers, Home: ram, Blocks: 1})
	write(t, m, 0, gpu)
	acquire(t, m, 0, ram)
	write(t, m, 0, ram)
	m.Lose(ram)
	if s := m.State(0); s != HostDirty {
		t.Errorf("state is %v, but the device must not be read", s)
	}
}

func TestStats(t *testing.T) {
	m := manager(t, Config{Agents: threeTiers, Home: disk, Blocks: 4, Zeroed: AgentsOf(ram, disk)})
	write(t, m, 0, gpu)
	write(t, m, 1, gpu)
	acquire(t, m, 1, disk)
	write(t, m, 2, ram)
	s, tiered := m.Stats()
	if want := (Stats{Total: 1, Dirty: 1}); s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if want := (TieredStats{TotalBlocks: 4, VRAMCopies: 2, HostCopies: 2, DiskCopies: 2, DirtyBlocks: 2, SyncCount: 1}); tiered != want {
		t.Errorf("%+v, want %+v", tiered, want)
	}
	sum := TieredStats{Epoch: 7}
	sum.Add(tiered)
	sum.Add(TieredStats{TotalBlocks: 1, SyncCount: 2, Epoch: 5})
	if want := (TieredStats{TotalBlocks: 5, VRAMCopies: 2, HostCopies: 2, DiskCopies: 2, DirtyBlocks: 2, SyncCount: 3, Epoch: 7}); sum != want {
		t.Errorf("%+v, want %+v", sum, want)
	}
	if m.ValidBlocks(gpu) != 2 || m.ValidBlocks(ram) != 2 || m.ValidBlocks(disk) != 2 {
		t.Errorf("valid blocks: %d, %d, %d", m.ValidBlocks(gpu), m.ValidBlocks(ram), m.ValidBlocks(disk))
	}
}

func TestSyncQueue(t *testing.T) {
	const a, b, c = Agent(0), Agent(1), Agent(2)
	for _, test := range []struct {
		name   string
		queue  []Sync
		refuse []int // which of queue do not wait afterwards
		want   []Sync
	}{
		{"duplicate", []Sync{{1, a, b, 1}, {1, a, b, 1}}, nil, []Sync{{1, a, b, 1}}},
		{"newer version", []Sync{{1, a, b, 1}, {2, a, b, 1}, {1, c, b, 2}}, nil, []Sync{{1, c, b, 2}, {2, a, b, 1}}},
		{"older version", []Sync{{1, c, b, 2}, {1, a, b, 1}}, nil, []Sync{{1, c, b, 2}}},
		{"order of a block", []Sync{{1, a, c, 1}, {1, a, b, 1}, {1, a, c, 2}}, nil, []Sync{{1, a, c, 2}, {1, a, b, 2}}},
		{"contradiction", []Sync{{1, a, b, 1}, {1, b, a, 1}}, nil, []Sync{{1, b, a, 1}}},
		{"superseded contradiction", []Sync{{1, b, a, 2}, {1, a, b, 1}}, []int{1}, []Sync{{1, b, a, 2}}},
		{"others follow the newer", []Sync{{1, a, b, 1}, {1, b, c, 2}}, nil, []Sync{{1, b, c, 2}}},
		{"older goes along", []Sync{{1, b, c, 2}, {1, b, a, 1}}, nil, []Sync{{1, b, c, 2}, {1, b, a, 2}}},
		{"self-copy", []Sync{{1, a, a, 1}}, []int{0}, nil},
		{"nobody", []Sync{{1, NoAgent, a, 1}, {1, a, NoAgent, 1}}, []int{0, 1}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var q SyncQueue
			for i, s := range test.queue {
				if got, want := q.Queue(s), !slices.Contains(test.refuse, i); got != want {
					t.Errorf("Queue(%+v) = %v", s, got)
				}
			}
			if q.Len() != len(test.want) {
				t.Errorf("%d waiting, want %d", q.Len(), len(test.want))
			}
			if got := q.Drain(); !slices.Equal(got, test.want) {
				t.Errorf("drained %+v, want %+v", got, test.want)
			}
		})
	}

	// What failed is queued again, unless something newer was meanwhile.
	var q SyncQueue
	q.Queue(Sync{1, a, b, 1})
	q.Queue(Sync{2, a, b, 1})
	failed := q.Drain()
	q.Queue(Sync{1, c, b, 2})
	for _, s := range failed {
		q.Queue(s)
	}
	if got, want := q.Drain(), []Sync{{1, c, b, 2}, {2, a, b, 1}}; !slices.Equal(got, want) {
		t.Errorf("drained %+v, want %+v", got, want)
	}
}

func TestNewManagerRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"no agents":       {Blocks: 1},
		"too many agents": {Agents: make([]AgentInfo, MaxAgents+1), Blocks: 1},
		"home":            {Agents: threeTiers, Home: 3, Blocks: 1},
		"no home":         {Agents: threeTiers, Home: NoAgent, Blocks: 1},
		"policy":          {Agents: threeTiers, Policy: policyCount, Blocks: 1},
		"tier":            {Agents: []AgentInfo{{Tier: tierCount}}, Blocks: 1},
		"no blocks":       {Agents: threeTiers},
		"negative blocks": {Agents: threeTiers, Blocks: -1},
		"too many blocks": {Agents: threeTiers, Blocks: maxBlocks + 1},
		"zeroed":          {Agents: threeTiers, Blocks: 1, Zeroed: AgentsOf(3)},
	} {
		if _, err := NewManager(c); !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
	all := manager(t, Config{Agents: make([]AgentInfo, MaxAgents), Home: MaxAgents - 1, Blocks: 1, Zeroed: ^AgentMask(0)})
	if all.Holders(0).Count() != MaxAgents {
		t.Errorf("%d agents hold a block of zeros", all.Holders(0).Count())
	}
}

func TestOutOfRange(t *testing.T) {
	m := resident(t, ram, WriteBack)
	for _, at := range []struct {
		b int
		a Agent
	}{{1, 0}, {-1, 0}, {0, 3}, {0, NoAgent}} {
		_, _, acquire := m.Acquire(at.b, at.a)
		_, _, write := m.BeginWrite(at.b, at.a, true, AnyVersion)
		_, commit := m.Commit(at.b, at.a)
		_, _, evict := m.Evict(at.b, at.a)
		_, adopt := m.Adopt(at.b, at.a)
		for call, err := range map[string]error{
			"Acquire": acquire, "BeginWrite": write, "Commit": commit, "Abort": m.Abort(at.b, at.a, true),
			"Evict": evict, "Discard": m.Discard(at.b, at.a), "Adopt": adopt, "Pin": m.Pin(at.b, at.a),
		} {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%s(%d, %d): %v", call, at.b, at.a, err)
			}
		}
	}
	if _, _, err := m.Accept(1); !errors.Is(err, ErrRange) {
		t.Errorf("Accept(1): %v", err)
	}
	if err := m.PinAll(3); !errors.Is(err, ErrRange) {
		t.Errorf("PinAll(3): %v", err)
	}
}

// Errors say what was asked, on what, and why it is refused.
func TestErrorText(t *testing.T) {
	m := resident(t, ram, WriteBack)
	write(t, m, 0, gpu)
	begin(t, m, 0, gpu)
	_, _, busy := m.Acquire(0, ram)
	_, state := m.Commit(0, ram)
	m.Lose(gpu)
	_, _, lost := m.Acquire(0, ram)
	_, _, conflict := m.BeginWrite(0, ram, true, 0)
	for _, test := range []struct {
		err  error
		want string
	}{
		{busy, "coherency: busy: acquire block 0 at agent 1 (host, node 0): agent 0 (vram, node 0) is writing the only copy"},
		{state, "coherency: not in the state for this call: commit block 0 at agent 1 (host, node 0): it is not being written there"},
		{lost, "coherency: data loss: version 1 of block 0 is gone and nothing but zeros survives: accept the loss or write the whole block"},
		{conflict, "coherency: version conflict: write block 0 at agent 1 (host, node 0): it is at version 1, the change is based on 0"},
	} {
		if test.err == nil || test.err.Error() != test.want {
			t.Errorf("error is %q, want %q", test.err, test.want)
		}
	}
}

func TestEnumText(t *testing.T) {
	type enum interface {
		encoding.TextMarshaler
		String() string
	}
	check := func(v enum, back interface{ encoding.TextUnmarshaler }, got func() enum) {
		t.Helper()
		text, err := v.MarshalText()
		if err != nil || string(text) != v.String() || strings.Contains(v.String(), "(") {
			t.Errorf("%v is written %q, %v", v, text, err)
		}
		if err := back.UnmarshalText(text); err != nil || got() != v {
			t.Errorf("%q is read as %v, %v", text, got(), err)
		}
		if err := back.UnmarshalText([]byte("nonsense")); err == nil {
			t.Errorf("nonsense is read as %v", got())
		}
	}
	for v := Tier(0); v < tierCount; v++ {
		var back Tier
		check(v, &back, func() enum { return back })
	}
	for v := WritePolicy(0); v < policyCount; v++ {
		var back WritePolicy
		check(v, &back, func() enum { return back })
	}
	for v := State(0); v < stateCount; v++ {
		var back State
		check(v, &back, func() enum { return back })
	}
	for v := Replica(0); v < replicaCount; v++ {
		var back Replica
		check(v, &back, func() enum { return back })
	}
	for v := NoTiers; v < 1<<tierCount; v++ {
		var back TierMask
		check(v, &back, func() enum { return back })
	}
	for _, v := range []enum{Tier(tierCount), WritePolicy(policyCount), State(stateCount), Replica(replicaCount)} {
		if text, err := v.MarshalText(); err == nil {
			t.Errorf("%v, which is none, is written %q", v, text)
		}
	}
}

func TestAgentMask(t *testing.T) {
	s := AgentsOf(15, 0, 3, NoAgent)
	if s.Count() != 3 || !s.Has(15) || s.Has(1) || s.Has(NoAgent) {
		t.Errorf("set is %#x", s)
	}
	for range 2 { // a sequence can be used again
		if got := slices.Collect(s.All()); !slices.Equal(got, []Agent{0, 3, 15}) {
			t.Errorf("All yields %v", got)
		}
	}
}
