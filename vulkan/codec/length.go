// SPDX-License-Identifier: Apache-2.0

package codec

import "github.com/memspan/memspan/vulkan/registry"

// Both sides find the number of an array's elements where C finds it. The
// results are unbounded: whoever multiplies them checks first.

// parameterCount is the number of elements that parameter st points to.
func parameterCount(st *step, a *registry.Args) uint64 {
	l := &st.length
	switch l.Kind {
	case registry.One:
		return 1
	case registry.Fixed:
		return uint64(l.N)
	case registry.Pointed:
		if a[l.Of] == 0 {
			return 0
		}
		return load(uintptr(a[l.Of]), l.Size)
	case registry.Strided:
		n := a[l.Of] & mask(l.Size)
		if n == 0 {
			return 0
		}
		return (n-1)&mask(4)*uint64(uint32(a[l.N])) + uint64(st.size)
	}
	var v uint64
	switch {
	case l.Then < 0:
		v = a[l.Of] & mask(l.Size)
	case a[l.Of] != 0:
		v = load(uintptr(a[l.Of])+uintptr(l.Then), l.Size)
	}
	return elements(l, v)
}

// memberCount is the number of elements that member st of the structure at p
// points to.
func memberCount(st *step, p uintptr) uint64 {
	l := &st.length
	switch l.Kind {
	case registry.One:
		return 1
	case registry.Fixed:
		return uint64(l.N)
	}
	return elements(l, load(p+uintptr(l.Of), l.Size))
}

// counts reports whether a value beside the pointer says how many elements
// there are.
func counts(l *registry.Length) bool { return l.Kind != registry.One && l.Kind != registry.Fixed }

func elements(l *registry.Length, v uint64) uint64 {
	switch l.Kind {
	case registry.Divided:
		return v / uint64(l.N)
	case registry.RoundUp:
		return v/uint64(l.N) + min(v%uint64(l.N), 1)
	}
	return v
}

func mask(size uint8) uint64 { return ^uint64(0) >> (64 - 8*uint(size)) }
