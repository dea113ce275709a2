// SPDX-License-Identifier: Apache-2.0

package coherency

// Copy is one step of a plan: copy Block at Version from Src to Dst, then
// report with Manager.Complete. If Src is NoAgent the version is all zeros:
// fill Dst with them.
//
// Until it is completed Dst's bytes are the copy's alone; Src's may be read.
type Copy struct {
	Block    int
	Src, Dst Agent
	Version  uint64
	Ticket   uint64 // tells this copy from every other of the Manager
}

// Acquire asks for the current version of block b at agent a: for reading, for
// prefetching, or, at home, for writing back. Whether the version is a debt
// does not matter. If a holds it, hit is true and there is nothing to do.
// Otherwise the caller carries out c, from the nearest holder: same node
// first, then the nearest tier, then the faster.
//
// It fails with ErrBusy if a copy into a is under way, if a is written, or if
// the only holder is; with ErrDataLoss; with ErrRange.
func (m *Manager) Acquire(b int, a Agent) (c Copy, hit bool, err error) {
	if err := m.check("acquire", b, a); err != nil {
		return Copy{}, false, err
	}
	if m.at(b, a) == m.current(b) {
		return Copy{}, true, nil
	}
	c, err = m.fetch("acquire", b, a)
	return c, false, err
}

// Source returns from where Acquire would copy block b to a, as things are now:
// a itself if it holds the current version. It is NoAgent if Acquire would fill
// a with zeros, or fail for want of a holder. It panics if there is no such block
// or agent.
func (m *Manager) Source(b int, a Agent) Agent {
	switch {
	case m.at(b, a) == m.current(b):
		return a
	case m.blocks[b].flags&zeros != 0:
		return NoAgent
	}
	return m.nearest(b, a)
}

// fetch plans the copy that gives a the current version of block b, which it
// does not hold.
func (m *Manager) fetch(call string, b int, a Agent) (Copy, error) {
	if m.writer(b) == a && m.guard(notIntoWriter) {
		return Copy{}, m.refuse(ErrBusy, call, b, a, "it is being written there")
	}
	if m.blocks[b].flags&zeros != 0 {
		return m.plan(call, b, NoAgent, a)
	}
	src := m.nearest(b, a)
	switch {
	case src != NoAgent:
		return m.plan(call, b, src, a)
	case !m.lost(b):
		return Copy{}, m.refuseFor(ErrBusy, call, b, a, m.writer(b), "is writing the only copy")
	case m.guard(zerosOnly):
		return Copy{}, m.loss(b)
	}
	return m.plan(call, b, NoAgent, a)
}

// nearest is the holder of block b that a copies from.
func (m *Manager) nearest(b int, a Agent) Agent {
	best := NoAgent
	for s, held := range m.row(b) {
		s := Agent(s)
		if held == m.current(b) || held != 0 && s != a && !m.guard(sourceCurrent) {
			if best == NoAgent || m.distance(s, a) < m.distance(best, a) {
				best = s
			}
		}
	}
	return best
}

// distance orders agents by how dear a copy between them is: node, then tiers
// apart, then the faster tier of the source.
func (m *Manager) distance(src, dst Agent) int {
	s, d := m.agents[src], m.agents[dst]
	apart := int(s.Tier) - int(d.Tier)
	if apart < 0 {
		apart = -apart
	}
	far := 0
	if s.Node != d.Node {
		far = 1
	}
	return (far*tierCount+apart)*tierCount + int(s.Tier)
}

// plan begins a copy of block b's current version.
func (m *Manager) plan(call string, b int, src, dst Agent) (Copy, error) {
	if m.inbound(b, dst) && m.guard(oneArrival) {
		return Copy{}, m.refuseFor(ErrBusy, call, b, dst, dst, "is being filled by another copy")
	}
	if m.guard(arrivalVoids) {
		// dst is stale, so these are copies of an old version.
		m.void(b, m.outbound(b, dst))
	}
	m.ticket++
	c := Copy{Block: b, Src: src, Dst: dst, Version: m.blocks[b].version, Ticket: m.ticket}
	t := m.begin(b)
	t.flight |= dst.bit()
	t.void &^= dst.bit()
	*m.flight(b, dst) = flight{ticket: c.Ticket, version: c.Version, src: src}
	if !m.replacesWhole(dst) && m.guard(arrivalHides) {
		m.put(b, dst, 0)
	}
	return c, nil
}

// replacesWhole reports whether a copy into a replaces its block whole or not
// at all, so that one that fails leaves what was there. Disk writes to fresh
// slots, RAM is filled from staging memory; device memory is overwritten in
// place.
func (m *Manager) replacesWhole(a Agent) bool { return m.agents[a].Tier != VRAM }

// Counts reports whether c, completed with success now, would be valid or the
// newest survivor of a loss: its version may have been superseded, its source
// written or dead. Whoever replaces a copy whole asks before doing so, and
// completes c as failed if it does not count, to keep what is there.
func (m *Manager) Counts(c Copy) bool {
	if m.check("complete", c.Block, c.Dst) != nil || !m.inbound(c.Block, c.Dst) {
		return false
	}
	return m.flight(c.Block, c.Dst).ticket == c.Ticket && !m.doing(c.Block).void.Has(c.Dst)
}

// Received reports that all bytes of c have left its source, as they were at
// c.Version, for a place where c.Dst will find them: what becomes of the source
// from now on does not matter. It returns c as it has to be completed now. It is
// false if c does not count any more; it must be completed all the same.
func (m *Manager) Received(c Copy) (Copy, bool) {
	if !m.Counts(c) {
		return c, false
	}
	if c.Src != NoAgent {
		m.syncs++
	}
	m.flight(c.Block, c.Dst).src = NoAgent
	c.Src = NoAgent
	return c, true
}

// Complete reports that c was carried out: ok if every byte of it arrived at
// c.Dst. It must be called for every copy, whatever came of it: until then
// c.Dst is busy. valid says whether c.Dst holds the block's current version
// now. It is false, without an error, for a copy that failed, that came too
// late for the version, whose source was written or died meanwhile, or that
// was completed before.
//
// If c.Dst is RAM or Disk, a copy that is not ok must have left there what was
// there before.
//
// It fails with ErrRange, and with ErrState for a copy that is under way but
// is not c.
func (m *Manager) Complete(c Copy, ok bool) (valid bool, err error) {
	b, a := c.Block, c.Dst
	if err := m.check("complete", b, a); err != nil {
		return false, err
	}
	if !m.inbound(b, a) {
		return false, nil
	}
	f := *m.flight(b, a)
	if f.ticket != c.Ticket && m.guard(rightTicket) {
		return false, nil
	}
	if (f.src != c.Src || f.version != c.Version) && m.guard(rightTicket) {
		return false, m.refuse(ErrState, "complete", b, a, "the copy with this ticket has another source or version")
	}
	t := m.doing(b)
	void := t.void.Has(a) && m.guard(voidIgnored)
	t.flight &^= a.bit()
	t.void &^= a.bit()
	switch {
	case !ok && m.guard(failureIgnored):
		// What the bytes were before was forgotten when the copy began, but
		// for agents that still have it.
	case void:
		if m.guard(voidReplaces) {
			m.put(b, a, 0)
		}
	case !m.guard(versionCopied):
		m.put(b, a, m.current(b))
	default:
		m.put(b, a, f.version+1)
		if f.src != NoAgent {
			m.syncs++
		}
	}
	valid = m.at(b, a) == m.current(b)
	if valid && m.blocks[b].owner == NoAgent {
		m.blocks[b].owner = a
	}
	m.settle(b)
	return valid, nil
}
