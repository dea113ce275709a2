// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// BenchmarkFrame is a frame whose input is one page of a 16 MiB mapping and
// whose output is another.
func BenchmarkFrame(b *testing.B) {
	c := begin(b, Config{})
	w, fence := c.shadowed(16<<20, coherent)
	w.copies(c, nil, [][3]uint64{{0, 8 << 20, 4096}})
	page := pattern(4096, 1)
	args := w.submission(c, fence)
	reset := c.mem(fence)
	for b.Loop() {
		page[100]++
		c.write(w.memory, 0, page)
		seen := len(c.signals)
		c.post(registry.VkQueueSubmit, args...)
		for len(c.signals) == seen {
			c.receive(0)
		}
		c.post(registry.VkResetFences, w.device, 1, reset)
	}
}

// BenchmarkCompare is the comparison of what did not change.
func BenchmarkCompare(b *testing.B) {
	c := begin(b, Config{})
	const size = 64 << 20
	w, fence := c.shadowed(size, coherent)
	w.copies(c, [][3]uint64{{0, size, 0x01020304}}, nil)
	w.play(c, fence)
	c.stopServing()
	m := c.state(w.memory)
	b.SetBytes(size)
	for b.Loop() {
		c.r.compareMemory(m, []span{{0, size}})
	}
}

// BenchmarkReadBack is what the device wrote, all of it new.
func BenchmarkReadBack(b *testing.B) {
	c := begin(b, Config{})
	const size = 16 << 20
	w, fence := c.shadowed(size, coherent)
	b.SetBytes(size)
	value := uint64(0)
	for b.Loop() {
		value += 0x01010101
		w.copies(c, [][3]uint64{{0, size, value & 0xffffffff}}, nil)
		w.play(c, fence)
	}
}
