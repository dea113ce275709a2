// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// primitives are the sizes of C's own types, for compilers whose long and
// pointers have 64 bits; each is its own alignment.
var primitives = map[string]int{
	"char": 1, "int8_t": 1, "uint8_t": 1,
	"int16_t": 2, "uint16_t": 2,
	"int32_t": 4, "uint32_t": 4, "float": 4, "int": 4,
	"int64_t": 8, "uint64_t": 8, "double": 8, "size_t": 8,
}

// A layout says where a structure's members lie.
type layout struct {
	size, align int
	offsets     []int // of the members, as declared
}

// sizeOf gives a type's size and alignment.
func (r *registry) sizeOf(name string) (size, align int, err error) {
	name = r.resolve(name)
	if n, ok := primitives[name]; ok {
		return n, n, nil
	}
	if base, ok := r.base[name]; ok {
		return r.sizeOf(base)
	}
	if _, ok := r.handles[name]; ok {
		return 8, 8, nil
	}
	if s, ok := r.structs[name]; ok {
		l, err := r.layoutOf(s)
		return l.size, l.align, err
	}
	return 0, 0, fmt.Errorf("the size of %s is not known", name)
}

// elementSize is the size of one element of a declaration by value.
func (r *registry) elementSize(d declaration) (size, align int, err error) {
	if d.pointers > 0 {
		return 8, 8, nil
	}
	return r.sizeOf(d.typ)
}

func (r *registry) layoutOf(s *structType) (layout, error) {
	l := layout{align: 1}
	for _, m := range s.members {
		if m.bits {
			return l, fmt.Errorf("%s.%s: bit fields are not supported", s.name, m.name)
		}
		size, align, err := r.elementSize(m)
		if err != nil {
			return l, fmt.Errorf("%s.%s: %w", s.name, m.name, err)
		}
		size *= product(m.array)
		l.align = max(l.align, align)
		if s.union {
			l.offsets = append(l.offsets, 0)
			l.size = max(l.size, size)
			continue
		}
		l.size = roundUp(l.size, align)
		l.offsets = append(l.offsets, l.size)
		l.size += size
	}
	l.size = roundUp(l.size, l.align)
	return l, nil
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }
