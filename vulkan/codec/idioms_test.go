// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// carry sends a call and returns the arguments on the other side.
func carry(t *testing.T, x *Codec, cmd registry.Index, args *registry.Args, env *Env) (*registry.Args, *Arena, []byte) {
	t.Helper()
	call, err := x.AppendCall(nil, &registry.Commands[cmd], args, env)
	if err != nil {
		t.Fatal(err)
	}
	got, arena := new(registry.Args), NewArena()
	if rest, err := x.ReadCall(call, &registry.Commands[cmd], got, arena, env); err != nil || len(rest) != 0 {
		t.Fatalf("%d bytes left, %v", len(rest), err)
	}
	return got, arena, call
}

// anything has every handle there.
func anything() *Env {
	return &Env{
		Real:   func(_ registry.Index, id uint64) (uint64, bool) { return id, true },
		ID:     func(_ registry.Index, real uint64) uint64 { return real },
		Object: func(_ registry.Index, id uint64) uint64 { return id },
	}
}

// A shader's code is as long as codeSize / 4 words, a sample mask (samples +
// 31) / 32.
func TestLengthsAreExpressions(t *testing.T) {
	x, device := New(), uint64(words32(0, 0, 5, 1))
	code := words32(1, 2, 3, 4, 5, 6, 7)
	for _, n := range []uint32{0, 4, 20, 28} {
		info := words32(16, 0, 0, 0, 0, 0, n, 0, uint32(code), uint32(uint64(code)>>32))
		out := words32(9, 1)
		got, arena, _ := carry(t, x, registry.VkCreateShaderModule, &registry.Args{device, uint64(info), 0, uint64(out)}, anything())
		worker := uintptr(got[1])
		if load32(worker+24) != n || !bytes.Equal(view(loadPtr(worker+32), int(n)), view(code, int(n))) {
			t.Errorf("%d bytes of code: %x", n, view(loadPtr(worker+32), int(n)))
		}
		runtime.KeepAlive(arena)
	}
	i := registry.StructByName("VkPipelineMultisampleStateCreateInfo")
	if i == registry.None {
		t.Fatal("no VkPipelineMultisampleStateCreateInfo")
	}
	s := &x.structs[i]
	mask := words32(0xaaaaaaaa, 0xbbbbbbbb, 0xcccccccc)
	for samples, words := range map[uint32]int{1: 1, 16: 1, 32: 1, 33: 2, 64: 2} {
		// {sType, pNext, flags, samples, shading, minShading, pMask, …}
		p := words32(24, 0, 0, 0, 0, samples, 0, 0, uint32(mask), uint32(uint64(mask)>>32), 0, 0)
		e := encoder{x: x, env: anything(), args: new(registry.Args)}
		if err := e.structure(s, p); err != nil {
			t.Fatal(err)
		}
		if got := len(e.dst) - s.size; got != 4*words {
			t.Errorf("%d samples: a mask of %d bytes", samples, got)
		}
	}
}

// A union is its bytes, whichever of its members they are.
func TestUnionsAreBytes(t *testing.T) {
	x, env := New(), anything()
	buffer := uint64(words32(0, 0, 5, 1))
	color := words32(0x3f800000, 0xffffffff, 0x80000000, 7)
	ranges := words32(1, 0, 1, 0, 1)
	got, arena, _ := carry(t, x, registry.VkCmdClearColorImage, &registry.Args{buffer, 0x100000007, 1, uint64(color), 1, uint64(ranges)}, env)
	if !bytes.Equal(view(uintptr(got[3]), 16), view(color, 16)) {
		t.Errorf("%x", view(uintptr(got[3]), 16))
	}
	runtime.KeepAlive(arena)
}

// An enumeration that has too little room keeps VK_INCOMPLETE, the elements
// there is room for, and what lies behind them.
func TestIncomplete(t *testing.T) {
	const incomplete = 5
	x, env := New(), anything()
	cmd := registry.VkGetPipelineCacheData
	device := uint64(words32(0, 0, 5, 1))
	size, data := words32(6, 0), words32(0x11111111, 0x22222222, 0x33333333)
	args := &registry.Args{device, 0x100000009, uint64(size), uint64(data)}
	got, arena, call := carry(t, x, cmd, args, env)
	if load64(uintptr(got[2])) != 6 {
		t.Fatalf("room for %d", load64(uintptr(got[2])))
	}
	copy(view(uintptr(got[3]), 6), "abcdef")
	store64(uintptr(got[2]), 4) // the driver writes whole words
	reply, err := x.AppendReply(nil, &registry.Commands[cmd], got, incomplete, env)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := x.ReadReply(reply, &registry.Commands[cmd], args, env); r != incomplete || err != nil {
		t.Errorf("%d, %v", r, err)
	}
	if load64(size) != 4 || !bytes.Equal(view(data, 12), []byte("abcd\x22\x22\x22\x22\x33\x33\x33\x33")) {
		t.Errorf("%d bytes: %q", load64(size), view(data, 12))
	}
	// Only asked for the number: what the count holds is no matter.
	args[3] = 0
	store64(size, 0xdeadbeef)
	_, _, other := carry(t, x, cmd, args, env)
	store64(size, 1)
	if _, _, again := carry(t, x, cmd, args, env); !bytes.Equal(other, again) || bytes.Equal(other, call) {
		t.Error("the request depends on a count without an array")
	}
	runtime.KeepAlive(arena)
}
