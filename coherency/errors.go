// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"errors"
	"fmt"
)

// Errors that a Manager returns, wrapped with what was asked, for which block
// and agent, and why not. A call that fails has changed nothing.
var (
	// ErrConflict: the block is no longer at the version the writer based its
	// change on.
	ErrConflict = errors.New("coherency: version conflict")
	// ErrDataLoss: the last holder of the block's version is gone. The error
	// is a *DataLossError.
	ErrDataLoss = errors.New("coherency: data loss")
	// ErrLastCopy: the copy is the only one, and there is no other agent to
	// write it back to.
	ErrLastCopy = errors.New("coherency: last copy")
	// ErrPinned: the copy is pinned.
	ErrPinned = errors.New("coherency: pinned")
	// ErrBusy: a write or a copy that is in the way is under way. It passes
	// once that is committed, aborted or completed.
	ErrBusy = errors.New("coherency: busy")
	// ErrRange: no such block, agent, tier or policy.
	ErrRange = errors.New("coherency: out of range")
	// ErrState: the call is not legal now, for instance Commit without
	// BeginWrite.
	ErrState = errors.New("coherency: not in the state for this call")
)

// A DataLossError says that a block's version has no holder left. It ends with
// Manager.Accept, with Manager.Adopt, or with a write of the whole block.
type DataLossError struct {
	Block    int    // which block of the span
	Lost     uint64 // the version that is gone
	Survivor uint64 // the newest version that some agent still holds; 0: only zeros
}

// Error says what was lost and what ends it.
func (e *DataLossError) Error() string {
	if e.Survivor == 0 {
		return fmt.Sprintf("coherency: data loss: version %d of block %d is gone and nothing but zeros survives: "+
			"accept the loss or write the whole block", e.Lost, e.Block)
	}
	return fmt.Sprintf("coherency: data loss: version %d of block %d is gone, version %d survives: "+
		"accept the loss or write the whole block", e.Lost, e.Block, e.Survivor)
}

// Is reports whether target is ErrDataLoss.
func (e *DataLossError) Is(target error) bool { return target == ErrDataLoss }

// A refusal wraps err with the call it answers. It is spelled out only when
// somebody reads it: callers that wait for ErrBusy to pass do not.
type refusal struct {
	err   error
	call  string
	block int
	at    agentName
	other agentName // begins why, if it is one
	why   string
}

func (r *refusal) Error() string {
	other := ""
	if r.other.agent != NoAgent {
		other = r.other.String() + " "
	}
	return fmt.Sprintf("%v: %s block %d at %v: %s%s", r.err, r.call, r.block, r.at, other, r.why)
}

func (r *refusal) Unwrap() error { return r.err }

// agentName is how errors call an agent.
type agentName struct {
	agent Agent
	info  AgentInfo
}

func (n agentName) String() string {
	return fmt.Sprintf("agent %d (%v, node %d)", n.agent, n.info.Tier, n.info.Node)
}

func (m *Manager) name(a Agent) agentName {
	if int(a) >= len(m.agents) {
		return agentName{agent: NoAgent}
	}
	return agentName{a, m.agents[a]}
}

// refuse returns why a call for block b at agent a fails.
func (m *Manager) refuse(err error, call string, b int, a Agent, why string) error {
	return m.refuseFor(err, call, b, a, NoAgent, why)
}

// refuseFor is refuse for a reason that begins with another agent's name.
func (m *Manager) refuseFor(err error, call string, b int, a, other Agent, why string) error {
	return &refusal{err: err, call: call, block: b, at: m.name(a), other: m.name(other), why: why}
}

// check returns ErrRange if there is no block b or no agent a.
func (m *Manager) check(call string, b int, a Agent) error {
	if uint(b) >= uint(len(m.blocks)) {
		return fmt.Errorf("%w: %s block %d: the span has %d blocks", ErrRange, call, b, len(m.blocks))
	}
	if int(a) >= len(m.agents) {
		return fmt.Errorf("%w: %s block %d at agent %d: the span has %d agents", ErrRange, call, b, a, len(m.agents))
	}
	return nil
}
