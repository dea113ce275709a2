// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"encoding/binary"
	"unsafe"

	"github.com/memspan/memspan/vulkan/registry"
)

// Addresses are uintptrs here, as they come from C on the client and lie in an
// Arena on the worker: nothing of it is found or moved by the garbage
// collector. An Arena's chunks are kept alive by the Arena, and its heap
// memory does not move.

// at makes a pointer of an address. The address is that of C memory, or of an
// Arena's that is alive: the conversion goes through memory because vet cannot
// know that.
func at(p uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

// view is the n bytes at p, which the caller knows to be there.
func view(p uintptr, n int) []byte {
	if n == 0 {
		return nil // p may be anything: nothing is read behind an empty array
	}
	return unsafe.Slice((*byte)(at(p)), n)
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func load8(p uintptr) uint8   { return *(*uint8)(at(p)) }
func load32(p uintptr) uint32 { return *(*uint32)(at(p)) }
func load64(p uintptr) uint64 { return *(*uint64)(at(p)) }

func store64(p uintptr, v uint64) { *(*uint64)(at(p)) = v }

// loadPtr reads a pointer.
func loadPtr(p uintptr) uintptr { return *(*uintptr)(at(p)) }

// load reads an unsigned integer of size bytes.
func load(p uintptr, size uint8) uint64 {
	switch size {
	case 1:
		return uint64(*(*uint8)(at(p)))
	case 2:
		return uint64(*(*uint16)(at(p)))
	case 4:
		return uint64(*(*uint32)(at(p)))
	}
	return *(*uint64)(at(p))
}

// store writes an unsigned integer of size bytes.
func store(p uintptr, size uint8, v uint64) {
	switch size {
	case 1:
		*(*uint8)(at(p)) = uint8(v)
	case 2:
		*(*uint16)(at(p)) = uint16(v)
	case 4:
		*(*uint32)(at(p)) = uint32(v)
	default:
		*(*uint64)(at(p)) = v
	}
}

// identity is the id in a dispatchable handle: the second word of what it
// points to (the first is the loader's).
func identity(handle uint64) uint64 {
	if handle == 0 {
		return 0
	}
	return load64(uintptr(handle) + 8)
}

// words is b, which lies in an Arena at a multiple of 8, as 64-bit words.
func words(b []byte) []uint64 {
	if len(b) < 8 {
		return nil
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}

// position is c's index in x's commands, or -1.
func (x *Codec) position(c *registry.Command) int {
	i := (uintptr(unsafe.Pointer(c)) - uintptr(unsafe.Pointer(unsafe.SliceData(x.commands)))) / unsafe.Sizeof(*c)
	if i >= uintptr(len(x.commands)) || &x.commands[i] != c {
		return -1
	}
	return int(i)
}

// cString is the length of the string at p without its NUL, or -1 if there is
// none within limit bytes.
func cString(p uintptr, limit int) int {
	// Up to a multiple of 8 by bytes; then words, which never cross into a
	// page that holds nothing of the string.
	n := 0
	for ; (p+uintptr(n))&7 != 0; n++ {
		if load8(p+uintptr(n)) == 0 {
			return n
		}
	}
	for ; n < limit; n += 8 {
		w := load64(p + uintptr(n))
		if (w-0x0101010101010101)&^w&0x8080808080808080 == 0 {
			continue
		}
		for i := range 8 {
			if byte(w>>(8*i)) == 0 {
				return n + i
			}
		}
	}
	return -1
}

func putPtr(b []byte, p uintptr) { binary.LittleEndian.PutUint64(b, uint64(p)) }
