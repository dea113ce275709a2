// SPDX-License-Identifier: Apache-2.0

package coherency_test

import (
	"errors"
	"testing"

	"github.com/memspan/memspan/coherency"
)

func TestRestore(t *testing.T) {
	const ram, disk = 0, 1
	restored := func(t *testing.T) *coherency.Manager {
		t.Helper()
		m, err := coherency.NewManager(coherency.Config{
			Agents: []coherency.AgentInfo{{Tier: coherency.Host}, {Tier: coherency.Disk}},
			Home:   disk, Blocks: 4, Zeroed: coherency.AgentsOf(ram),
		})
		if err != nil {
			t.Fatal(err)
		}
		for b, c := range []struct {
			last, held uint64
			atHome     bool
		}{{7, 7, true}, {7, 3, true}, {7, 0, false}} {
			if err := m.Restore(b, c.last, c.held, c.atHome); err != nil {
				t.Fatal(err)
			}
		}
		return m
	}

	t.Run("whole", func(t *testing.T) {
		m := restored(t)
		info := m.Block(0)
		if info.Version != 7 || info.HomeVersion != 7 || info.Debt || info.Lost || m.Holders(0) != coherency.AgentsOf(disk) {
			t.Fatalf("block 0: %+v", info)
		}
		c, hit, err := m.Acquire(0, ram)
		if err != nil || hit || c.Src != disk || c.Version != 7 {
			t.Fatalf("Acquire = %+v, %v, %v", c, hit, err)
		}
	})
	t.Run("lost with a survivor", func(t *testing.T) {
		m := restored(t)
		_, _, err := m.Acquire(1, ram)
		var loss *coherency.DataLossError
		if !errors.As(err, &loss) || loss.Lost != 7 || loss.Survivor != 3 {
			t.Fatalf("Acquire: %v", err)
		}
		version, from, err := m.Accept(1)
		if err != nil || version != 8 || from != disk {
			t.Fatalf("Accept = %d, %d, %v", version, from, err)
		}
	})
	t.Run("lost without", func(t *testing.T) {
		m := restored(t)
		if version, from, err := m.Accept(2); err != nil || version != 8 || from != coherency.NoAgent {
			t.Fatalf("Accept = %d, %d, %v", version, from, err)
		}
	})
	t.Run("never written", func(t *testing.T) {
		m := restored(t)
		if info := m.Block(3); info.Version != 0 || info.Lost || info.Debt {
			t.Fatalf("block 3: %+v", info)
		}
	})
	t.Run("refused", func(t *testing.T) {
		m := restored(t)
		for _, err := range []error{m.Restore(0, 9, 9, true), m.Restore(3, 2, 3, true), m.Restore(3, 0, 0, false)} {
			if !errors.Is(err, coherency.ErrState) {
				t.Errorf("error %v, want ErrState", err)
			}
		}
		if err := m.Restore(4, 1, 1, true); !errors.Is(err, coherency.ErrRange) {
			t.Errorf("error %v, want ErrRange", err)
		}
	})
}

// What has left its source arrives whatever becomes of that.
func TestReceived(t *testing.T) {
	const ram, vram, disk = 0, 1, 2
	begin := func() (*coherency.Manager, coherency.Copy) {
		m, err := coherency.NewManager(coherency.Config{
			Agents: []coherency.AgentInfo{{Tier: coherency.Host}, {Tier: coherency.VRAM}, {Tier: coherency.Disk}},
			Home:   disk, Blocks: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, ready, err := m.BeginWrite(0, vram, true, coherency.AnyVersion); err != nil || !ready {
			t.Fatal(ready, err)
		}
		if _, err := m.Commit(0, vram); err != nil {
			t.Fatal(err)
		}
		c, _, err := m.Acquire(0, disk)
		if err != nil || c.Src != vram {
			t.Fatal(c, err)
		}
		return m, c
	}
	m, c := begin()
	received, ok := m.Received(c)
	if lost := m.Lose(vram); !ok || lost != 1 {
		t.Fatalf("Received: %v; %d lost", ok, lost)
	}
	if valid, err := m.Complete(received, true); !valid || err != nil || m.Block(0).Lost {
		t.Errorf("Complete: %v, %v; %+v", valid, err, m.Block(0))
	}

	m, c = begin()
	m.Lose(vram)
	received, ok = m.Received(c)
	if ok {
		t.Error("it was received from an agent that is dead")
	}
	if valid, err := m.Complete(received, false); valid || err != nil {
		t.Errorf("Complete: %v, %v", valid, err)
	}
}
