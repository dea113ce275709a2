// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"bytes"
	"fmt"

	"github.com/memspan/memspan/vulkan/registry"
)

// An observer compares, by the tables and without the codec's programs, what
// a worker sees with what the application meant.
type observer struct {
	world *world
	path  []string
	fault error
}

func (o *observer) fail(format string, args ...any) {
	if o.fault == nil {
		o.fault = fmt.Errorf("%v: %s", o.path, fmt.Sprintf(format, args...))
	}
}

func (o *observer) at(name string, f func()) {
	o.path = append(o.path, name)
	f()
	o.path = o.path[:len(o.path)-1]
}

// arguments compares those of a call: c the application's, w the worker's.
func (o *observer) arguments(command *registry.Command, c, w *registry.Args) {
	for i := range command.Params {
		p := &command.Params[i]
		o.at(p.Name, func() {
			switch p.Kind {
			case registry.Plain:
				if m := mask(uint8(p.Size)); c[i]&m != w[i] {
					o.fail("%#x is %#x", c[i], w[i])
				}
			case registry.Handle:
				o.handle(p, c[i], w[i])
			case registry.Local:
				if w[i] != 0 {
					o.fail("not null")
				}
			case registry.Pointer:
				if (c[i] == 0) != (w[i] == 0) {
					o.fail("%#x is %#x", c[i], w[i])
				}
				if c[i] == 0 {
					return
				}
				if isCount(command, i) {
					o.count(command, i, c, w)
					return
				}
				n := argumentCount(command, i, c)
				if p.Len.Kind == registry.Strided && c[p.Len.Of] != 0 {
					n = 1 // elements of one byte after that are covered below
					size := int(c[p.Len.Of]-1)*int(c[p.Len.N]) + int(p.ElemSize)
					if !bytes.Equal(view(uintptr(c[i]), size), view(uintptr(w[i]), size)) {
						o.fail("bytes differ")
					}
				}
				if command.Name == "vkGetQueryPoolResults" {
					if !bytes.Equal(view(uintptr(c[i]), n), view(uintptr(w[i]), n)) {
						o.fail("results so far differ")
					}
				}
				o.pointee(p, uintptr(c[i]), uintptr(w[i]), n, int(command.Creates) == i)
			}
		})
	}
}

func isCount(c *registry.Command, i int) bool {
	for _, p := range c.Params {
		if p.Kind == registry.Pointer && p.Len.Kind == registry.Pointed && int(p.Len.Of) == i {
			return true
		}
	}
	return false
}

// count compares a count of the two-call idiom, which means something if an
// array of that many is there.
func (o *observer) count(command *registry.Command, i int, c, w *registry.Args) {
	want, size := uint64(0), uint8(4)
	for j := range command.Params {
		p := &command.Params[j]
		if p.Len.Kind == registry.Pointed && int(p.Len.Of) == i {
			size = p.Len.Size
			if c[j] != 0 {
				want = load(uintptr(c[i]), size)
			}
		}
	}
	if got := load(uintptr(w[i]), size); got != want {
		o.fail("count %d is %d", want, got)
	}
}

func (o *observer) handle(m *registry.Member, c, w uint64) {
	id := c
	if registry.Handles[m.Type].Dispatchable {
		id = identity(c)
	}
	want := uint64(0)
	if id != 0 && id&unknown == 0 {
		want = realOf(m.Type, id)
	}
	if w != want {
		o.fail("%s %#x is %#x, not %#x", registry.Handles[m.Type].Name, id, w, want)
	}
}

func (o *observer) pointee(m *registry.Member, c, w uintptr, n int, creates bool) {
	if w%8 != 0 && m.Elem != registry.String {
		o.fail("at %#x", w)
	}
	switch m.Elem {
	case registry.Bytes:
		if size := n * int(m.ElemSize); !m.Out && !bytes.Equal(view(c, size), view(w, size)) {
			o.fail("bytes differ")
		}
	case registry.HandleElems:
		for i := range uintptr(n) {
			switch {
			case creates && load64(w+8*i) != 0:
				o.fail("room for handles is not empty")
			case !m.Out:
				o.handle(m, load64(c+8*i), load64(w+8*i))
			}
		}
	case registry.StructElems:
		s := &registry.Structs[m.Type]
		for i := range uintptr(n) {
			o.structure(s, c+i*uintptr(s.Size), w+i*uintptr(s.Size), m.Out)
		}
	case registry.String:
		o.text(c, w)
	case registry.Strings:
		for i := range uintptr(n) {
			o.text(loadPtr(c+8*i), loadPtr(w+8*i))
		}
	case registry.Pointers:
		for i := range uintptr(n) {
			o.structure(&registry.Structs[m.Type], loadPtr(c+8*i), loadPtr(w+8*i), m.Out)
		}
	case registry.Object:
		o.templated(c, w)
	}
}

func (o *observer) text(c, w uintptr) {
	n := 0
	for load8(c+uintptr(n)) != 0 {
		n++
	}
	if !bytes.Equal(view(c, n+1), view(w, n+1)) {
		o.fail("%q is %q", view(c, n), view(w, n+1))
	}
}

func (o *observer) templated(c, w uintptr) {
	sampler, imageView := registry.Member{Type: registry.VkSampler}, registry.Member{Type: registry.VkImageView}
	buffer, texel := registry.Member{Type: registry.VkBuffer}, registry.Member{Type: registry.VkBufferView}
	for _, e := range o.world.layout.entries {
		if e.descriptorType == 1000138000 {
			if !bytes.Equal(view(c+uintptr(e.offset), int(e.count)), view(w+uintptr(e.offset), int(e.count))) {
				o.fail("inline block differs")
			}
			continue
		}
		for i := range uintptr(e.count) {
			c, w := c+uintptr(e.offset)+i*uintptr(e.stride), w+uintptr(e.offset)+i*uintptr(e.stride)
			switch e.descriptorType {
			case 0, 1, 2, 3, 10:
				o.handle(&sampler, load64(c), load64(w))
				o.handle(&imageView, load64(c+8), load64(w+8))
				if load32(c+16) != load32(w+16) {
					o.fail("layouts differ")
				}
			case 4, 5:
				o.handle(&texel, load64(c), load64(w))
			default:
				o.handle(&buffer, load64(c), load64(w))
				if !bytes.Equal(view(c+8, 16), view(w+8, 16)) {
					o.fail("ranges differ")
				}
			}
		}
	}
}

// known is the first structure of a chain that the tables have.
func known(p uintptr) (uintptr, *registry.Struct) {
	for ; p != 0; p = loadPtr(p + 8) {
		if t := registry.StructBySType(load32(p)); t != registry.None {
			return p, &registry.Structs[t]
		}
	}
	return 0, nil
}

func hasNext(s *registry.Struct) bool {
	return len(s.Members) > 0 && s.Members[0].Kind == registry.Next
}

func (o *observer) structure(s *registry.Struct, c, w uintptr, out bool) {
	o.at(s.Name, func() {
		if hasNext(s) {
			last := w
			for p, t := known(loadPtr(c + 8)); t != nil; p, t = known(loadPtr(p + 8)) {
				last = loadPtr(last + 8)
				if last == 0 {
					o.fail("the chain ends before %s", t.Name)
					return
				}
				o.at(t.Name, func() { o.content(t, p, last, out) })
			}
			if loadPtr(last+8) != 0 {
				o.fail("the chain goes on")
			}
		}
		o.content(s, c, w, out)
	})
}

func (o *observer) content(s *registry.Struct, c, w uintptr, out bool) {
	if s.SType != registry.NoSType && load32(w) != s.SType {
		o.fail("sType %d", load32(w))
	}
	end := uintptr(0)
	between := func(to uintptr) {
		if !out && !bytes.Equal(view(c+end, int(to-end)), view(w+end, int(to-end))) {
			o.fail("bytes %d to %d of %s differ", end, to, s.Name)
		}
	}
	for i := range s.Members {
		m := &s.Members[i]
		between(uintptr(m.Offset))
		end = uintptr(m.Offset + m.Size)
		cf, wf := c+uintptr(m.Offset), w+uintptr(m.Offset)
		o.at(m.Name, func() {
			switch m.Kind {
			case registry.Handle:
				for j := range uintptr(m.Count) {
					if !out {
						o.handle(m, load64(cf+8*j), load64(wf+8*j))
					}
				}
			case registry.Inline:
				inner := &registry.Structs[m.Type]
				for j := range uintptr(m.Count) {
					o.structure(inner, cf+j*uintptr(inner.Size), wf+j*uintptr(inner.Size), out)
				}
			case registry.Local:
				if load64(wf) != 0 {
					o.fail("not null")
				}
			case registry.Pointer:
				cp, wp := loadPtr(cf), loadPtr(wf)
				if wp == 0 && m.Condition != "" {
					return // rules have their own tests
				}
				if (cp == 0) != (wp == 0) {
					o.fail("%#x is %#x", cp, wp)
				} else if cp != 0 {
					o.pointee(m, cp, wp, fieldCount(m, c), false)
				}
			}
		})
	}
	between(uintptr(s.Size))
}
