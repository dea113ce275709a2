// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"slices"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// Parts that follow each other are one, and many are joined by resource.
func TestFactsAreBounded(t *testing.T) {
	a, b := new(place), new(place)
	var f facts
	for i := range uint64(10) {
		f.write(a, []span{{i * 8, i*8 + 8}})
	}
	if len(f.written) != 1 || f.written[0].span != (span{0, 80}) {
		t.Errorf("%v", f.written)
	}
	for i := range uint64(3 * maxTargets) {
		f.write([]*place{a, b}[i%2], []span{{i * 100, i*100 + 1}})
	}
	if len(f.written) > maxTargets+1 {
		t.Errorf("%d parts are kept", len(f.written))
	}
	end := map[*place]uint64{}
	for _, w := range f.written {
		end[w.place] = max(end[w.place], w.end)
	}
	if last := uint64(3*maxTargets - 1); end[b] != last*100+1 || end[a] != (last-1)*100+1 {
		t.Errorf("%v", end)
	}
	// More resources than parts are kept: these are.
	for range 3 * maxTargets {
		f.write(new(place), []span{{0, 1}})
	}
	if len(f.written) < 3*maxTargets {
		t.Errorf("%d resources are left", len(f.written))
	}
}

// What a secondary command buffer writes, its primary writes.
func TestSecondaryWrites(t *testing.T) {
	c := begin(t, Config{})
	w, fence := c.shadowed(8192, coherent)
	secondary := c.made(registry.VkCommandBuffer, registry.VkAllocateCommandBuffers, w.device, c.mem(40, 0, w.pool, 1<<32|1))
	event := c.made(registry.VkEvent, registry.VkCreateEvent, w.device, c.mem(10, 0, 0), 0)
	c.env.Secondary = func(id uint64) bool { return id == idOf(registry.VkCommandBuffer, secondary) }
	c.record(secondary,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, c.mem(41, 0, 0, 0, 0, 0, 0))}},
		recorded{registry.VkCmdFillBuffer, []uint64{w.buffer, 64, 64, 0x09090909}},
		recorded{registry.VkCmdSetEvent, []uint64{event, 0x1000}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdExecuteCommands, []uint64{1, c.mem(secondary)}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	c.post(registry.VkQueueSubmit, w.submission(c, fence)...)
	for len(c.signals) < 2 { // the event and the fence
		c.receive(0)
	}
	if got := c.shadows[w.memory]; got[63] != 0 || got[64] != 9 || got[127] != 9 || got[128] != 0 {
		t.Errorf("% x", got[60:132])
	}
	c.agree(w.memory)
}

// What a secondary command buffer lacks, its primary lacks.
func TestSecondaryPoisons(t *testing.T) {
	c := begin(t, Config{Log: quiet})
	w := c.workload(4096)
	secondary := c.made(registry.VkCommandBuffer, registry.VkAllocateCommandBuffers, w.device, c.mem(40, 0, w.pool, 1<<32|1))
	c.env.Secondary = func(id uint64) bool { return id == idOf(registry.VkCommandBuffer, secondary) }
	c.record(secondary,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, c.mem(41, 0, 0, 0, 0, 0, 0))}},
		recorded{registry.VkCmdFillBuffer, []uint64{0, 0, w.size, 1}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdExecuteCommands, []uint64{1, c.mem(secondary)}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	if r, refused := c.try(registry.VkQueueSubmit, w.submission(c, 0)...); !refused || r >= 0 {
		t.Errorf("%d, refused: %v", r, refused)
	}
}

// Of a sparse resource it is not known where it is: all that any is bound to
// may be written.
func TestPlanOfSparse(t *testing.T) {
	d := new(device)
	m, other := &deviceMemory{size: 4096, visible: true}, &deviceMemory{size: 4096, visible: true}
	d.remember(m)
	d.remember(other)
	m.sparse = true
	for _, f := range []*facts{{shaders: true}, {written: []target{{&place{sparse: true}, span{0, 8}}}}} {
		s := &submission{facts: []*facts{f}}
		if new(renderer).plan(d, s); len(s.writes) != 1 || s.writes[0].memory != m || !slices.Equal(s.writes[0].spans, []span{{0, 4096}}) {
			t.Errorf("%+v", s.writes)
		}
	}
}
