// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"slices"

	"github.com/memspan/memspan/vulkan/registry"
)

// A span is bytes [off, end) of a memory.
type span struct{ off, end uint64 }

// normalize sorts spans and joins those that touch. It works in place.
func normalize(list []span) []span {
	slices.SortFunc(list, func(a, b span) int {
		switch {
		case a.off < b.off:
			return -1
		case a.off > b.off:
			return 1
		}
		return 0
	})
	kept := list[:0]
	for _, s := range list {
		if s.off >= s.end {
			continue
		}
		if n := len(kept); n > 0 && s.off <= kept[n-1].end {
			kept[n-1].end = max(kept[n-1].end, s.end)
		} else {
			kept = append(kept, s)
		}
	}
	return kept
}

// covers reports whether all of some spans is in others. Both are normalized.
func covers(list, spans []span) bool {
	i := 0
	for _, s := range spans {
		for i < len(list) && list[i].end < s.end {
			i++
		}
		if i == len(list) || list[i].off > s.off {
			return false
		}
	}
	return true
}

// eachOther calls f with what of [0, size) is in none of the spans, which are
// normalized.
func eachOther(size uint64, spans []span, f func(span)) {
	at := uint64(0)
	for _, s := range spans {
		if s.off > at {
			f(span{at, s.off})
		}
		at = s.end
	}
	if at < size {
		f(span{at, size})
	}
}

// A place is where a buffer or an image is. It is the stream's goroutine's.
type place struct {
	memory *deviceMemory // nil: nowhere, or not one that can be mapped
	span
	index int // in memory.places
	// shaders: they may write it, as far as its usage tells.
	shaders bool
	// opaque: an image whose layout is the driver's secret, so that the host can
	// make nothing of what is in it.
	opaque bool
	sparse bool // it is bound page by page
	// more are the places of an image's further planes, if they are bound one by
	// one.
	more []*place
}

// bind tells where the resource is: size bytes at off, as far as the memory has
// them.
func (p *place) bind(m *deviceMemory, off, size uint64) {
	if m == nil || !m.visible || p.memory != nil || off > m.size {
		return
	}
	p.memory, p.span = m, span{off, off + min(size, m.size-off)}
	p.index = len(m.places)
	m.places = append(m.places, p)
	m.fresh = false
}

// bindPlane is bind for an image whose planes are bound one by one: there are
// maxPlanes at most, and how much of the memory each takes is not known.
func (p *place) bindPlane(m *deviceMemory, off uint64) {
	const maxPlanes = 4
	plane := p
	if p.memory != nil && len(p.more) < maxPlanes-1 {
		plane = &place{shaders: p.shaders, opaque: p.opaque}
		p.more = append(p.more, plane)
	}
	plane.bind(m, off, ^uint64(0))
}

// dropped is called when the resource ends.
func (p *place) dropped() {
	for _, plane := range p.more {
		plane.dropped()
	}
	p.more = nil
	m := p.memory
	if m == nil {
		return
	}
	last := m.places[len(m.places)-1]
	m.places[p.index], last.index = last, p.index
	m.places = m.places[:len(m.places)-1]
	m.fresh = false
	p.memory = nil
}

// written returns what shaders may write of a memory: a list that nobody
// changes.
func (m *deviceMemory) written() []span {
	if m.fresh {
		return m.writable
	}
	var list []span
	for _, p := range m.places {
		if p.shaders && !p.opaque {
			list = append(list, p.span)
		}
	}
	if m.sparse {
		list = append(list, span{0, m.size})
	}
	m.writable, m.fresh = normalize(list), true
	return m.writable
}

// A target is a part of a resource, relative to its beginning, that a recorded
// command writes.
type target struct {
	place *place
	span
}

// A write is what a submission may write of one memory.
type write struct {
	memory *deviceMemory
	spans  []span // normalized; nobody changes them
}

// plan finds what a submission may write of memories that the application can
// map, and prepares these for it.
func (r *renderer) plan(d *device, s *submission) {
	s.device = d
	var found []*deviceMemory
	add := func(m *deviceMemory, spans ...span) {
		if len(m.planned) == 0 {
			found = append(found, m)
		}
		m.planned = append(m.planned, spans...)
	}
	shaders, sparse := false, false
	for _, f := range s.facts {
		for o := range f.events {
			s.events = append(s.events, o)
		}
		shaders = shaders || f.shaders
		for _, t := range f.written {
			p := t.place
			sparse = sparse || p.sparse
			if p.memory == nil || p.opaque {
				continue
			}
			size := p.end - p.off
			if off, end := min(t.off, size), min(t.end, size); off < end {
				add(p.memory, span{p.off + off, p.off + end})
			}
			for _, plane := range p.more {
				if plane.memory != nil {
					add(plane.memory, plane.span)
				}
			}
		}
	}
	for _, m := range d.visible {
		if shaders {
			if list := m.written(); len(list) > 0 {
				add(m, list...)
			}
		} else if sparse && m.sparse {
			add(m, span{0, m.size})
		}
	}
	for _, m := range found {
		spans := normalize(m.planned)
		m.planned = nil
		m.expect(spans)
		s.writes = append(s.writes, write{m, spans})
	}
}

// watches reports whether the end of a submission must be seen even if the
// application does not ask for it, because it may write memory that the
// application maps, or may map by then, or events that it looks at.
func (r *renderer) watches(s *submission) bool { return len(s.writes) > 0 || len(s.events) > 0 }

// remember adds a memory to those that can be mapped.
func (d *device) remember(m *deviceMemory) {
	if m.visible {
		d.visible = append(d.visible, m)
	}
}

// forget removes it.
func (d *device) forget(m *deviceMemory) {
	if i := slices.Index(d.visible, m); i >= 0 {
		last := len(d.visible) - 1
		d.visible[i] = d.visible[last]
		d.visible[last] = nil
		d.visible = d.visible[:last]
	}
}

// placeOf returns where a buffer or an image is, or nil.
func placeOf(o *object) *place {
	switch state := o.state.(type) {
	case *buffer:
		return &state.place
	case *image:
		return &state.place
	}
	return nil
}

// An image is the state of a VkImage.
type image struct {
	place
	disjoint bool // its planes are bound one by one
}

// bindImage executes the binding of images to memory.
func (r *renderer) bindImage(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	if int32(result) >= 0 {
		for _, b := range bindings(c) {
			o, m := r.find(registry.VkImage, b.resource), r.found(b.memory)
			if o == nil || m == nil {
				continue
			}
			i := o.state.(*image)
			switch {
			case i.disjoint:
				i.bindPlane(m, b.offset)
			case m.visible:
				i.bind(m, b.offset, r.caller.imageSize(o))
			}
		}
	}
	return r.answer(c, result)
}

// found returns the state of a memory that the call names, or nil.
func (r *renderer) found(real uint64) *deviceMemory {
	if o := r.find(registry.VkDeviceMemory, real); o != nil {
		return o.state.(*deviceMemory)
	}
	return nil
}
