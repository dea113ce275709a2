// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"fmt"
	"runtime/debug"
)

// copyChunk stays below the 1 MiB at which Go's memmove on amd64 turns to
// non-temporal stores, which halve the rate of copies between mappings.
const copyChunk = 256 << 10

// Copy copies src to dst as the built-in does, in pieces that keep the
// processor's caches in use. It returns the number of bytes copied.
func Copy(dst, src []byte) int {
	n := min(len(dst), len(src))
	for i := 0; i < n; i += copyChunk {
		end := min(i+copyChunk, n)
		copy(dst[i:end], src[i:end])
	}
	return n
}

// A FaultError says that memory shared with a peer could not be read or
// written: the peer took its pages away.
type FaultError struct{ Addr uintptr }

func (e *FaultError) Error() string {
	return fmt.Sprintf("memfd: shared memory at %#x is gone", e.Addr)
}

// Guard calls f, which touches memory that a peer may take away, and turns a
// fault in it into a *FaultError. Other panics pass through.
func Guard(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch v := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			err = &FaultError{Addr: v.Addr()}
		default:
			panic(v)
		}
	}()
	f()
	return nil
}
