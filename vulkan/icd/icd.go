// SPDX-License-Identifier: Apache-2.0

package icd

// #cgo CFLAGS: -O2
// #include <stdint.h>
// #include <stdlib.h>
//
// static uintptr_t allocate(size_t size) { return (uintptr_t)calloc(1, size); }
// static void release(uintptr_t address) { free((void *)address); }
//
// void memspanAtExit(void);
// void memspanFewFiles(void);
import "C"

import (
	_ "syscall" // raises the limit on open files when it is initialised

	"github.com/memspan/memspan/internal/callstack"
	"github.com/memspan/memspan/vulkan/registry"
)

// Go has raised the limit on open files for itself by now. It is the
// application's, which may use select(2), and its children's.
func init() { C.memspanFewFiles() }

// handler is what Handle was given. C calls without a context, so there can be
// one only.
var handler func(registry.Index, *registry.Args) uint64

// Handle says who carries out the calls, on the threads that make them. It is
// to be called once, while the program initialises: entry points wait for that.
// command is never an alias; what is returned is cut to what the command
// returns. args are good until then.
//
// vkGetDeviceProcAddr arrives only for commands that Vulkan 1.0 has not:
// anything but 0 says that the device has the command.
func Handle(h func(command registry.Index, args *registry.Args) uint64) { handler = h }

//export memspanCall
func memspanCall(command uint32, args uintptr) uint64 {
	callstack.Reserve() // the application's signals are handled where it is called
	return handler(registry.Index(command), registry.ArgsAt(args))
}

// ended is what AtExit was given.
var ended func()

// AtExit has f called when the process exits by returning from main or by
// exit(3), on the thread that does. It is to be called once, while the program
// initialises.
func AtExit(f func()) {
	ended = f
	C.memspanAtExit()
}

//export memspanEnded
func memspanEnded() {
	callstack.Reserve()
	ended()
}

// Alloc returns zeroed C memory, which the loader may write to, or 0.
func Alloc(size uintptr) uintptr { return uintptr(C.allocate(C.size_t(size))) }

// Free takes back what Alloc returned.
func Free(address uintptr) { C.release(C.uintptr_t(address)) }
