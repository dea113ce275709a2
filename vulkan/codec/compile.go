// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"errors"
	"fmt"
	"slices"

	"github.com/memspan/memspan/vulkan/registry"
)

// op says what a step does.
type op uint8

const (
	opPlain     op = iota // a parameter's value
	opHandle              // n handles by value
	opInline              // n structures by value
	opLocal               // never sent
	opBytes               // pointer to elements of elem bytes
	opCount               // pointer to the number of other parameters' elements, in and out
	opHandles             // pointer to handles
	opCreated             // pointer to where new handles go
	opStructs             // pointer to structures
	opText                // pointer to a string
	opTexts               // pointer to pointers to strings
	opPointers            // pointer to pointers to one structure each
	opTemplated           // pointer to a descriptor update template's data
)

// A step is what is to be done about one parameter or member.
type step struct {
	op           op
	out          bool // output: what is pointed to is the driver's to fill
	both         bool // bytes that are input as well
	dispatchable bool
	lenient      bool // an unknown handle reads as null
	required     bool // a pointer that must not be null if it has elements, or a handle that must not
	rule         rule
	at           uint32 // number of the parameter, or offset of the member
	size         uint32 // by value, of one element
	n            uint32 // elements by value
	elem         uint32 // size of what is pointed to
	handle       registry.Index
	of           *structure
	length       registry.Length
	arrays       uint16 // a count's: bit i for parameter i, an array of that many
	name         string
}

// A program is what is to be done about one command.
type program struct {
	call    []step // the parameters, in order
	returns registry.Returns
	outputs []step // those that a reply is about, counts last
	// words: all parameters are words, which need no walker.
	words bool
	// template is the number of the parameter that is a descriptor update
	// template, or -1.
	template int
	// strided is the number of the parameter whose elements have a stride, or
	// -1.
	strided int
	err     error
}

// A span is a range of bytes of a structure.
type span struct{ from, to uint32 }

// A structure is what is to be done about one struct.
type structure struct {
	name  string
	size  int
	sType uint32
	next  bool // it starts with sType and pNext
	// chained: it may stand in a pNext chain.
	chained bool
	// pipeline: conditions of what is inside depend on it.
	pipeline bool
	// outputs: it may hold pointers to outputs where it is an input.
	outputs bool
	// touched are the members that the client must look at, members all; both
	// without pNext.
	touched []step
	members []step
	// plain is all that is neither sType nor pNext nor a member.
	plain []span
	err   error
}

// flat reports whether the client copies s as it is.
func (s *structure) flat() bool { return len(s.touched) == 0 && !s.next }

func (x *Codec) compile(structs []registry.Struct) {
	for i := range structs {
		x.compileStruct(&x.structs[i], &structs[i])
	}
	x.settle()
	for i := range x.structs {
		if s := &x.structs[i]; s.chained && s.err == nil {
			x.bySType[s.sType] = s
		}
	}
	for i := range x.commands {
		c, p := &x.commands[i], &x.programs[i]
		if err := x.compileCommand(p, c); err != nil {
			*p = program{err: fmt.Errorf("%s: %w: %w", c.Name, ErrUnsupported, err)}
		}
	}
}

func (x *Codec) compileStruct(s *structure, from *registry.Struct) {
	*s = structure{
		name:     from.Name,
		size:     int(from.Size),
		sType:    from.SType,
		chained:  from.SType != registry.NoSType,
		pipeline: from.Name == "VkGraphicsPipelineCreateInfo",
	}
	end := uint32(0)
	gap := func(to uint32) {
		if end < to {
			s.plain = append(s.plain, span{end, to})
		}
	}
	for i := range from.Members {
		m := &from.Members[i]
		if m.Kind == registry.Next {
			s.next = true
			if m.Offset != 8 || from.SType == registry.NoSType {
				s.err = fmt.Errorf("%s: pNext does not follow sType", s.name)
			}
			end = m.Offset + m.Size
			continue
		}
		gap(m.Offset)
		end = m.Offset + m.Size
		st, err := x.step(m, m.Offset)
		if err == nil && (st.length.Kind == registry.Pointed || st.length.Kind == registry.Strided || st.length.Kind != registry.One && st.length.Then >= 0 || st.op == opTemplated) {
			err = errors.New("a parameter's length in a structure")
		}
		if err != nil {
			s.err = fmt.Errorf("%s.%s: %w", s.name, m.Name, err)
		}
		// A structure in a chain that has lost its callback, or what it
		// imports, is worse than none.
		if st.op == opLocal && !m.Optional {
			s.chained = false
		}
		s.members = append(s.members, st)
	}
	gap(from.Size)
	s.chained = s.chained && s.next
}

// settle computes what of a structure depends on others.
func (x *Codec) settle() {
	for i := range x.structs {
		s := &x.structs[i]
		s.outputs = s.next || slices.ContainsFunc(s.members, func(m step) bool { return m.out })
	}
	for changed := true; changed; {
		changed = false
		for i := range x.structs {
			s := &x.structs[i]
			for _, m := range s.members {
				if m.of == nil {
					continue
				}
				if m.of.outputs && !s.outputs {
					s.outputs, changed = true, true
				}
				if m.of.err != nil && s.err == nil {
					s.err, changed = m.of.err, true
				}
			}
		}
	}
	var touch func(s *structure)
	done := make(map[*structure]bool)
	touch = func(s *structure) {
		if done[s] {
			return
		}
		done[s] = true
		for _, m := range s.members {
			if m.op == opInline {
				touch(m.of)
				if m.of.flat() {
					continue
				}
			}
			if m.op != opHandle || m.dispatchable {
				s.touched = append(s.touched, m)
			}
		}
	}
	for i := range x.structs {
		touch(&x.structs[i])
	}
}

// step compiles m, which stands at a parameter's number or a member's offset.
func (x *Codec) step(m *registry.Member, place uint32) (step, error) {
	st := step{
		at:     place,
		size:   m.Size / max(m.Count, 1),
		n:      max(m.Count, 1),
		elem:   m.ElemSize,
		out:    m.Out,
		length: m.Len,
		handle: registry.None,
		name:   m.Name,
	}
	switch m.Kind {
	case registry.Plain:
		st.op = opPlain
		return st, nil
	case registry.Local, registry.Next:
		st.op, st.out = opLocal, false
		st.size, st.n = m.Size, 1
		return st, nil
	case registry.Handle:
		st.op, st.out = opHandle, false
		st.lenient = m.Condition != ""
		st.required = !m.Optional && !st.lenient
		return st, x.setHandle(&st, m.Type)
	case registry.Inline:
		st.op = opInline
		return st, x.setStruct(&st, m.Type)
	}
	if m.Condition != "" {
		var ok bool
		if st.rule, ok = ruleOf(m.Condition); !ok {
			return st, fmt.Errorf("no rule for the condition %s", m.Condition)
		}
	}
	// A name that is missing is the driver's business: nobody else reads it.
	st.required = !m.Optional && m.Condition == "" && m.Elem != registry.String && m.Elem != registry.Object
	switch m.Elem {
	case registry.Bytes:
		st.op = opBytes
		if m.Len.Kind == registry.Strided {
			st.size, st.elem = m.ElemSize, 1
		}
		if st.elem == 0 {
			return st, errors.New("elements without a size")
		}
		return st, nil
	case registry.HandleElems:
		st.op, st.elem = opHandles, 8
		st.lenient = m.Condition != ""
		return st, x.setHandle(&st, m.Type)
	case registry.StructElems:
		st.op = opStructs
		return st, x.setStruct(&st, m.Type)
	case registry.Pointers:
		st.op = opPointers
		if m.Out {
			return st, errors.New("output through pointers to pointers")
		}
		return st, x.setStruct(&st, m.Type)
	case registry.Object:
		st.op = opTemplated
		return st, nil
	}
	st.op = opText
	if m.Elem == registry.Strings {
		st.op = opTexts
	}
	if m.Out {
		return st, errors.New("a string as output")
	}
	return st, nil
}

func (x *Codec) setHandle(st *step, t registry.Index) error {
	if t < 0 || int(t) >= len(x.handles) {
		return errors.New("no such handle type")
	}
	st.handle, st.dispatchable = t, x.handles[t].Dispatchable
	return nil
}

func (x *Codec) setStruct(st *step, t registry.Index) error {
	if t < 0 || int(t) >= len(x.structs) {
		return errors.New("no such structure")
	}
	st.of = &x.structs[t]
	st.elem = uint32(st.of.size)
	return nil
}

func (x *Codec) compileCommand(p *program, c *registry.Command) error {
	p.returns = c.Returns
	if c.Returns == registry.Procedure {
		return errors.New("it returns a procedure")
	}
	if len(c.Params) > registry.ArgWords {
		return errors.New("too many parameters")
	}
	p.template, p.strided = -1, -1
	p.words = true
	for i := range c.Params {
		m := &c.Params[i]
		st, err := x.step(m, uint32(i))
		if err == nil && st.of != nil {
			err = st.of.err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		switch {
		case m.Kind == registry.Handle && x.handles[m.Type].Name == "VkDescriptorUpdateTemplate":
			p.template = i
		case int(c.Creates) == i && st.op == opHandles && st.out:
			st.op = opCreated
		case st.op == opHandles && st.out:
			return fmt.Errorf("%s: output of handles that the command does not create", m.Name)
		case st.op == opTemplated && p.template < 0:
			return fmt.Errorf("%s: no template precedes it", m.Name)
		case st.op == opTemplated:
			st.length.Of = uint32(p.template)
		}
		if m.Len.Kind == registry.Strided {
			p.strided = i
		}
		if m.Len.Kind == registry.Pointed {
			if m.Len.Of >= uint32(i) || p.call[m.Len.Of].elem != uint32(m.Len.Size) || !p.call[m.Len.Of].out {
				return fmt.Errorf("%s: no count precedes it", m.Name)
			}
			p.call[m.Len.Of].op = opCount
			p.call[m.Len.Of].arrays |= 1 << i
		}
		st.both = st.op == opBytes && st.out && c.Name == "vkGetQueryPoolResults"
		p.words = p.words && (st.op == opPlain || st.op == opHandle)
		p.call = append(p.call, st)
	}
	for _, st := range p.call {
		if st.op != opCount && (st.out || st.op == opStructs && st.of.outputs || st.op == opPointers && st.of.outputs) {
			p.outputs = append(p.outputs, st)
		}
	}
	for _, st := range p.call {
		if st.op == opCount {
			p.outputs = append(p.outputs, st)
		}
	}
	return nil
}
