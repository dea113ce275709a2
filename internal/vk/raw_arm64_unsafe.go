// SPDX-License-Identifier: Apache-2.0

//go:build linux && arm64 && !novulkan

package vk

import (
	"math"

	"github.com/ebitengine/purego"
)

// rawBatch makes the calls one by one. Those with floats go through purego's
// typed path: its untyped one gives the same words to both kinds of registers.
func rawBatch(calls []RawCall) {
	for i := range calls {
		c := &calls[i]
		if c.Float {
			c.callFloats()
			continue
		}
		var args [RawArgs]uintptr
		for n, a := range c.Args {
			args[n] = uintptr(a)
		}
		r, _, _ := purego.SyscallN(c.Proc, args[:]...)
		c.Result = uint64(r)
	}
}

// callFloats calls a function of a handle and up to four floats, as all of
// Vulkan's with floats are. It ignores the registers that it has no value for.
func (c *RawCall) callFloats() {
	var f func(handle uintptr, a, b, c, d float32)
	purego.RegisterFunc(&f, c.Proc)
	at := func(i int) float32 { return math.Float32frombits(uint32(c.Floats[i])) }
	f(uintptr(c.Args[0]), at(0), at(1), at(2), at(3))
}
