// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// storeUnchanged stores to user the bytes in which now differs from was, where
// user still has was's. All three are of the same length, a multiple of eight,
// and user begins at a multiple of eight in memory. The user's threads may be
// storing there by plain instructions: a compare-and-swap fails if one of them
// came between, so that none is undone.
func storeUnchanged(user, was, now []byte) {
	// Right because these are user's own bytes, aligned as said above.
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(user))), len(user)/8)
	for i := range words {
		w, n := binary.NativeEndian.Uint64(was), binary.NativeEndian.Uint64(now)
		was, now = was[8:], now[8:]
		if w != n {
			storeWord(&words[i], w, n)
		}
	}
}

// storeWord stores the bytes in which n differs from w, where user still has
// w's.
func storeWord(user *uint64, w, n uint64) {
	// Where the user changed nothing, which is almost everywhere, the whole word
	// can go.
	if atomic.CompareAndSwapUint64(user, w, n) {
		return
	}
	for {
		u := atomic.LoadUint64(user)
		take := nonZero(n^w) &^ nonZero(u^w)
		if take == 0 || atomic.CompareAndSwapUint64(user, u, u&^take|n&take) {
			return
		}
	}
}

// storeRaceless is storeUnchanged where nobody stores to bytes in which now
// differs from was, though to others beside them. Words that differ in all
// their bytes then need no compare-and-swap, which costs more than all the rest.
func storeRaceless(user, was, now []byte) {
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(user))), len(user)/8)
	for i := range words {
		w, n := binary.NativeEndian.Uint64(was[8*i:]), binary.NativeEndian.Uint64(now[8*i:])
		switch {
		case w == n:
		case words[i] == w && !hasZero(n^w):
			words[i] = n
		default:
			storeWord(&words[i], w, n)
		}
	}
}
