// SPDX-License-Identifier: Apache-2.0

package pagemap

import (
	"encoding/binary"
	"os"
	"unsafe"
)

const (
	entrySize = 8 // bytes of a page in /proc/self/pagemap
	// present or swapped out; a page that is neither has never been touched.
	exists = 1<<63 | 1<<62
	// worthwhile is the least memory, in bytes, for which the system is asked.
	worthwhile = 256 << 10
)

// Touched calls f with the parts of mem, in order, that may hold something
// other than zeros. What it leaves out are pages of memory that belongs to this
// process alone and that nobody has touched yet; f finds out whether the others
// hold anything. Where the system does not tell, that is all of mem. What is
// written meanwhile may be left out.
func Touched(mem []byte, f func(part []byte)) {
	if len(mem) == 0 {
		return
	}
	start := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	if len(mem) < worthwhile || !private(start, start+uint64(len(mem))) {
		f(mem)
		return
	}
	file, err := os.Open("/proc/self/pagemap")
	if err != nil {
		f(mem)
		return
	}
	defer file.Close()
	page := uint64(os.Getpagesize())
	entries := make([]byte, 64<<10)
	held := 0 // mem[held:at] has been touched
	at := 0
	for at < len(mem) {
		first := (start + uint64(at)) / page
		pages := (start+uint64(len(mem))+page-1)/page - first
		b := entries[:min(uint64(len(entries)), pages*entrySize)]
		if _, err := file.ReadAt(b, int64(first*entrySize)); err != nil {
			break
		}
		for ; len(b) > 0; b = b[entrySize:] {
			end := int(min(((start+uint64(at))/page+1)*page-start, uint64(len(mem))))
			if binary.NativeEndian.Uint64(b)&exists == 0 {
				if held < at {
					f(mem[held:at])
				}
				held = end
			}
			at = end
		}
	}
	if held < len(mem) { // the last part, and what could not be asked about
		f(mem[held:])
	}
}
