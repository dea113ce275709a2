// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"sync/atomic"
	"unsafe"
)

// storeUnchanged stores those bytes of now that changed selects into the word
// at mem[at:at+8], where the word still has was's bytes; at is a multiple of
// eight. The user's threads may be storing to the word by plain instructions:
// a compare-and-swap fails if one of them came between, so that none is undone.
func storeUnchanged(mem []byte, at int64, was, now, changed uint64) {
	// Right because mem begins at a page boundary, so the word is aligned, and
	// the slice expression checks that all of it is there.
	word := (*uint64)(unsafe.Pointer(unsafe.SliceData(mem[at : at+8])))
	for {
		user := atomic.LoadUint64(word)
		take := changed &^ nonZero(user^was)
		if take == 0 || atomic.CompareAndSwapUint64(word, user, user&^take|now&take) {
			return
		}
	}
}
