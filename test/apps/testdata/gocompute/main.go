// SPDX-License-Identifier: Apache-2.0

// Command gocompute is a Vulkan application in Go: a process with Go's runtime
// twice, its own and the driver's. Goroutines compute on buffers that they share
// with the device, while the collector is at work.
package main

/*
#cgo CFLAGS: -I${SRCDIR}/..
#cgo LDFLAGS: -lvulkan -lpthread
#include "app.h"
#include "mix_comp.h"

static Compute compute(App *a, VkBuffer from, VkBuffer to) {
	return make_compute(a, mix_comp, sizeof mix_comp, from, to);
}

static void *mapped(App *a, Buffer *b) { return map(a, b); } // Go has a word of that name
*/
import "C"

import (
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"sync"
	"unsafe"
)

const n = 1 << 14

func mixed(x, i, rounds uint32) uint32 {
	for range rounds {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		x += i
	}
	return x
}

// words returns a buffer's memory.
func words(a *C.App, b *C.Buffer) []uint32 {
	return unsafe.Slice((*uint32)(C.mapped(a, b)), n)
}

// work computes with a device of its own and returns the sum of the results.
func work(seed uint32) (uint64, error) {
	app := C.open_app()
	a := &app
	defer C.close_app(a)
	from, to := C.make_buffer(a, n*4, C.STORAGE, C.COHERENT), C.make_buffer(a, n*4, C.STORAGE, C.COHERENT)
	c := C.compute(a, from.buffer, to.buffer)
	in, out := words(a, &from), words(a, &to)
	h := fnv.New64a()
	for rounds := range uint32(8) {
		for i := range in {
			in[i] = seed + uint32(i)*2654435761 + rounds
		}
		runtime.GC()
		cb := C.begin(a)
		C.dispatch(cb, &c, C.uint32_t(rounds), n/64)
		C.finish(a, cb)
		for i := range out {
			if want := mixed(in[i], uint32(i), rounds); out[i] != want {
				return 0, fmt.Errorf("seed %d, %d rounds: element %d is %08x, want %08x", seed, rounds, i, out[i], want)
			}
		}
		fmt.Fprint(h, out)
		// Handles of a few generations, in Go's memory.
		var kept []C.Buffer
		for range 40 {
			kept = append(kept, C.make_buffer(a, 256, C.COPY, C.COHERENT))
		}
		runtime.GC()
		for i := range kept {
			C.drop_buffer(a, &kept[i])
		}
	}
	C.drop_compute(a, &c)
	C.drop_buffer(a, &from)
	C.drop_buffer(a, &to)
	return h.Sum64(), nil
}

func main() {
	var wait sync.WaitGroup
	var sums [3]uint64
	var errs [3]error
	for i := range sums {
		wait.Go(func() { sums[i], errs[i] = work(uint32(i) * 1000) })
	}
	wait.Wait()
	for i, err := range errs {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Printf("%016x\n", sums[i])
	}
}
