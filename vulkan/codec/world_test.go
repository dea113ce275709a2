// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"math/rand/v2"

	"github.com/memspan/memspan/vulkan/registry"
)

// A world is an application's memory with a call in it, built from the tables
// as applications build one, and the objects it names.
type world struct {
	rand   *rand.Rand
	memory []byte // of one allocation: addresses stay
	used   int
	args   registry.Args
	env    Env
	object map[uint64]uint64 // dispatchable ones by id
	wants  *registry.Command
	layout *Template // of all templates
	depth  int
	ids    []uint64 // that a driver has named
}

const worldSize = 1 << 20

// newWorld makes a world, the same for the same seed, in memory.
func newWorld(seed uint64, memory []byte) *world {
	w := &world{
		rand:   rand.New(rand.NewPCG(seed, seed)),
		memory: memory,
		object: make(map[uint64]uint64),
	}
	w.layout = w.template()
	w.env = Env{
		Real:     func(t registry.Index, id uint64) (uint64, bool) { return realOf(t, id), id&unknown == 0 },
		ID:       func(t registry.Index, real uint64) uint64 { return realOf(t, real) },
		Object:   func(t registry.Index, id uint64) uint64 { return w.objectOf(t, id) },
		Template: func(uint64) *Template { return w.layout },
	}
	return w
}

// unknown marks ids that the worker has no object for.
const unknown = 1 << 63

// realOf is its own inverse.
func realOf(t registry.Index, id uint64) uint64 { return id ^ (0x00c0_ffee_0000_0000 | uint64(t)<<16) }

func (w *world) chance(percent int) bool { return w.rand.IntN(100) < percent }

func (w *world) alloc(n int) uintptr {
	n = (n + 31) &^ 15 // never adjacent
	if w.used+n > len(w.memory) {
		panic("the world is too small")
	}
	b := w.memory[w.used : w.used+n]
	for i := 0; i < n; i += 8 { // anything
		little.PutUint64(b[i:], w.rand.Uint64())
	}
	w.used += n
	return address(b)
}

func (w *world) id() uint64 { return 1<<32 + w.rand.Uint64N(1000) }

// objectOf is the application's handle for an id.
func (w *world) objectOf(t registry.Index, id uint64) uint64 {
	if id == 0 || !registry.Handles[t].Dispatchable {
		return id
	}
	if w.object[id] == 0 {
		p := w.alloc(16)
		store64(p, 0x01CDC0DE)
		store64(p+8, id)
		w.object[id] = uint64(p)
	}
	return w.object[id]
}

// handle is a handle of type t, or null.
func (w *world) handle(t registry.Index) uint64 {
	if w.chance(10) {
		return 0
	}
	return w.objectOf(t, w.id())
}

func (w *world) template() *Template {
	t := &Template{}
	offset := uint64(0)
	for _, kind := range []uint32{0, 1, 3, 4, 5, 6, 9, 10, 1000138000} {
		if w.chance(50) {
			continue
		}
		e := templateEntry{count: w.rand.Uint32N(4), descriptorType: kind, offset: offset, stride: uint64(24 + 8*w.rand.IntN(3))}
		t.entries = append(t.entries, e)
		offset += uint64(e.count)*e.stride + uint64(8*w.rand.IntN(3))
	}
	return t
}

// call fills the arguments of c.
func (w *world) call(c *registry.Command) {
	w.wants = c
	small := make(map[uint32]registry.Length) // parameters that count
	for _, p := range c.Params {
		if p.Kind == registry.Pointer && p.Len.Kind != registry.One && p.Len.Kind != registry.Fixed {
			small[p.Len.Of] = p.Len
			if p.Len.Kind == registry.Strided {
				w.args[p.Len.N] = uint64(p.ElemSize + 4*w.rand.Uint32N(3))
			}
		}
	}
	for i := range c.Params {
		p := &c.Params[i]
		length, counts := small[uint32(i)]
		switch {
		case p.Kind == registry.Plain && counts:
			w.args[i] = w.small(length)
		case p.Kind == registry.Plain && w.args[i] != 0: // a stride
		case p.Kind == registry.Plain:
			w.args[i] = w.rand.Uint64() & mask(uint8(p.Size))
		case p.Kind == registry.Handle:
			w.args[i] = w.handle(p.Type)
			for w.args[i] == 0 && !mayBeNull(p, 1) {
				w.args[i] = w.handle(p.Type)
			}
		case p.Kind == registry.Local:
			w.args[i] = 0xdeadbeef00
		case counts && length.Kind == registry.Pointed:
			w.args[i] = uint64(w.alloc(8))
			store(uintptr(w.args[i]), length.Size, w.rand.Uint64N(4))
		default:
			if !counts && w.chance(15) && mayBeNull(p, argumentCount(c, i, &w.args)) {
				continue
			}
			if counts && length.Then >= 0 {
				ptr := w.structs(p.Type, 1)
				// The structure's own arrays of that length are as long or longer.
				at := ptr + uintptr(length.Then)
				store(at, length.Size, w.rand.Uint64N(1+min(3, load(at, length.Size))))
				w.args[i] = uint64(ptr)
				continue
			}
			w.args[i] = uint64(w.pointee(p, argumentCount(c, i, &w.args)))
		}
	}
}

// mayBeNull reports whether a pointer to n elements is one that applications
// leave out.
func mayBeNull(m *registry.Member, n int) bool { return m.Optional || m.Condition != "" || n == 0 }

// small is a count that leads to few elements.
func (w *world) small(l registry.Length) uint64 {
	switch l.Kind {
	case registry.Divided:
		return uint64(l.N) * w.rand.Uint64N(5)
	case registry.RoundUp:
		return w.rand.Uint64N(uint64(3 * l.N))
	}
	return w.rand.Uint64N(4)
}

// minimum is how many elements arrays have at least, as counts that other
// structures share may be set later.
const minimum = 3

func (w *world) pointee(m *registry.Member, n int) uintptr {
	switch m.Elem {
	case registry.Bytes:
		return w.alloc(max(n, minimum) * int(m.ElemSize))
	case registry.HandleElems:
		p := w.alloc(8 * max(n, minimum))
		for i := range max(n, minimum) {
			store64(p+uintptr(8*i), w.handle(m.Type))
		}
		return p
	case registry.StructElems:
		return w.structs(m.Type, max(n, minimum))
	case registry.String:
		return w.text()
	case registry.Strings:
		p := w.alloc(8 * max(n, minimum))
		for i := range max(n, minimum) {
			store64(p+uintptr(8*i), uint64(w.text()))
		}
		return p
	case registry.Pointers:
		p := w.alloc(8 * max(n, minimum))
		for i := range max(n, minimum) {
			store64(p+uintptr(8*i), uint64(w.structs(m.Type, 1)))
		}
		return p
	}
	return w.object2(m)
}

// object2 is memory of which a template speaks.
func (w *world) object2(*registry.Member) uintptr {
	p := w.alloc(1024)
	for _, e := range w.layout.entries {
		for i := range uintptr(e.count) {
			q := p + uintptr(e.offset) + i*uintptr(e.stride)
			switch elementOf(e.descriptorType) {
			case imageElement:
				store64(q, w.id()|uint64(w.rand.IntN(2))<<63)
				store64(q+8, w.id()|uint64(w.rand.IntN(2))<<63)
			case bufferElement, texelElement:
				store64(q, w.id())
			}
		}
	}
	return p
}

func (w *world) text() uintptr {
	n := w.rand.IntN(20)
	base := w.alloc(n + 9)
	p := base + uintptr(w.rand.IntN(8)) // strings stand anywhere
	for i := range n {
		copy(view(p+uintptr(i), 1), []byte{byte('a' + w.rand.IntN(26))})
	}
	copy(view(p+uintptr(n), 1), []byte{0})
	return p
}

// interesting are values of plain members that rules look at.
var interesting = map[string]struct {
	offset uintptr
	values []uint32
}{
	"VkWriteDescriptorSet":         {36, []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1000138000}},
	"VkDescriptorSetLayoutBinding": {4, []uint32{0, 1, 2, 3}},
	"VkBufferCreateInfo":           {36, []uint32{0, 1}},
	"VkImageCreateInfo":            {60, []uint32{0, 1}},
}

func (w *world) structs(t registry.Index, n int) uintptr {
	s := &registry.Structs[t]
	p := w.alloc(n * int(s.Size))
	for i := range n {
		w.structure(s, p+uintptr(i)*uintptr(s.Size), true)
	}
	return p
}

// structure fills in members; the plain bytes are what the memory held.
func (w *world) structure(s *registry.Struct, p uintptr, chain bool) {
	w.depth++
	defer func() { w.depth-- }()
	if s.SType != registry.NoSType {
		store(p, 4, uint64(s.SType))
	}
	if in, ok := interesting[s.Name]; ok {
		store(p+in.offset, 4, uint64(in.values[w.rand.IntN(len(in.values))]))
	}
	for i := range s.Members {
		if m := &s.Members[i]; m.Kind == registry.Pointer && m.Len.Kind >= registry.Counted {
			n := w.small(m.Len)
			if w.depth > 4 {
				n = 0
			}
			store(p+uintptr(m.Len.Of), m.Len.Size, n)
		}
	}
	for i := range s.Members {
		m := &s.Members[i]
		field := p + uintptr(m.Offset)
		switch m.Kind {
		case registry.Next:
			if chain {
				store64(field, uint64(w.chain()))
			}
		case registry.Handle:
			for j := range uintptr(m.Count) {
				v := w.handle(m.Type)
				if m.Condition != "" && w.chance(50) {
					v = unknown | w.rand.Uint64()
				}
				store64(field+8*j, v)
			}
		case registry.Inline:
			inner := &registry.Structs[m.Type]
			for j := range uintptr(m.Count) {
				w.structure(inner, field+j*uintptr(inner.Size), true)
			}
		case registry.Local:
			store64(field, 0xdeadbeef00)
		case registry.Pointer:
			if (w.chance(20) || w.depth > 4) && mayBeNull(m, fieldCount(m, p)) {
				store64(field, 0)
			} else {
				store64(field, uint64(w.pointee(m, fieldCount(m, p))))
			}
		}
	}
}

// chain is a pNext chain, of any structures: what may extend what is not the
// codec's business.
func (w *world) chain() uintptr {
	first := uintptr(0)
	for w.depth < 4 && w.chance(45) {
		var p uintptr
		if w.chance(20) { // the loader's own, and unknown ones
			p = w.alloc(64)
			store(p, 4, []uint64{47, 48, 1000496000}[w.rand.IntN(3)])
		} else {
			t := registry.Index(w.rand.IntN(len(registry.Structs)))
			s := &registry.Structs[t]
			if s.SType == registry.NoSType || len(s.Members) == 0 || s.Members[0].Kind != registry.Next {
				continue
			}
			p = w.alloc(int(s.Size))
			w.structure(s, p, false)
		}
		store64(p+8, uint64(first))
		first = p
	}
	return first
}

// argumentCount is how many elements parameter i of c points to: written again
// for the tests, from the tables.
func argumentCount(c *registry.Command, i int, a *registry.Args) int {
	l := &c.Params[i].Len
	switch l.Kind {
	case registry.One:
		return 1
	case registry.Fixed:
		return int(l.N)
	case registry.Pointed:
		return int(load(uintptr(a[l.Of]), l.Size))
	case registry.Strided:
		if a[l.Of] == 0 {
			return 0
		}
		// In bytes, of which the tests make elements.
		n := int(a[l.Of]-1)*int(a[l.N]) + int(c.Params[i].ElemSize)
		return (n + int(c.Params[i].ElemSize) - 1) / int(c.Params[i].ElemSize)
	}
	v := a[l.Of]
	if l.Then >= 0 {
		if v == 0 {
			return 0
		}
		v = load(uintptr(v)+uintptr(l.Then), l.Size)
	}
	return derived(l, v)
}

func fieldCount(m *registry.Member, p uintptr) int {
	switch m.Len.Kind {
	case registry.One:
		return 1
	case registry.Fixed:
		return int(m.Len.N)
	}
	return derived(&m.Len, load(p+uintptr(m.Len.Of), m.Len.Size))
}

func derived(l *registry.Length, v uint64) int {
	switch l.Kind {
	case registry.Divided:
		return int(v / uint64(l.N))
	case registry.RoundUp:
		return int((v + uint64(l.N) - 1) / uint64(l.N))
	}
	return int(v)
}
