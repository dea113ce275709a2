// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"runtime"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// A sample is a call as a program makes it.
type sample struct {
	name    string
	command registry.Index
	args    registry.Args
}

// samples are calls in memory, which must be kept.
func samples(memory *Arena, env *Env) []sample {
	mem := func(n int) uint64 {
		b, err := memory.zeroed(n)
		if err != nil {
			panic(err)
		}
		return uint64(address(b))
	}
	put := func(p, offset, v uint64) { store64(uintptr(p+offset), v) }
	commandBuffer, queue, device := mem(16), mem(16), mem(16)
	put(commandBuffer, 8, 1<<32+1)
	put(queue, 8, 1<<32+2)
	put(device, 8, 1<<32+9)

	barrier := mem(24) // VkMemoryBarrier
	put(barrier, 0, 46)
	put(barrier, 16, 1<<32|2)

	submit, buffers := mem(72), mem(8) // VkSubmitInfo
	put(submit, 0, 4)
	put(submit, 40, 1) // commandBufferCount
	put(submit, 48, buffers)
	put(buffers, 0, commandBuffer)

	writes := mem(4 * 64) // VkWriteDescriptorSet
	for i := range uint64(4) {
		w := writes + 64*i
		buffer := mem(24)
		put(buffer, 0, 1<<32+7)
		put(buffer, 16, ^uint64(0))
		put(w, 0, 35)
		put(w, 16, 1<<32+5)
		put(w, 24, i)
		put(w, 32, 7<<32|1) // one STORAGE_BUFFER
		put(w, 40, 0xdeadbeefdeadbeef)
		put(w, 48, buffer)
		put(w, 56, 0xdeadbeefdeadbeef)
	}
	return []sample{
		{"FillBuffer", registry.VkCmdFillBuffer, registry.Args{commandBuffer, 1<<32 + 3, 0, 4096, 0xabcd}},
		{"Dispatch", registry.VkCmdDispatch, registry.Args{commandBuffer, 64, 1, 1}},
		{"PipelineBarrier", registry.VkCmdPipelineBarrier, registry.Args{commandBuffer, 1, 2, 0, 1, barrier, 0, 0, 0, 0}},
		{"QueueSubmit", registry.VkQueueSubmit, registry.Args{queue, 1, submit, 1<<32 + 4}},
		{"UpdateDescriptorSets", registry.VkUpdateDescriptorSets, registry.Args{device, 4, writes, 0, 0}},
	}
}

func testEnv() *Env {
	return &Env{
		Real: func(t registry.Index, id uint64) (uint64, bool) { return realOf(t, id), true },
		ID:   func(t registry.Index, real uint64) uint64 { return realOf(t, real) },
	}
}

func BenchmarkAppendCall(b *testing.B) {
	x, env, memory := New(), testEnv(), NewArena()
	defer runtime.KeepAlive(memory)
	for _, s := range samples(memory, env) {
		b.Run(s.name, func(b *testing.B) {
			b.ReportAllocs()
			buf, c := make([]byte, 0, 4096), &registry.Commands[s.command]
			for b.Loop() {
				if _, err := x.AppendCall(buf, c, &s.args, env); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReadCall(b *testing.B) {
	x, env, memory := New(), testEnv(), NewArena()
	defer runtime.KeepAlive(memory)
	for _, s := range samples(memory, env) {
		b.Run(s.name, func(b *testing.B) {
			b.ReportAllocs()
			c, arena := &registry.Commands[s.command], NewArena()
			buf, err := x.AppendCall(nil, c, &s.args, env)
			if err != nil {
				b.Fatal(err)
			}
			var args registry.Args
			for b.Loop() {
				arena.Reset()
				if _, err := x.ReadCall(buf, c, &args, arena, env); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestNothingIsAllocated(t *testing.T) {
	x, env, memory, arena := New(), testEnv(), NewArena(), NewArena()
	defer runtime.KeepAlive(memory)
	var args registry.Args
	for _, s := range samples(memory, env) {
		c, buf := &registry.Commands[s.command], make([]byte, 0, 4096)
		n := testing.AllocsPerRun(100, func() {
			sent, err := x.AppendCall(buf, c, &s.args, env)
			if err != nil {
				t.Fatal(err)
			}
			arena.Reset()
			if _, err := x.ReadCall(sent, c, &args, arena, env); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
	}
}
