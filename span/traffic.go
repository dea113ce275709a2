// SPDX-License-Identifier: Apache-2.0

package span

import (
	"sync/atomic"

	"github.com/memspan/memspan/coherency"
)

// Traffic is bytes that a tier has taken in and given out since the daemon
// began: what users wrote and read there, and what was copied between tiers.
type Traffic struct{ In, Out int64 }

// traffic counts a tier's bytes.
type traffic struct{ in, out atomic.Int64 }

// Traffic returns what a tier has moved; ok is false if there is no such tier.
func (st *Store) Traffic(kind coherency.Tier) (t Traffic, ok bool) {
	a, err := st.agentOf(kind)
	if err != nil {
		return Traffic{}, false
	}
	return Traffic{In: st.traffic[a].in.Load(), Out: st.traffic[a].out.Load()}, true
}

// countRead counts n bytes that a user has read from agent a; NoAgent: zeros.
func (s *Span) countRead(a coherency.Agent, n int64) {
	s.read.Add(n)
	if a != coherency.NoAgent {
		s.store.traffic[a].out.Add(n)
	}
}

// CountLent counts n bytes that a user has read from what Lend lent.
func (s *Span) CountLent(n int64) { s.countRead(hostAgent, n) }

// countWrite counts the bytes of a commit of block b that was made just now: who
// holds it is who was written. The caller holds mu.
func (s *Span) countWrite(b int, runs []Run) {
	n := total(runs)
	s.written += n
	for a := range s.dir.Holders(b).All() {
		s.store.traffic[a].in.Add(n)
	}
}

// countCopy counts n bytes that were copied between tiers.
func (s *Span) countCopy(c coherency.Copy, n int64) {
	s.store.traffic[c.Dst].in.Add(n)
	if c.Src != coherency.NoAgent {
		s.store.traffic[c.Src].out.Add(n)
	}
}
