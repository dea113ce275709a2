// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"errors"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/host"
	"github.com/memspan/memspan/tier/tiertest"
)

func TestConformance(t *testing.T) {
	tiertest.Run(t, func(t *testing.T) tier.Tier {
		h := host.New(64<<20, nil)
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		return h
	})
}

func reserveAll(t *testing.T, s tier.Space, blocks int) {
	t.Helper()
	for b := range blocks {
		if err := s.Reserve(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

// Memory of closed spaces is kept within its share, given up when the budget
// needs it, and told to other tiers before it is unmapped.
func TestIdleMemory(t *testing.T) {
	forgotten := 0
	h := host.New(32<<20, func(*memfd.Region) { forgotten++ })
	const blocks = 3 // 4 MiB may be idle
	s, err := h.OpenSpace("a", blocks*tier.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	reserveAll(t, s, blocks)
	s.Close()
	if u := h.Usage(); u.Used != blocks*tier.BlockSize || forgotten != 0 {
		t.Fatalf("after the close %d bytes are in use, %d regions forgotten", u.Used, forgotten)
	}
	large, err := h.OpenSpace("b", 31*tier.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	reserveAll(t, large, 31)
	if forgotten != 1 {
		t.Errorf("%d regions forgotten, want the idle one", forgotten)
	}
	more, err := h.OpenSpace("c", 2*tier.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(more.Reserve(t.Context(), 0), more.Reserve(t.Context(), 1)); !errors.Is(err, tier.ErrBudget) {
		t.Errorf("reserving more than the budget: %v", err)
	}
	more.Close()
	large.Close()
	h.Close()
	if u := h.Usage(); u.Used != 0 {
		t.Errorf("%d bytes in use after all was closed", u.Used)
	}
}

// Memory that was handed to a client is never another span's, and is given
// back though the client keeps it mapped.
func TestSharedMemory(t *testing.T) {
	h := host.New(32<<20, nil)
	defer h.Close()
	s, err := h.OpenSpace("a", tier.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	reserveAll(t, s, 1)
	f, size, err := s.Share(true)
	if err != nil {
		t.Fatal(err)
	}
	client, err := memfd.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	copy(client.Bytes(), "mine")
	s.Close()
	if u := h.Usage(); u.Used != 0 {
		t.Errorf("%d bytes in use", u.Used)
	}
	if client.Bytes()[0] != 0 {
		t.Error("the memory was not given back")
	}
	next, err := h.OpenSpace("b", tier.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	reserveAll(t, next, 1)
	copy(client.Bytes(), "spy")
	m, err := next.Memory(0, 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	if m.Bytes()[0] != 0 {
		t.Error("a client's old mapping reaches the next span")
	}
	if _, _, err := s.Share(false); err == nil {
		t.Error("a closed space can be shared")
	}
}
