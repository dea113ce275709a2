// SPDX-License-Identifier: Apache-2.0

package coherency

// Evict asks to take agent a's copy of block b away so that its memory can be
// given back. If done is false the copy is the only one: the caller carries out
// c, completes it and calls again. c goes home, or from home to the agent
// nearest to it, the slower if two are. If done is true a holds nothing, and no
// copy touches its bytes. If a owed the version to home and others hold it too,
// one of them owes it now; evicting home's own copy makes a debt.
//
// It fails with ErrBusy if the block is written, or if a copy into or from a,
// or into where it would be written back, is under way; with ErrPinned; with
// ErrLastCopy if there is no other agent, or if the block is lost and a has the
// last of what survives; with ErrRange.
func (m *Manager) Evict(b int, a Agent) (c Copy, done bool, err error) {
	if err := m.leave("evict", b, a); err != nil {
		return Copy{}, false, err
	}
	if w := m.writer(b); w != NoAgent && m.guard(keepWhileWriting) {
		return Copy{}, false, m.refuseFor(ErrBusy, "evict", b, a, w, "is writing it")
	}
	switch held := m.at(b, a); {
	case held == 0:
		return Copy{}, true, nil
	case m.lost(b):
		if m.lastSurvivor(b, a) && m.guard(keepSurvivor) {
			return Copy{}, false, m.refuse(ErrLastCopy, "evict", b, a, "the block is lost and nobody else has what survives")
		}
	case m.only(b, a) && m.guard(keepLast):
		dst := m.refuge(a)
		if dst == NoAgent {
			return Copy{}, false, m.refuse(ErrLastCopy, "evict", b, a, "no other agent could hold it")
		}
		c, err = m.plan("evict", b, a, dst)
		return c, false, err
	}
	m.drop(b, a)
	return Copy{}, true, nil
}

// only reports whether a's copy of block b is the last of the current version,
// which is not just zeros.
func (m *Manager) only(b int, a Agent) bool {
	return m.blocks[b].flags&zeros == 0 && m.holders(b) == a.bit()
}

// WriteBackTo returns the agent to which Evict would first have block b written
// back before it takes a's copy away, as things are now: NoAgent if a's copy is
// not the only one, or if there is no other agent. It panics if there is no such
// block or agent.
func (m *Manager) WriteBackTo(b int, a Agent) Agent {
	if !m.only(b, a) {
		return NoAgent
	}
	return m.refuge(a)
}

// leave returns why a's copy of block b must stay even by force.
func (m *Manager) leave(call string, b int, a Agent) error {
	if err := m.check(call, b, a); err != nil {
		return err
	}
	t := m.doing(b)
	switch {
	case (m.spanPins[a] > 0 || t != nil && t.pinned.Has(a)) && m.guard(keepPinned):
		return m.refuse(ErrPinned, call, b, a, "its copy is pinned")
	case t == nil:
		return nil
	case t.writer == a && m.guard(keepWritten):
		return m.refuse(ErrBusy, call, b, a, "it is being written there")
	case t.flight.Has(a) && m.guard(keepArrival):
		return m.refuse(ErrBusy, call, b, a, "a copy is arriving there")
	case m.outbound(b, a) != 0 && m.guard(keepSource):
		return m.refuse(ErrBusy, call, b, a, "a copy is read from there")
	}
	return nil
}

// lastSurvivor reports whether a alone has the newest surviving version of
// block b. A copy arriving at another that has it may yet replace it.
func (m *Manager) lastSurvivor(b int, a Agent) bool {
	newest, _ := m.survivor(b)
	if m.at(b, a) != newest {
		return false
	}
	for o, held := range m.row(b) {
		if Agent(o) != a && held == newest && !m.inbound(b, Agent(o)) {
			return false
		}
	}
	return true
}

// refuge is where the only copy, at a, is written back to.
func (m *Manager) refuge(a Agent) Agent {
	if a != m.home {
		return m.home
	}
	best := NoAgent
	for i := range m.agents {
		// With a as the destination the faster tier is nearer; of two the
		// same number of tiers apart the later, slower one is wanted here.
		o := Agent(i)
		if o == a {
			continue
		}
		if best == NoAgent || m.distance(a, o) < m.distance(a, best) ||
			m.distance(a, o) == m.distance(a, best) && m.agents[o].Tier > m.agents[best].Tier {
			best = o
		}
	}
	return best
}

// Discard takes agent a's copy of block b away whatever is lost by it. If it
// was the only one the block is lost from now on.
//
// It fails with ErrBusy if a is written, or if a copy into or from a is under
// way: its bytes are still touched; with ErrPinned; with ErrRange.
func (m *Manager) Discard(b int, a Agent) error {
	if err := m.leave("discard", b, a); err != nil {
		return err
	}
	m.drop(b, a)
	return nil
}

// Pin keeps agent a's copy of block b from being evicted or discarded until as
// many calls of Unpin. It does not keep it from becoming stale. It fails with
// ErrState if a does not hold the current version; with ErrRange.
func (m *Manager) Pin(b int, a Agent) error {
	if err := m.check("pin", b, a); err != nil {
		return err
	}
	if m.at(b, a) != m.current(b) {
		return m.refuse(ErrState, "pin", b, a, "it does not hold the current version")
	}
	m.begin(b).pinned |= a.bit()
	*m.pin(b, a)++
	return nil
}

// Unpin takes one Pin back. It panics if there is none.
func (m *Manager) Unpin(b int, a Agent) {
	t := m.doing(b)
	if int(a) >= len(m.agents) || t == nil || !t.pinned.Has(a) {
		panic("coherency: Unpin without Pin")
	}
	p := m.pin(b, a)
	if *p--; *p == 0 {
		t.pinned &^= a.bit()
		m.settle(b)
	}
}

// pin is the table's place for the count of pins of block b, which is busy,
// at a.
func (m *Manager) pin(b int, a Agent) *uint32 {
	return &m.pins[int(m.blocks[b].slot-1)*len(m.agents)+int(a)]
}

// PinAll pins agent a's copies of all blocks, in a time that does not depend on
// how many there are. It fails with ErrState if a does not hold the current
// version of every block; with ErrRange.
func (m *Manager) PinAll(a Agent) error {
	if err := m.check("pin", 0, a); err != nil {
		return err
	}
	if m.valid[a] != len(m.blocks) {
		return m.refuse(ErrState, "pin", 0, a, "it does not hold the current version of all blocks")
	}
	m.spanPins[a]++
	return nil
}

// UnpinAll takes one PinAll back. It panics if there is none.
func (m *Manager) UnpinAll(a Agent) {
	if m.spanPins[a] == 0 {
		panic("coherency: UnpinAll without PinAll")
	}
	m.spanPins[a]--
}

// Lose records that agent a died: it holds nothing any more, what it was
// writing is not committed, and copies into and from it that are under way do
// not count; they must still be completed. If it comes back it starts empty.
// Pins stay their holders' to take back.
//
// lost is how many blocks are lost by it: those whose version nobody else
// holds. It panics if there is no agent a.
func (m *Manager) Lose(a Agent) (lost int) {
	for b := range m.blocks {
		t := m.doing(b)
		if t == nil && m.at(b, a) == 0 {
			continue
		}
		before := m.lost(b)
		if t != nil {
			if m.guard(deathVoidsArrivals) {
				m.void(b, a.bit())
			}
			if m.guard(deathVoidsSources) {
				m.void(b, m.outbound(b, a))
			}
			if t.writer == a && m.guard(deathEndsWrite) {
				t.writer = NoAgent
			}
		}
		m.drop(b, a)
		if m.lost(b) && !before {
			lost++
		}
		m.settle(b)
	}
	return lost
}
