// SPDX-License-Identifier: Apache-2.0

package coherency

import "fmt"

// Commit is the answer to a committed write.
type Commit struct {
	// Version is the block's version now.
	Version uint64
	// Push are the agents that the policy wants to hold Version before the
	// write's flush is answered: Acquire it for each. WriteBack: none.
	// WriteThrough: home. WriteAll: home and every agent that had a copy,
	// current or not.
	Push AgentMask
}

// BeginWrite asks to change block b's bytes at agent a. whole says that every
// byte will be overwritten: then what a holds does not matter, not even that
// the version is lost. expect is the version that the change is based on, or
// AnyVersion.
//
// If ready is false the caller carries out c, completes it and calls again. If
// it is true a writes: its bytes are no version until Commit or Abort, which
// the caller must call. Agents that hold the current version still serve
// reads. Copies under way from a do not count any more, whether the write
// commits or not.
//
// It fails with ErrBusy if the block is written already, if a copy into a is
// under way, or if there is nothing to copy from but what is being written;
// with ErrConflict; with ErrDataLoss; with ErrRange.
func (m *Manager) BeginWrite(b int, a Agent, whole bool, expect uint64) (c Copy, ready bool, err error) {
	if err := m.check("write", b, a); err != nil {
		return Copy{}, false, err
	}
	if w := m.writer(b); w != NoAgent && m.guard(oneWriter) {
		return Copy{}, false, m.refuseFor(ErrBusy, "write", b, a, w, "is writing it")
	}
	if v := m.blocks[b].version; expect != AnyVersion && expect != v && m.guard(writeExpected) {
		return Copy{}, false, fmt.Errorf("%w: write block %d at %v: it is at version %d, the change is based on %d",
			ErrConflict, b, m.name(a), v, expect)
	}
	if m.inbound(b, a) && m.guard(writeUndisturbed) {
		return Copy{}, false, m.refuse(ErrBusy, "write", b, a, "a copy is arriving there")
	}
	if !whole && m.at(b, a) != m.current(b) && m.guard(writeCurrent) {
		c, err = m.fetch("write", b, a)
		return c, false, err
	}
	if m.guard(writeVoids) {
		m.void(b, m.outbound(b, a))
	}
	t := m.begin(b)
	t.writer, t.prior = a, m.at(b, a)
	if m.guard(writeHides) {
		m.put(b, a, 0)
	}
	return Copy{}, true, nil
}

// void makes the copies of block b into the agents of s count for nothing.
func (m *Manager) void(b int, s AgentMask) {
	if t := m.doing(b); t != nil {
		t.void |= t.flight & s
	}
}

// Commit ends a's write: its bytes are the block's next version, all other
// copies are stale. A write at home leaves no debt. It fails with ErrState if
// a is not writing, for instance because it died meanwhile; with ErrRange.
func (m *Manager) Commit(b int, a Agent) (Commit, error) {
	if _, err := m.endWrite("commit", b, a); err != nil {
		return Commit{}, err
	}
	push := m.push(b, a)
	m.renew(b, a)
	m.settle(b)
	return Commit{Version: m.blocks[b].version, Push: push}, nil
}

// Abort ends a's write without a new version. damaged says that a's bytes were
// changed: they are no version any more, and if nobody else has the current
// one, it is lost. It fails with ErrState if a is not writing; with ErrRange.
func (m *Manager) Abort(b int, a Agent, damaged bool) error {
	prior, err := m.endWrite("abort", b, a)
	if err != nil {
		return err
	}
	if damaged && m.guard(damageHides) {
		m.drop(b, a)
	} else {
		m.put(b, a, prior)
	}
	m.settle(b)
	return nil
}

// endWrite takes the write from a and returns what a held before.
func (m *Manager) endWrite(call string, b int, a Agent) (prior uint64, err error) {
	if err := m.check(call, b, a); err != nil {
		return 0, err
	}
	t := m.doing(b)
	if (t == nil || t.writer != a) && m.guard(commitBegun) {
		return 0, m.refuse(ErrState, call, b, a, "it is not being written there")
	}
	t = m.begin(b)
	t.writer = NoAgent
	return t.prior, nil
}

// push is Commit.Push for a new version of block b at a, asked before the
// version moves on.
func (m *Manager) push(b int, a Agent) AgentMask {
	var s AgentMask
	switch m.policy {
	case WriteThrough:
		s = m.home.bit()
	case WriteAll:
		s = m.home.bit()
		for o, held := range m.row(b) {
			if held != 0 {
				s |= 1 << o
			}
		}
		if t := m.doing(b); t != nil {
			s |= t.flight &^ t.void
		}
	}
	return s &^ a.bit()
}

// Adopt makes a's stale bytes the block's next version by force, over whatever
// others committed since: the forced Upload and Download (facts C3 rows 14 and
// 15). If a holds the current version there is nothing to do: Commit has that
// version and no Push.
//
// It fails with ErrState if a holds nothing; with ErrBusy if the block is
// written or a copy into a is under way; with ErrRange.
func (m *Manager) Adopt(b int, a Agent) (Commit, error) {
	if err := m.check("adopt", b, a); err != nil {
		return Commit{}, err
	}
	if err := m.quiet("adopt", b, a); err != nil {
		return Commit{}, err
	}
	switch held := m.at(b, a); {
	case held == m.current(b):
		return Commit{Version: m.blocks[b].version}, nil
	case held == 0 && m.guard(adoptKnown):
		return Commit{}, m.refuse(ErrState, "adopt", b, a, "it holds no version")
	}
	push := m.push(b, a)
	m.renew(b, a)
	return Commit{Version: m.blocks[b].version, Push: push}, nil
}

// quiet returns ErrBusy if block b is written, or a copy into a is under way.
func (m *Manager) quiet(call string, b int, a Agent) error {
	if w := m.writer(b); w != NoAgent && m.guard(adoptUnwritten) {
		return m.refuseFor(ErrBusy, call, b, a, w, "is writing it")
	}
	if m.inbound(b, a) && m.guard(adoptUndisturbed) {
		return m.refuse(ErrBusy, call, b, a, "a copy is arriving there")
	}
	return nil
}

// Accept ends the loss of block b: what survives becomes its next version. from
// is the agent whose bytes these are, the one with the newest version; home if
// it has that too. If nobody has any they are zeros, and from is NoAgent.
//
// It fails with ErrState if the block is not lost; with ErrBusy if it is
// written or a copy into that agent is under way; with ErrRange.
func (m *Manager) Accept(b int) (version uint64, from Agent, err error) {
	if err := m.check("accept", b, m.home); err != nil {
		return 0, NoAgent, err
	}
	if !m.lost(b) && m.guard(acceptLost) {
		return 0, NoAgent, fmt.Errorf("%w: accept the loss of block %d: version %d is not lost",
			ErrState, b, m.blocks[b].version)
	}
	_, from = m.survivor(b)
	if from == NoAgent {
		if w := m.writer(b); w != NoAgent && m.guard(adoptUnwritten) {
			return 0, NoAgent, m.refuseFor(ErrBusy, "accept", b, m.home, w, "is writing it")
		}
		blk := &m.blocks[b]
		blk.version++
		blk.flags = zeros
		return blk.version, NoAgent, nil
	}
	if err := m.quiet("accept", b, from); err != nil {
		return 0, NoAgent, err
	}
	m.renew(b, from)
	return m.blocks[b].version, from, nil
}

// survivor is the newest version of block b that some agent holds, spelled as
// in held, and one such agent, home if it is one.
func (m *Manager) survivor(b int) (held uint64, from Agent) {
	held, from = m.at(b, m.home), m.home
	for a, h := range m.row(b) {
		if h > held {
			held, from = h, Agent(a)
		}
	}
	if held == 0 {
		return 0, NoAgent
	}
	return held, from
}

// loss is the error of reading block b, whose version is lost.
func (m *Manager) loss(b int) error {
	e := &DataLossError{Block: b, Lost: m.blocks[b].version}
	if held, _ := m.survivor(b); held > 0 {
		e.Survivor = held - 1
	}
	return e
}

// MarkUnclean records that block b's current version was committed on behalf
// of a writer that died. The next version clears it. It panics if there is no
// block b.
func (m *Manager) MarkUnclean(b int) { m.blocks[b].flags |= unclean }
