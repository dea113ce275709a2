// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/vulkan/registry"
)

// Whatever the driver stores, the application sees, and nothing else changes.
func TestApplicationSeesTheReply(t *testing.T) {
	x, memory := New(), make([]byte, worldSize)
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		result := rapid.SampledFrom([]int32{0, 0, 1, 5, 1000297000, -1, -11, -1000069000}).Draw(t, "result")
		for i := range registry.Commands {
			c := &registry.Commands[i]
			if x.Supported(c) != nil {
				continue
			}
			if err := replyTrip(x, c, seed, uint64(uint32(result)), memory); err != nil {
				t.Fatalf("%s: %v", c.Name, err)
			}
		}
	})
}

func replyTrip(x *Codec, c *registry.Command, seed, result uint64, memory []byte) error {
	w := newWorld(seed, memory)
	w.call(c)
	sent, err := x.AppendCall(nil, c, &w.args, &w.env)
	if err != nil {
		return err
	}
	var args registry.Args
	arena := NewArena()
	defer runtime.KeepAlive(arena) // args point into it
	if _, err := x.ReadCall(sent, c, &args, arena, &w.env); err != nil {
		return err
	}
	d := driver{w, c, &args}
	d.run()
	reply, err := x.AppendReply([]byte{9}, c, &args, result, &w.env)
	if err != nil {
		return err
	}
	for _, id := range w.ids {
		w.objectOf(registry.VkPhysicalDevice, id)
	}
	before := slices.Clone(w.memory[:w.used])
	got, err := x.ReadReply(reply[1:], c, &w.args, &w.env)
	if err != nil {
		return err
	}
	if c.Returns == registry.Nothing {
		result = 0
	}
	if got != result {
		return fmt.Errorf("result %#x is %#x", result, got)
	}
	o := reader{observer: observer{world: w}, marks: make([]bool, w.used)}
	o.arguments(c, &w.args, &args, c.Returns != registry.Result || int32(result) >= 0 || int32(result) == -11)
	for i, marked := range o.marks {
		if !marked && before[i] != w.memory[i] {
			return fmt.Errorf("byte %#x changed", i)
		}
	}
	if c.Creates >= 0 && o.fault == nil && args[c.Creates] != 0 {
		ids, reals := arena.Created()
		n := argumentCount(c, int(c.Creates), &args)
		if len(ids) != n || !slices.Equal(reals, words(view(uintptr(args[c.Creates]), 8*n))) {
			return fmt.Errorf("%d ids and %d handles of %d", len(ids), len(reals), n)
		}
	}
	return o.fault
}

// A driver stores what a driver may store in a worker's memory.
type driver struct {
	*world
	command *registry.Command
	args    *registry.Args
}

func (d *driver) run() {
	for i := range d.command.Params {
		p := &d.command.Params[i]
		ptr := uintptr(d.args[i])
		if p.Kind != registry.Pointer || ptr == 0 || isCount(d.command, i) {
			continue
		}
		n := argumentCount(d.command, i, d.args)
		if int(d.command.Creates) == i {
			for j := range uintptr(n) {
				if d.chance(70) {
					store64(ptr+8*j, d.rand.Uint64()|1)
				}
			}
			continue
		}
		d.pointee(p, ptr, n, p.Out)
	}
	for i := range d.command.Params {
		if d.args[i] == 0 || !isCount(d.command, i) {
			continue
		}
		room, size, array := d.rand.Uint64N(9), uint8(4), false
		for j := range d.command.Params {
			p := &d.command.Params[j]
			if p.Len.Kind == registry.Pointed && int(p.Len.Of) == i {
				size, array = p.Len.Size, array || d.args[j] != 0
			}
		}
		if array {
			room = d.rand.Uint64N(load(uintptr(d.args[i]), size) + 1)
		}
		store(uintptr(d.args[i]), size, room)
	}
}

func (d *driver) fill(p uintptr, n int) {
	b := view(p, n)
	for i := range b {
		b[i] = byte(d.rand.Uint32())
	}
}

func (d *driver) pointee(m *registry.Member, p uintptr, n int, out bool) {
	switch {
	case m.Elem == registry.Bytes && out:
		d.fill(p, n*int(m.ElemSize))
	case m.Elem == registry.StructElems:
		s := &registry.Structs[m.Type]
		for i := range uintptr(n) {
			d.structure(s, p+i*uintptr(s.Size), out)
		}
	}
}

func (d *driver) structure(s *registry.Struct, p uintptr, out bool) {
	if hasNext(s) {
		for q, t := known(loadPtr(p + 8)); t != nil; q, t = known(loadPtr(q + 8)) {
			d.content(t, q, out)
		}
	}
	d.content(s, p, out)
}

func (d *driver) content(s *registry.Struct, p uintptr, out bool) {
	rooms := make(map[uintptr]uint64)
	for i := range s.Members {
		m := &s.Members[i]
		field := p + uintptr(m.Offset)
		switch m.Kind {
		case registry.Handle:
			for j := range uintptr(m.Count) {
				if out {
					id := d.id()
					d.ids = append(d.ids, id)
					store64(field+8*j, realOf(m.Type, id))
				}
			}
		case registry.Inline:
			inner := &registry.Structs[m.Type]
			for j := range uintptr(m.Count) {
				d.structure(inner, field+j*uintptr(inner.Size), out)
			}
		case registry.Pointer:
			ptr := loadPtr(field)
			if ptr != 0 && (m.Out || !out) { // no output is behind an output's inputs
				d.pointee(m, ptr, fieldCount(m, p), m.Out)
			}
			if m.Len.Kind == registry.Counted && ptr != 0 {
				rooms[uintptr(m.Len.Of)] = uint64(fieldCount(m, p))
			}
		}
	}
	if !out {
		return
	}
	plainOf(s, func(from, to uintptr) { d.fill(p+from, int(to-from)) })
	for i := range s.Members {
		if l := &s.Members[i].Len; l.Kind == registry.Counted {
			if room, array := rooms[uintptr(l.Of)]; array {
				store(p+uintptr(l.Of), l.Size, d.rand.Uint64N(room+1))
			}
		}
	}
}

// plainOf calls f with the ranges of s that are not members, nor its sType.
func plainOf(s *registry.Struct, f func(from, to uintptr)) {
	end := uintptr(0)
	if s.SType != registry.NoSType {
		end = 16
	}
	for i := range s.Members {
		m := &s.Members[i]
		if from := uintptr(m.Offset); from > end {
			f(end, from)
		}
		end = max(end, uintptr(m.Offset+m.Size))
	}
	if end < uintptr(s.Size) {
		f(end, uintptr(s.Size))
	}
}

// A reader compares what the application sees with what the driver stored, and
// marks the bytes that may have changed.
type reader struct {
	observer
	marks []bool
}

func (o *reader) mark(p uintptr, n int) {
	from := int(p - address(o.world.memory))
	for i := range n {
		o.marks[from+i] = true
	}
}

func (o *reader) equal(c, w uintptr, n int) {
	o.mark(c, n)
	if !bytes.Equal(view(c, n), view(w, n)) {
		o.fail("bytes differ")
	}
}

func (o *reader) arguments(command *registry.Command, c, w *registry.Args, all bool) {
	for i := range command.Params {
		p := &command.Params[i]
		cp, wp := uintptr(c[i]), uintptr(w[i])
		if p.Kind != registry.Pointer || cp == 0 {
			continue
		}
		o.at(p.Name, func() {
			switch {
			case int(command.Creates) == i:
				if !all && p.Len.Kind == registry.Pointed {
					return
				}
				for j := range uintptr(argumentCount(command, i, w)) {
					o.mark(cp+8*j, 8)
					if (load64(wp+8*j) == 0) != (load64(cp+8*j) == 0) && load64(cp+8*j) != 0 {
						o.fail("a handle that was not made")
					}
				}
			case !all:
			case isCount(command, i):
				o.equal(cp, wp, int(p.ElemSize))
			default:
				o.pointee(p, cp, wp, argumentCount(command, i, w), p.Out)
			}
		})
	}
}

func (o *reader) pointee(m *registry.Member, c, w uintptr, n int, out bool) {
	switch {
	case m.Elem == registry.Bytes && out:
		o.equal(c, w, n*int(m.ElemSize))
	case m.Elem == registry.StructElems:
		s := &registry.Structs[m.Type]
		for i := range uintptr(n) {
			o.structure(s, c+i*uintptr(s.Size), w+i*uintptr(s.Size), out)
		}
	}
}

func (o *reader) structure(s *registry.Struct, c, w uintptr, out bool) {
	o.at(s.Name, func() {
		if hasNext(s) {
			last := w
			for p, t := known(loadPtr(c + 8)); t != nil; p, t = known(loadPtr(p + 8)) {
				last = loadPtr(last + 8)
				o.at(t.Name, func() { o.content(t, p, last, out) })
			}
		}
		o.content(s, c, w, out)
	})
}

func (o *reader) content(s *registry.Struct, c, w uintptr, out bool) {
	if out {
		plainOf(s, func(from, to uintptr) { o.equal(c+from, w+from, int(to-from)) })
	}
	for i := range s.Members {
		m := &s.Members[i]
		cf, wf := c+uintptr(m.Offset), w+uintptr(m.Offset)
		o.at(m.Name, func() {
			switch m.Kind {
			case registry.Handle:
				for j := range uintptr(m.Count) {
					if out {
						o.mark(cf+8*j, 8)
						o.handle(m, load64(cf+8*j), load64(wf+8*j))
					}
				}
			case registry.Inline:
				inner := &registry.Structs[m.Type]
				for j := range uintptr(m.Count) {
					o.structure(inner, cf+j*uintptr(inner.Size), wf+j*uintptr(inner.Size), out)
				}
			case registry.Pointer:
				if wp := loadPtr(wf); wp != 0 && (m.Out || !out) {
					o.pointee(m, loadPtr(cf), wp, fieldCount(m, w), m.Out)
				}
			}
		})
	}
}
