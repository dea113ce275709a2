// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"runtime"
	"testing"
)

// cycle is a block's life: written on the device, brought home, evicted, read
// again, written in place, pinned and unpinned. It returns how many
// transitions that were.
func cycle(m *Manager, b int) int {
	const transitions = 14
	ok := true
	fill := func(c Copy, err error) {
		valid, cerr := m.Complete(c, true)
		ok = ok && err == nil && valid && cerr == nil
	}
	write := func(a Agent) {
		_, ready, err := m.BeginWrite(b, a, true, AnyVersion)
		_, cerr := m.Commit(b, a)
		ok = ok && ready && err == nil && cerr == nil
	}
	write(gpu)
	c, _, err := m.Evict(b, gpu)
	fill(c, err)
	_, done, err := m.Evict(b, gpu)
	ok = ok && done && err == nil
	c, _, err = m.Acquire(b, ram)
	fill(c, err)
	_, hit, err := m.Acquire(b, ram)
	ok = ok && hit && err == nil
	write(ram)
	ok = ok && m.Pin(b, ram) == nil
	m.Unpin(b, ram)
	_, _, err = m.BeginWrite(b, ram, false, AnyVersion)
	ok = ok && err == nil && m.Abort(b, ram, false) == nil
	if !ok {
		panic("a step of the cycle failed")
	}
	return transitions
}

func TestTransitionsAllocateNothing(t *testing.T) {
	m := manager(t, Config{Agents: threeTiers, Home: disk, Policy: WriteThrough, Blocks: 64})
	b := 0
	allocs := testing.AllocsPerRun(1000, func() {
		cycle(m, b%64)
		b++
	})
	if allocs != 0 {
		t.Errorf("%v allocations in a cycle of transitions", allocs)
	}
	if len(m.busy) != 1 {
		t.Errorf("the busy table has grown to %d slots for one busy block at a time", len(m.busy))
	}
}

func TestIdleBlockIsSmall(t *testing.T) {
	const blocks = 1 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	m := manager(t, Config{Agents: threeTiers, Home: disk, Blocks: blocks, Zeroed: AgentsOf(ram, disk)})
	for b := range blocks {
		acquire(t, m, b, gpu)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc) / blocks
	t.Logf("%.1f bytes per idle block with %d agents", per, len(threeTiers))
	if per > 64 {
		t.Errorf("%.1f bytes per idle block, want at most 64", per)
	}
	runtime.KeepAlive(m)
}

func BenchmarkTransition(b *testing.B) {
	for _, blocks := range []struct {
		name string
		n    int
	}{{"one-block", 1}, {"million-blocks", 1 << 20}} {
		b.Run(blocks.name, func(b *testing.B) {
			m := manager(b, Config{Agents: threeTiers, Home: disk, Policy: WriteThrough, Blocks: blocks.n})
			b.ReportAllocs()
			at, transitions := 0, 0
			for b.Loop() {
				at = (at + 7919) % blocks.n // not the next one: a cache miss each
				transitions += cycle(m, at)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(transitions), "ns/transition")
		})
	}
}

func BenchmarkBlock(b *testing.B) {
	m := manager(b, Config{Agents: threeTiers, Home: disk, Blocks: 1, Zeroed: AgentsOf(ram, disk)})
	b.ReportAllocs()
	for b.Loop() {
		if m.Block(0).Lost {
			b.Fatal("lost")
		}
	}
}
