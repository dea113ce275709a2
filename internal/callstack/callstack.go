// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

// Package callstack makes room on a goroutine's stack for what the Go runtime
// does not know of: signal handlers of the program that a Go library is loaded
// into.
//
// A thread of a C program that calls Go runs on a goroutine's stack, 8 KiB at
// first. A signal that comes meanwhile is handled there, unless its handler was
// installed with SA_ONSTACK; Go adds that to the handlers it finds when it is
// loaded, but a C program installs some later and knows nothing of it. The
// kernel's frame alone takes 3 KiB with AVX-512, so that even an empty handler
// writes beyond the stack, into whatever the heap has there.
package callstack

// Room is how many bytes of stack Reserve sees to.
const Room = 1 << 20

// Reserve has the calling goroutine's stack grow, if it must, until Room bytes
// of it are free. They stay free while the goroutine runs: a stack shrinks only
// in a garbage collection, to the half of it each time, while it is parked or
// preempted. So after it was parked for long, it is to be called again. What is
// not used takes no memory, only addresses. If there is room it costs a comparison.
func Reserve()
