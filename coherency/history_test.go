// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"testing"

	"pgregory.net/rapid"
)

// TestHistories runs long random histories of several blocks and up to six
// agents against the model.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		agents := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) AgentInfo {
			return AgentInfo{Tier: Tier(rapid.IntRange(0, int(tierCount)-1).Draw(t, "tier")), Node: rapid.Uint32Range(0, 2).Draw(t, "node")}
		}), 1, 6).Draw(t, "agents")
		n := len(agents)
		w, err := newWorld(Config{
			Agents: agents,
			Home:   Agent(rapid.IntRange(0, n-1).Draw(t, "home")),
			Policy: WritePolicy(rapid.IntRange(0, int(policyCount)-1).Draw(t, "policy")),
			Blocks: rapid.IntRange(1, 5).Draw(t, "blocks"),
			Zeroed: AgentMask(rapid.IntRange(0, 1<<n-1).Draw(t, "zeroed")),
		})
		if err != nil {
			t.Fatal(err)
		}
		ops := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) op {
			return op{
				kind: opKind(rapid.IntRange(0, opKinds-1).Draw(t, "kind")),
				b:    rapid.IntRange(0, len(w.blocks)-1).Draw(t, "block"),
				a:    Agent(rapid.IntRange(0, n-1).Draw(t, "agent")),
				n:    rapid.IntRange(0, n-1).Draw(t, "flight"),
			}
		}), 100, 600).Draw(t, "ops")
		for _, o := range ops {
			x := &w.blocks[o.b]
			switch o.kind {
			case opArrive, opFail:
				if o.n >= len(x.flights) {
					continue
				}
			case opWrite, opWriteWhole:
				if x.writes == maxWrites {
					continue
				}
			case opPinProbe:
				continue
			}
			if err := w.apply(o); err != nil && err != errRefused {
				t.Fatalf("%v: %v", o, err)
			}
			for b := range w.blocks {
				if err := w.invariants(b); err != nil {
					t.Fatalf("%v: block %d: %v", o, b, err)
				}
			}
		}
		for b := range w.blocks {
			if err := w.drains(b); err != nil {
				t.Fatalf("coming to rest: block %d: %v", b, err)
			}
		}
	})
}
