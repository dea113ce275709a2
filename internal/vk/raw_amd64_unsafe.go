// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64 && !novulkan

package vk

import (
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// rawBatchABI0 is the address of the loop in raw_amd64.s, a C function
// void (struct RawCall *calls, uint64_t n).
var rawBatchABI0 uintptr

// rawBatch makes all calls in one transition from Go to C, which is most of
// what a call costs. What it passes is kept in the first call, as SyscallN
// would have a new slice allocated.
func rawBatch(calls []RawCall) {
	pass := &calls[0].pass
	pass[0], pass[1] = uintptr(Address(unsafe.SliceData(calls))), uintptr(len(calls))
	purego.SyscallN(rawBatchABI0, pass[:]...)
	runtime.KeepAlive(calls)
}
