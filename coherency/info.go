// SPDX-License-Identifier: Apache-2.0

package coherency

import "iter"

// BlockInfo is what a Manager knows of a block.
type BlockInfo struct {
	Version     uint64 // the last one committed
	HomeVersion uint64 // the one that home holds; 0 also if it holds nothing
	// Debt: home does not hold Version, and could be given it. A lost block
	// has no debt.
	Debt bool
	// Owner must see to it that the debt is paid; NoAgent without one. While
	// it writes the block it holds nothing.
	Owner Agent
	// Replicas are the copies, by agent; those past the Manager's agents are
	// zero.
	Replicas [MaxAgents]ReplicaInfo
	Holders  TierMask // the tiers with a copy of Version
	Stale    TierMask // the tiers with copies of older versions only
	Zeros    bool     // Version is all zeros: it needs no holder
	Lost     bool     // nobody holds Version: reading fails until that is accepted
	Survivor uint64   // of a lost block the newest version that is held; 0: only zeros
	Unclean  bool     // Version was committed on behalf of a writer that died
	Writer   Agent    // who writes the block now, or NoAgent
	Busy     bool     // it is written, or copies are under way
	Pinned   bool     // some agent's copy is pinned, by Pin or PinAll
}

// ReplicaInfo is what a Manager knows of one agent's copy of a block.
type ReplicaInfo struct {
	State   Replica
	Held    bool   // it holds a version: the current one, or, if Invalid, an older
	Version uint64 // which; 0 if none
	Pinned  bool   // by Pin or PinAll; then it may hold nothing, its agent having died
}

// Block returns what is known of block b. It panics if there is none.
func (m *Manager) Block(b int) BlockInfo {
	blk := &m.blocks[b]
	info := BlockInfo{
		Version: blk.version,
		Debt:    m.debt(b),
		Owner:   NoAgent,
		Zeros:   blk.flags&zeros != 0,
		Lost:    m.lost(b),
		Unclean: blk.flags&unclean != 0,
		Writer:  m.writer(b),
	}
	if info.Debt {
		info.Owner = blk.owner
	}
	if info.Lost {
		if held, _ := m.survivor(b); held > 0 {
			info.Survivor = held - 1
		}
	}
	holders := m.holders(b)
	t := m.doing(b)
	for a, held := range m.row(b) {
		r := ReplicaInfo{Pinned: m.spanPins[a] > 0 || t != nil && t.pinned.Has(Agent(a))}
		info.Pinned = info.Pinned || r.Pinned
		if held != 0 {
			r.State = m.replica(holders, info.Owner, info.Debt, info.Writer, Agent(a))
			r.Held, r.Version = true, held-1
		}
		info.Replicas[a] = r
		if held == 0 {
			continue
		}
		if Agent(a) == m.home {
			info.HomeVersion = r.Version
		}
		if holders.Has(Agent(a)) {
			info.Holders.Add(m.agents[a].Tier)
		} else {
			info.Stale.Add(m.agents[a].Tier)
		}
	}
	info.Stale &^= info.Holders
	if t != nil {
		info.Busy = t.writer != NoAgent || t.flight != 0
	}
	return info
}

// replica computes the state of a's copy. Beside a writer nobody is alone.
func (m *Manager) replica(holders AgentMask, owner Agent, debt bool, writer, a Agent) Replica {
	switch {
	case !holders.Has(a):
		return Invalid
	case holders == a.bit() && writer == NoAgent && debt:
		return Modified
	case holders == a.bit() && writer == NoAgent:
		return Exclusive
	case a == owner:
		return Owned
	}
	return Shared
}

// Valid reports whether agent a holds block b's current version. It panics if
// there is no such block or agent.
func (m *Manager) Valid(b int, a Agent) bool { return m.row(b)[a] == m.current(b) }

// Version returns block b's version. It panics if there is no such block.
func (m *Manager) Version(b int) uint64 { return m.blocks[b].version }

// Holders returns the agents that hold block b's current version. It panics if
// there is no such block.
func (m *Manager) Holders(b int) AgentMask { return m.holders(b) }

// ValidBlocks returns how many blocks agent a holds the current version of, in
// a time that does not depend on how many there are. It panics if there is no
// such agent.
func (m *Manager) ValidBlocks(a Agent) int { return m.valid[a] }

// Debts yields the blocks whose version home does not hold but could be given,
// in their order. The Manager may be changed meanwhile.
func (m *Manager) Debts() iter.Seq[int] {
	return func(yield func(int) bool) {
		for b := range m.blocks {
			if m.debt(b) && !yield(b) {
				return
			}
		}
	}
}

// sides is a block seen as RAM against the GPU: which of them are current, and
// which have a copy at all.
type sides struct{ host, device, hostCopy, deviceCopy bool }

// sides returns block b's. Disk is on the host's side. What a writer held
// counts until it commits; a stale replica of version 0 is no copy of
// anything.
func (m *Manager) sides(b int) sides {
	var s sides
	t := m.doing(b)
	for a, held := range m.row(b) {
		if t != nil && t.writer == Agent(a) {
			held = t.prior
		}
		current := held == m.current(b)
		has := current || held > 1
		if m.agents[a].Tier == VRAM {
			s.device, s.deviceCopy = s.device || current, s.deviceCopy || has
		} else {
			s.host, s.hostCopy = s.host || current, s.hostCopy || has
		}
	}
	return s
}

func (s sides) state() State {
	switch {
	case s.host && s.device:
		return Synced
	case s.host && s.deviceCopy:
		return HostDirty
	case s.host:
		return HostOnly
	case s.device && !s.hostCopy:
		return DeviceOnly
	}
	return DeviceDirty
}

// State returns the two-sided view of block b: agents of tier VRAM are the
// device, all others the host. A block that nobody holds because it is all
// zeros is HostOnly. One that is lost is HostDirty if only the device has an
// older copy, else DeviceDirty: the side that has a copy must not be read. It
// panics if there is no such block.
func (m *Manager) State(b int) State {
	s := m.sides(b)
	if !s.host && !s.device {
		switch {
		case m.blocks[b].flags&zeros != 0:
			return HostOnly
		case s.deviceCopy && !s.hostCopy:
			return HostDirty
		}
	}
	return s.state()
}

// SpanState returns the two-sided view of the span: a side is current if it is
// for every block, and has a copy if it has one of any. If neither side is
// current throughout it is DeviceDirty: the host must not be read without a
// sync. Blocks that are all zeros count as current on both sides; if all are,
// it is HostOnly. It looks at every block.
func (m *Manager) SpanState() State {
	all := sides{host: true, device: true}
	written := false
	for b := range m.blocks {
		if m.blocks[b].flags&zeros != 0 {
			continue
		}
		written = true
		s := m.sides(b)
		all.host = all.host && s.host
		all.device = all.device && s.device
		all.hostCopy = all.hostCopy || s.hostCopy
		all.deviceCopy = all.deviceCopy || s.deviceCopy
	}
	if !written {
		return HostOnly
	}
	return all.state()
}

// Stats counts spans by their two-sided state (seeds/002, "CoherencyStats").
type Stats struct {
	Total      int `json:"total"` // spans
	HostOnly   int `json:"host_only"`
	DeviceOnly int `json:"device_only"`
	Synced     int `json:"synced"`
	Dirty      int `json:"dirty"` // HostDirty or DeviceDirty
}

// Add adds other's counts to s.
func (s *Stats) Add(other Stats) {
	s.Total += other.Total
	s.HostOnly += other.HostOnly
	s.DeviceOnly += other.DeviceOnly
	s.Synced += other.Synced
	s.Dirty += other.Dirty
}

// TieredStats counts blocks by where their current version is (seeds/002,
// "TieredCoherencyStats").
type TieredStats struct {
	TotalBlocks int    `json:"total_blocks"`
	VRAMCopies  int    `json:"vram_copies"`  // blocks whose current version is in VRAM
	HostCopies  int    `json:"host_copies"`  // in RAM
	DiskCopies  int    `json:"disk_copies"`  // on disk
	DirtyBlocks int    `json:"dirty_blocks"` // blocks with a debt
	SyncCount   uint64 `json:"sync_count"`   // copies between agents that arrived
	// Epoch is the barriers' count. A Manager knows none and leaves it 0.
	Epoch uint64 `json:"epoch"`
}

// Add adds other's counts to s; of the epochs it keeps the later.
func (s *TieredStats) Add(other TieredStats) {
	s.TotalBlocks += other.TotalBlocks
	s.VRAMCopies += other.VRAMCopies
	s.HostCopies += other.HostCopies
	s.DiskCopies += other.DiskCopies
	s.DirtyBlocks += other.DirtyBlocks
	s.SyncCount += other.SyncCount
	s.Epoch = max(s.Epoch, other.Epoch)
}

// Stats returns the span's part of both statistics: 1 span, and its blocks. It
// looks at every block.
func (m *Manager) Stats() (Stats, TieredStats) {
	s := Stats{Total: 1}
	switch state := m.SpanState(); {
	case state == HostOnly:
		s.HostOnly = 1
	case state == DeviceOnly:
		s.DeviceOnly = 1
	case state == Synced:
		s.Synced = 1
	default:
		s.Dirty = 1
	}
	t := TieredStats{TotalBlocks: len(m.blocks), SyncCount: m.syncs}
	for b := range m.blocks {
		var tiers TierMask
		for a := range m.holders(b).All() {
			tiers.Add(m.agents[a].Tier)
		}
		if tiers.Has(VRAM) {
			t.VRAMCopies++
		}
		if tiers.Has(Host) {
			t.HostCopies++
		}
		if tiers.Has(Disk) {
			t.DiskCopies++
		}
		if m.debt(b) {
			t.DirtyBlocks++
		}
	}
	return s, t
}
