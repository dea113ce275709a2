// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"reflect"
	"unsafe"
)

// What the application's memory holds. The addresses are C's, or of memory
// that the caller keeps alive and that does not move.

func at(p uint64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

func load32(p uint64) uint32     { return *(*uint32)(at(p)) }
func load64(p uint64) uint64     { return *(*uint64)(at(p)) }
func store32(p uint64, v uint32) { *(*uint32)(at(p)) = v }
func store64(p uint64, v uint64) { *(*uint64)(at(p)) = v }

// bytesAt returns n bytes of the application's memory.
func bytesAt(p uint64, n int) []byte { return unsafe.Slice((*byte)(at(p)), n) }

// addressOf returns where w lies, for a structure of our own that is handed on
// as an application's would be. The caller keeps w alive.
//
// Package reflect makes w escape to the heap: on a stack it would move when that
// grows.
func addressOf(w []uint64) uint64 { return uint64(reflect.ValueOf(unsafe.SliceData(w)).Pointer()) }

// addressOfBytes returns where memory outside Go's heap lies.
func addressOfBytes(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// The loader's word at the beginning of a dispatchable handle's memory, as it
// expects to find it; later it is the loader's own.
const loaderMagic = 0x01CDC0DE

// dispatchableSize is the memory behind a dispatchable handle: the loader's
// word, the object's id.
const dispatchableSize = 16

// idAt returns the id of the object behind a dispatchable handle.
func idAt(handle uint64) uint64 { return load64(handle + 8) }

// chained returns the structure of type sType in the pNext chain of the
// structure at p, which begins with sType and pNext; 0 if there is none.
func chained(p uint64, sType uint32) uint64 {
	for p = load64(p + 8); p != 0; p = load64(p + 8) {
		if load32(p) == sType {
			return p
		}
	}
	return 0
}
