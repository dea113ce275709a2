// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"bytes"
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

// storeDelta stores to user the bytes of now where delta, which is how was and
// now differ, is not zero and user still has was's. User may be stored to
// meanwhile, but not those bytes: words that differ in all their bytes go by
// plain copies, only the others need a compare-and-swap each.
func storeDelta(user, was, now, delta []byte) {
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(user))), len(user)/8)
	for i := 0; i < len(words); {
		d := binary.NativeEndian.Uint64(delta[8*i:])
		end := i + 1
		switch {
		case d == 0:
			i = end
			continue
		case !hasZero(d):
			n := bytes.IndexByte(delta[8*end:], 0)
			if n < 0 {
				n = len(delta) - 8*end
			}
			end += n / 8
			if bytes.Equal(user[8*i:8*end], was[8*i:8*end]) {
				copy(user[8*i:8*end], now[8*i:8*end])
				i = end
				continue
			}
		}
		for ; i < end; i++ {
			storeWord(&words[i], binary.NativeEndian.Uint64(was[8*i:]), binary.NativeEndian.Uint64(now[8*i:]))
		}
	}
}
