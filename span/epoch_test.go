// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
)

// The rest of seeds/002's sync_protocol (facts C3 row 18: the original's epoch
// moves with writes, and advancing returns the epoch that is over).
func TestSyncProtocolEpoch(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 1, Tier: coherency.Host, Home: coherency.Host})
	epoch := func() uint64 {
		_, tiered := st.Stats()
		return tiered.Epoch
	}
	write(t, s, 0, []byte{1})
	if n := epoch(); n != 0 {
		t.Errorf("epoch %d before any barrier", n)
	}
	for i, sync := range []func() (uint64, error){
		func() (uint64, error) { return st.Sync(t.Context()) },
		func() (uint64, error) { return s.Sync(t.Context()) },
		func() (uint64, error) { return st.Sync(t.Context()) },
	} {
		want := uint64(i + 1)
		if got, err := sync(); err != nil || got != want || epoch() != want {
			t.Errorf("barrier %d returns %d, %v; the epoch is %d", want, got, err, epoch())
		}
	}
}

// seeds/002's sync_protocol_policy.
func TestSyncProtocolPolicy(t *testing.T) {
	st := newStore(t)
	info := span.Info{Size: 1, Tier: coherency.Host, Home: coherency.Host}
	if s := alloc(t, st, info); s.Policy != coherency.WriteBack {
		t.Errorf("default policy is %v", s.Policy)
	}
	info.Policy = coherency.WriteThrough
	if s := alloc(t, st, info); s.Policy != coherency.WriteThrough {
		t.Errorf("policy is %v", s.Policy)
	}
}
