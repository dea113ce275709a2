// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"math"
	"runtime"
	"testing"

	"github.com/ebitengine/purego"
)

func symbol(t testing.TB, library, name string) uintptr {
	t.Helper()
	lib, err := purego.Dlopen(library, purego.RTLD_NOW)
	if err != nil {
		t.Fatal(err)
	}
	p, err := purego.Dlsym(lib, name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRawArguments has the C library print every argument, which it takes from
// registers and from the stack.
func TestRawArguments(t *testing.T) {
	snprintf := symbol(t, "libc.so.6", "snprintf")
	calls := make([]RawCall, 3)
	out := new([3][512]byte)
	format := cString("%lx %lx %lx %lx %lx %lx %lx %lx %lx %lx %lx %lx %lx")
	for i := range calls {
		c := &calls[i]
		c.Proc = snprintf
		c.Args[0] = Address(&out[i])
		c.Args[1] = uint64(len(out[i]))
		c.Args[2] = Address(format)
		for n := 3; n < RawArgs; n++ {
			c.Args[n] = uint64(n)<<56 | uint64(i+1)
		}
	}
	RawBatch(calls)
	runtime.KeepAlive(format)
	for i, want := range []string{
		"300000000000001 400000000000001 500000000000001 600000000000001 700000000000001 800000000000001 900000000000001 a00000000000001 b00000000000001 c00000000000001 d00000000000001 e00000000000001 f00000000000001",
		"300000000000002 400000000000002 500000000000002 600000000000002 700000000000002 800000000000002 900000000000002 a00000000000002 b00000000000002 c00000000000002 d00000000000002 e00000000000002 f00000000000002",
		"300000000000003 400000000000003 500000000000003 600000000000003 700000000000003 800000000000003 900000000000003 a00000000000003 b00000000000003 c00000000000003 d00000000000003 e00000000000003 f00000000000003",
	} {
		if got := text(out[i][:]); got != want || calls[i].Result != uint64(len(want)) {
			t.Errorf("call %d (result %d):\n%s\nwant\n%s", i, calls[i].Result, got, want)
		}
	}
	RawBatch(nil)
}

// TestRawFloats calls functions whose results can only be seen in what they
// store: frexpf stores the exponent of its float.
func TestRawFloats(t *testing.T) {
	exponent := new(int32)
	c := &RawCall{Proc: symbol(t, "libm.so.6", "frexpf"), Float: true}
	for want, f := range map[int32]float32{4: 8, 1: 1, 0: 0, -3: 0.0625} {
		c.Args[0], c.Floats[0] = Address(exponent), uint64(math.Float32bits(f))
		*exponent = 99
		Raw(c)
		if *exponent != want {
			t.Errorf("frexp(%v) stored %d, want %d", f, *exponent, want)
		}
	}
}

// What C is given an address of is not on a stack, however small it is and
// whatever the compiler makes of it.
func TestAddressEscapes(t *testing.T) {
	getpid := symbol(t, "libc.so.6", "getpid")
	if n := testing.AllocsPerRun(100, func() { Address(new(uint64)) }); n < 1 {
		t.Error("a word stays on the stack")
	}
	if n := testing.AllocsPerRun(100, func() { Raw(&RawCall{Proc: getpid}) }); n < 1 {
		t.Error("a call stays on the stack")
	}
}

func TestRawDoesNotAllocate(t *testing.T) {
	getpid := symbol(t, "libc.so.6", "getpid")
	calls := make([]RawCall, 8)
	for i := range calls {
		calls[i].Proc = getpid
	}
	if n := testing.AllocsPerRun(100, func() { RawBatch(calls); Raw(&calls[0]) }); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRaw(b *testing.B) {
	labs := symbol(b, "libc.so.6", "labs")
	calls := make([]RawCall, 64)
	for i := range calls {
		calls[i].Proc = labs
	}
	b.Run("1", func(b *testing.B) {
		for b.Loop() {
			Raw(&calls[0])
		}
	})
	b.Run("64", func(b *testing.B) {
		for b.Loop() {
			RawBatch(calls)
		}
	})
}
