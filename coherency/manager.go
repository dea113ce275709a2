// SPDX-License-Identifier: Apache-2.0

package coherency

import "fmt"

// AnyVersion as BeginWrite's expectation matches every version.
const AnyVersion = ^uint64(0)

// maxBlocks bounds Config.Blocks: 1 PiB of 1 MiB blocks.
const maxBlocks = 1 << 30

// Config says what a Manager directs.
type Config struct {
	// Agents are the places that may hold copies, 1 to MaxAgents. An Agent is
	// an index into it.
	Agents []AgentInfo
	// Home is where the span belongs: a version that home does not hold is a
	// debt.
	Home Agent
	// Policy says which agents Commit asks to be pushed to.
	Policy WritePolicy
	// Blocks is how many blocks the span has, 1 to 1<<30.
	Blocks int
	// Zeroed are the agents whose storage already reads as zeros: they hold
	// version 0 of every block.
	Zeroed AgentMask
}

// A Manager is the directory of one span's blocks: which agent holds which
// version of each, and what is under way. It moves no bytes: its calls return
// plans, a Copy each, and a copy counts only when its completion is reported.
//
// Every block starts at version 0, which is all zeros and needs no holder.
//
// A Manager is not safe for concurrent use: the caller serialises its calls,
// and carries out copies and writes outside of them.
type Manager struct {
	agents []AgentInfo
	home   Agent
	policy WritePolicy

	blocks   []block
	held     []uint64 // by block*len(agents)+agent: version+1; 0: nothing that is a version
	valid    []int    // by agent: how many blocks it holds the current version of
	spanPins []int    // by agent: PinAll

	ticket uint64 // the last one given out
	syncs  uint64 // copies between agents that arrived

	// Slot s of the busy table is busy[s-1] with flights and pins
	// [(s-1)*len(agents), s*len(agents)). Slots are recycled, never freed.
	busy     []busy
	flights  []flight
	pins     []uint32
	freeSlot int32

	broken guard // the guard that a mutation test takes away; none in use
}

// block is what is known of a block whatever its agents hold.
type block struct {
	version uint64 // the last one committed
	slot    int32  // in the busy table; 0: idle
	owner   Agent  // owes version to home while there is debt; holds or writes it
	flags   blockFlags
}

type blockFlags uint8

const (
	zeros   blockFlags = 1 << iota // version is all zeros: it needs no holder
	unclean                        // version was committed for a writer that died
)

// busy is what is under way at a block.
type busy struct {
	prior  uint64    // what the writer held before, as in Manager.held
	next   int32     // free slots form a list
	writer Agent     // its bytes are being changed: they are nobody's
	flight AgentMask // a copy is under way into these
	void   AgentMask // of flight: whose copy does not count whatever comes of it
	pinned AgentMask
}

// flight is a copy under way; the destination is its place in the table.
type flight struct {
	ticket  uint64
	version uint64
	src     Agent
}

// NewManager returns the directory of a span that has never been written. It
// fails with ErrRange.
func NewManager(c Config) (*Manager, error) {
	n := len(c.Agents)
	switch {
	case n < 1 || n > MaxAgents:
		return nil, fmt.Errorf("%w: new manager: %d agents, want 1 to %d", ErrRange, n, MaxAgents)
	case int(c.Home) >= n:
		return nil, fmt.Errorf("%w: new manager: home is agent %d of %d", ErrRange, c.Home, n)
	case c.Policy >= policyCount:
		return nil, fmt.Errorf("%w: new manager: no policy has number %d", ErrRange, c.Policy)
	case c.Blocks < 1 || c.Blocks > maxBlocks:
		return nil, fmt.Errorf("%w: new manager: %d blocks, want 1 to %d", ErrRange, c.Blocks, maxBlocks)
	case c.Zeroed>>n != 0:
		return nil, fmt.Errorf("%w: new manager: zeroed agents %#x of %d", ErrRange, uint16(c.Zeroed), n)
	}
	for i, a := range c.Agents {
		if a.Tier >= tierCount {
			return nil, fmt.Errorf("%w: new manager: agent %d: no tier has number %d", ErrRange, i, a.Tier)
		}
	}
	m := &Manager{
		agents:   append([]AgentInfo(nil), c.Agents...),
		home:     c.Home,
		policy:   c.Policy,
		blocks:   make([]block, c.Blocks),
		held:     make([]uint64, c.Blocks*n),
		valid:    make([]int, n),
		spanPins: make([]int, n),
	}
	for b := range m.blocks {
		m.blocks[b] = block{owner: NoAgent, flags: zeros}
	}
	for a := range c.Zeroed.All() {
		for b := range m.blocks {
			m.held[b*n+int(a)] = 1
		}
		m.valid[a] = c.Blocks
	}
	return m, nil
}

// Blocks returns how many blocks the span has.
func (m *Manager) Blocks() int { return len(m.blocks) }

// Home returns the agent where the span belongs.
func (m *Manager) Home() Agent { return m.home }

// Policy returns the span's write policy.
func (m *Manager) Policy() WritePolicy { return m.policy }

// current is how held spells the current version of block b.
func (m *Manager) current(b int) uint64 { return m.blocks[b].version + 1 }

// at is what agent a holds of block b: version+1, or 0.
func (m *Manager) at(b int, a Agent) uint64 { return m.held[b*len(m.agents)+int(a)] }

// put is the only place that changes what an agent holds.
func (m *Manager) put(b int, a Agent, held uint64) {
	p := &m.held[b*len(m.agents)+int(a)]
	if *p == m.current(b) {
		m.valid[a]--
	}
	if held == m.current(b) {
		m.valid[a]++
	}
	*p = held
}

// drop forgets a's copy of block b. What it owed to home another holder owes
// now.
func (m *Manager) drop(b int, a Agent) {
	m.put(b, a, 0)
	if m.blocks[b].owner == a && m.guard(dutyMoves) {
		m.blocks[b].owner = m.heir(b)
	}
}

// heir is who owes the version to home when its owner is gone: any other holder,
// or who overwrites the version now and could still abort.
func (m *Manager) heir(b int) Agent {
	for a := range m.holders(b).All() {
		return a
	}
	if t := m.doing(b); t != nil && t.writer != NoAgent && t.prior == m.current(b) {
		return t.writer
	}
	return NoAgent
}

// renew makes a's bytes the next version of block b: by that alone every other
// copy is stale.
func (m *Manager) renew(b int, a Agent) {
	blk := &m.blocks[b]
	if m.guard(newVersion) {
		for o, held := range m.row(b) {
			if held == m.current(b) {
				m.valid[o]--
			}
		}
		blk.version++
	}
	m.put(b, a, m.current(b))
	blk.owner = a
	blk.flags = 0
}

// row is what each agent holds of block b.
func (m *Manager) row(b int) []uint64 {
	n := len(m.agents)
	return m.held[b*n : (b+1)*n]
}

// holders are the agents that hold the current version of block b.
func (m *Manager) holders(b int) AgentMask {
	var s AgentMask
	cur := m.current(b)
	for a, held := range m.row(b) {
		if held == cur {
			s |= 1 << a
		}
	}
	return s
}

// lost reports whether nobody has the version of block b, and nobody can bring
// it back: neither as zeros nor by aborting the write that hides it.
func (m *Manager) lost(b int) bool {
	if m.blocks[b].flags&zeros != 0 || m.holders(b) != 0 {
		return false
	}
	t := m.doing(b)
	return t == nil || t.writer == NoAgent || t.prior != m.current(b)
}

// debt reports whether home lacks a version that it could be given.
func (m *Manager) debt(b int) bool {
	return m.blocks[b].version > 0 && m.at(b, m.home) != m.current(b) && !m.lost(b)
}

// doing is what is under way at block b, or nil. It is good until the next
// call of begin.
func (m *Manager) doing(b int) *busy {
	if s := m.blocks[b].slot; s != 0 {
		return &m.busy[s-1]
	}
	return nil
}

// writer is who writes block b now.
func (m *Manager) writer(b int) Agent {
	if t := m.doing(b); t != nil {
		return t.writer
	}
	return NoAgent
}

// inbound reports whether a copy of block b into a is under way, void or not.
func (m *Manager) inbound(b int, a Agent) bool {
	t := m.doing(b)
	return t != nil && t.flight.Has(a)
}

// outbound are the agents into which a copy of block b from a is under way,
// void or not.
func (m *Manager) outbound(b int, a Agent) AgentMask {
	t := m.doing(b)
	if t == nil {
		return 0
	}
	var s AgentMask
	for d := range t.flight.All() {
		if m.flight(b, d).src == a {
			s |= d.bit()
		}
	}
	return s
}

// flight is the table's place for a copy of block b, which is busy, into a.
func (m *Manager) flight(b int, a Agent) *flight {
	return &m.flights[int(m.blocks[b].slot-1)*len(m.agents)+int(a)]
}

// begin returns block b's slot of the busy table, a fresh one if it was idle.
func (m *Manager) begin(b int) *busy {
	blk := &m.blocks[b]
	if blk.slot == 0 {
		if s := m.freeSlot; s != 0 {
			blk.slot, m.freeSlot = s, m.busy[s-1].next
		} else {
			m.busy = append(m.busy, busy{})
			m.flights = append(m.flights, make([]flight, len(m.agents))...)
			m.pins = append(m.pins, make([]uint32, len(m.agents))...)
			blk.slot = int32(len(m.busy))
		}
		m.busy[blk.slot-1] = busy{writer: NoAgent}
	}
	return &m.busy[blk.slot-1]
}

// settle gives block b's slot back if nothing is under way any more.
func (m *Manager) settle(b int) {
	t := m.doing(b)
	if t == nil || t.writer != NoAgent || t.flight != 0 || t.pinned != 0 {
		return
	}
	blk := &m.blocks[b]
	t.next, m.freeSlot = m.freeSlot, blk.slot
	blk.slot = 0
}
