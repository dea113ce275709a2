// SPDX-License-Identifier: Apache-2.0

//go:build linux

package futex

import (
	"context"
	"errors"
	"math"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations and flags of futex(2) and futex_waitv(2).
const (
	opWait      = 0
	opWake      = 1
	flagPrivate = 128
	sizeU32     = 2
)

// waiter is struct futex_waitv.
type waiter struct {
	value   uint64
	address uint64
	flags   uint32
	_       uint32
}

// Wait returns once word, which is in mapped memory, is not value any more, or
// somebody has called Wake, or for no reason: the caller looks again. It fails
// when ctx ends, with its cause.
func Wait(ctx context.Context, word *atomic.Uint32, value uint32) error {
	return wait(ctx, word, value, waitEither)
}

// wait is Wait, with the way to wait for two words.
func wait(ctx context.Context, word *atomic.Uint32, value uint32, either func(word, canceled *atomic.Uint32, value uint32) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if ctx.Done() == nil {
		return ignoring(futex(word, opWait, value))
	}
	canceled := new(atomic.Uint32)
	stop := context.AfterFunc(ctx, func() {
		canceled.Store(1)
		wake(canceled, flagPrivate)
	})
	err := either(word, canceled, value)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // Linux 5.15, or a confined container
		left, woken := make(chan struct{}), make(chan struct{})
		stopWaking := context.AfterFunc(ctx, func() {
			defer close(woken)
			wakeUntil(word, left)
		})
		err = futex(word, opWait, value)
		close(left)
		if !stopWaking() {
			<-woken // the caller may unmap the word
		}
	}
	stop()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ignoring(err)
}

// wakeUntil wakes all who wait for word until left is closed: the one who is
// meant may have been about to wait when it was woken first.
func wakeUntil(word *atomic.Uint32, left <-chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		Wake(word)
		select {
		case <-left:
			return
		case <-tick.C:
		}
	}
}

// waitEither waits until word is not value, or canceled not 0, or one of them is woken.
func waitEither(word, canceled *atomic.Uint32, value uint32) error {
	waiters := [2]waiter{
		{value: uint64(value), address: uint64(uintptr(unsafe.Pointer(word))), flags: sizeU32},
		{address: uint64(uintptr(unsafe.Pointer(canceled))), flags: sizeU32 | flagPrivate},
	}
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX_WAITV, uintptr(unsafe.Pointer(&waiters)), uintptr(len(waiters)), 0, 0, 0, 0)
	runtime.KeepAlive(canceled)
	if errno != 0 {
		return errno
	}
	return nil
}

// Wake wakes all who wait for word, in whatever process.
func Wake(word *atomic.Uint32) { wake(word, 0) }

func wake(word *atomic.Uint32, flags int) {
	// It cannot fail for a word that can be read.
	_ = futex(word, opWake|flags, math.MaxInt32)
}

func futex(word *atomic.Uint32, op int, value uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), uintptr(op), uintptr(value), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// ignoring drops what makes the caller look again anyway.
func ignoring(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return os.NewSyscallError("futex", err)
}
