// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"iter"
	"math/bits"
)

// MaxAgents is the most agents that a Manager has.
const MaxAgents = 16

// Agent is a tier copy of a machine that takes part in the protocol: an index
// into Config.Agents.
type Agent uint8

// NoAgent is no agent. As the source of a Copy it means zeros.
const NoAgent Agent = 0xff

// AgentInfo says what an agent is.
type AgentInfo struct {
	Tier Tier   // what kind of memory
	Node uint32 // which machine, or which NUMA node: copies within a node are preferred
}

// AgentMask is a set of agents.
type AgentMask uint16

// AgentsOf returns the set of the given agents.
func AgentsOf(agents ...Agent) AgentMask {
	var s AgentMask
	for _, a := range agents {
		s |= a.bit()
	}
	return s
}

// bit is the set of a alone; empty for NoAgent.
func (a Agent) bit() AgentMask { return 1 << a }

// Has reports whether a is in the set.
func (s AgentMask) Has(a Agent) bool { return s&a.bit() != 0 }

// Count returns how many agents are in the set.
func (s AgentMask) Count() int { return bits.OnesCount16(uint16(s)) }

// All yields the agents of the set in their order.
func (s AgentMask) All() iter.Seq[Agent] {
	return func(yield func(Agent) bool) {
		for rest := s; rest != 0; rest &= rest - 1 {
			if !yield(Agent(bits.TrailingZeros16(uint16(rest)))) {
				return
			}
		}
	}
}

// Replica is the state of one agent's copy of a block (MOESI). It is computed
// from the versions held, never stored.
type Replica uint8

// The states. All but Invalid hold the block's current version.
const (
	Invalid   Replica = iota // no copy, a stale one, or one being written or filled
	Shared                   // others hold the version too and somebody else, or nobody, owes it to home
	Exclusive                // the only copy, and home has it
	Owned                    // others hold the version too; this agent owes it to home
	Modified                 // the only copy, owed to home

	replicaCount = iota
)

var replicaNames = [replicaCount]string{"invalid", "shared", "exclusive", "owned", "modified"}

// String returns "invalid", "shared", "exclusive", "owned" or "modified".
func (r Replica) String() string { return enumName(replicaNames[:], uint8(r), "Replica") }

// MarshalText implements encoding.TextMarshaler with the names of String.
func (r Replica) MarshalText() ([]byte, error) {
	return marshalEnum(replicaNames[:], uint8(r), "replica state")
}

// UnmarshalText implements encoding.TextUnmarshaler for the names of String.
func (r *Replica) UnmarshalText(text []byte) error {
	n, err := unmarshalEnum(replicaNames[:], text, "replica state")
	*r = Replica(n)
	return err
}
