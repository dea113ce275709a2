// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// none is registry.None.
const none = -1

// The types here mirror those of package registry, which this program cannot
// import: it makes a part of it.

type member struct {
	name          string
	kind, elem    string
	typ           int
	offset, size  int
	count         int
	elemSize      int
	length        length
	out, optional bool
	condition     string
	pointer       bool // of a parameter, whatever its kind
}

type length struct {
	kind string
	of   int
	size int
	then int
	n    int
}

type structure struct {
	name     string
	size     int
	sType    int64 // -1: none
	members  []member
	returned bool
}

type handle struct {
	name         string
	dispatchable bool
	parent       int
	object       int64
}

type command struct {
	name      string
	params    []member
	returns   string // registry's word
	result    string // C's type
	alias     int
	first     int
	creates   int
	destroys  int
	floatArgs uint16
	core      int
	extension []string
}

// Tables are what is generated, in the order of their names.
type tables struct {
	version    int
	commands   []command
	structs    []structure
	handles    []handle
	extensions []*extension
	builder    *builder // what made them
}

// A builder makes tables of a selection.
type builder struct {
	*registry
	chosen    *selection
	decisions decisions
	carries   map[string]bool // structs: whether there are members to list
}

func (r *registry) build(s *selection) (*tables, error) {
	b := &builder{registry: r, chosen: s, decisions: make(decisions), carries: make(map[string]bool)}
	t := &tables{version: r.version, extensions: s.extensions, builder: b}
	for _, name := range s.handles {
		h := r.handles[name]
		object, ok := r.values[h.object]
		if !ok {
			return nil, fmt.Errorf("%s: no value of %s", name, h.object)
		}
		t.handles = append(t.handles, handle{name, h.dispatchable, b.handle(h.parent), object})
	}
	for _, name := range s.structs {
		x, err := b.structure(r.structs[name])
		if err != nil {
			return nil, err
		}
		t.structs = append(t.structs, x)
	}
	for _, name := range s.commands {
		c, err := b.command(name)
		if err != nil {
			return nil, err
		}
		t.commands = append(t.commands, c)
	}
	return t, b.decisions.unused()
}

func find(sorted []string, name string) int {
	if i, ok := slices.BinarySearch(sorted, name); ok {
		return i
	}
	return none
}

func (b *builder) handle(name string) int    { return find(b.chosen.handles, b.resolve(name)) }
func (b *builder) structAt(name string) int  { return find(b.chosen.structs, b.resolve(name)) }
func (b *builder) commandAt(name string) int { return find(b.chosen.commands, name) }

// listed says whether a structure has members that are not plain bytes.
func (b *builder) listed(s *structType) bool {
	if v, ok := b.carries[s.name]; ok {
		return v
	}
	for _, m := range s.members {
		if m.pointers > 0 || b.category[b.resolve(m.typ)] == "funcpointer" || b.handle(m.typ) != none {
			b.carries[s.name] = true
			return true
		}
		if inner := b.structNamed(m.typ); inner != nil && b.listed(inner) {
			b.carries[s.name] = true
			return true
		}
	}
	b.carries[s.name] = false
	return false
}

func (b *builder) structNamed(name string) *structType { return b.registry.structs[b.resolve(name)] }

func (b *builder) structure(s *structType) (structure, error) {
	l, err := b.layoutOf(s)
	if err != nil {
		return structure{}, err
	}
	x := structure{name: s.name, size: l.size, sType: -1, returned: s.returned}
	if s.union && b.listed(s) {
		return x, fmt.Errorf("%s: unions of pointers or handles are not supported", s.name)
	}
	for i, d := range s.members {
		if d.name == "sType" {
			v, ok := b.values[d.values]
			if !ok {
				return x, fmt.Errorf("%s: no value of %s", s.name, d.values)
			}
			x.sType = v
		}
		if s.union {
			continue
		}
		m, err := b.member(s.name, d)
		if err != nil {
			return x, err
		}
		if m.kind == "Plain" {
			continue
		}
		m.offset = l.offsets[i]
		if m.kind == "Pointer" {
			m.length, err = b.length(d, s.name, func(name string) (int, declaration, bool) {
				for j, o := range s.members {
					if o.name == name {
						return l.offsets[j], o, true
					}
				}
				return 0, declaration{}, false
			})
			if err != nil {
				return x, err
			}
		}
		x.members = append(x.members, m)
	}
	return x, nil
}

func (b *builder) command(name string) (command, error) {
	own := b.commands[name]
	def := b.definition(own)
	from := b.chosen.from[name]
	c := command{
		name: name, alias: none, first: none, creates: -1, destroys: -1,
		core: from.core, extension: from.extensions, result: b.resolve(def.returns),
	}
	if own != def {
		c.alias = b.commandAt(def.name)
	}
	switch {
	case def.returns == "void":
		c.returns = "Nothing"
	case def.returns == "VkResult":
		c.returns = "Result"
	case b.category[def.returns] == "funcpointer":
		c.returns = "Procedure"
	default:
		c.returns = "Word"
	}
	ends := strings.HasPrefix(def.name, "vkDestroy") || strings.HasPrefix(def.name, "vkFree")
	for i, d := range def.params {
		m, err := b.member(def.name, d)
		if err != nil {
			return c, err
		}
		m.offset = 8 * i
		m.pointer = d.pointers > 0
		if m.kind == "Inline" {
			return c, fmt.Errorf("%s.%s: a structure by value is not supported", name, d.name)
		}
		if m.kind == "Pointer" {
			m.length, err = b.length(d, def.name, func(name string) (int, declaration, bool) {
				for j, o := range def.params {
					if o.name == name {
						return j, o, true
					}
				}
				return 0, declaration{}, false
			})
			if err != nil {
				return c, err
			}
			if m.length.kind == "Strided" {
				m.elem, m.typ = "Bytes", none
			}
		}
		if base, _ := b.primitive(d.typ); base == "float" && d.pointers == 0 {
			c.floatArgs |= 1 << i
		}
		isHandle := m.kind == "Handle" || m.kind == "Pointer" && m.elem == "HandleElems"
		if i == 0 && m.kind == "Handle" {
			c.first = m.typ
		}
		if isHandle && m.out {
			c.creates = i
		}
		if isHandle && ends {
			c.destroys = i // the last one
		}
		c.params = append(c.params, m)
	}
	if len(c.params) > 16 {
		return c, fmt.Errorf("%s has more than 16 parameters", name)
	}
	return c, nil
}

// primitive is what C's compiler takes a type for, if it is no structure.
func (b *builder) primitive(name string) (string, bool) {
	name = b.resolve(name)
	for b.base[name] != "" {
		name = b.resolve(b.base[name])
	}
	_, ok := primitives[name]
	return name, ok
}

// member says what a declaration is; its place and its length are the caller's.
func (b *builder) member(owner string, d declaration) (member, error) {
	key := owner + "." + d.name
	m := member{name: d.name, typ: none, count: product(d.array), optional: d.optional}
	size, _, err := b.elementSize(d)
	if err != nil {
		return m, fmt.Errorf("%s: %w", key, err)
	}
	m.size = size * m.count
	structAt, handleAt := b.structAt(d.typ), b.handle(d.typ)
	if b.decisions.in(conditional, key) {
		m.condition = key
	} else if d.unchecked && d.name != "pNext" && (d.pointers > 0 || handleAt != none) &&
		!b.decisions.in(counted, key) && !b.decisions.in(objects, key) {
		return m, fmt.Errorf("%s may be left undefined: decide in decisions.go", key)
	}
	switch {
	case d.name == "pNext":
		m.kind = "Next"
		return m, nil
	case b.category[b.resolve(d.typ)] == "funcpointer", d.typ == "VkAllocationCallbacks", b.decisions.in(locals, key):
		m.kind = "Local"
		return m, nil
	case d.pointers == 0 && handleAt != none:
		m.kind, m.typ = "Handle", handleAt
		return m, nil
	case d.pointers == 0 && structAt != none && b.listed(b.structNamed(d.typ)):
		m.kind, m.typ = "Inline", structAt
		return m, nil
	case d.pointers == 0:
		m.kind = "Plain"
		return m, nil
	case d.array != nil:
		return m, fmt.Errorf("%s: an array of pointers is not supported", key)
	}
	m.kind, m.elem, m.out = "Pointer", "Bytes", !d.constant && !b.decisions.in(inputs, key)
	switch {
	case d.pointers == 2 && d.typ == "char" && strings.HasSuffix(d.length, ",null-terminated"):
		m.elem, m.elemSize = "Strings", 8
	case d.pointers > 1:
		return m, fmt.Errorf("%s: pointers to pointers are not supported", key)
	case d.typ == "char" && d.length == "null-terminated":
		m.elem, m.elemSize = "String", 1
	case d.typ == "void" && b.decisions.in(objects, key):
		m.elem = "Object"
	case d.typ == "void" && d.length != "":
		m.elemSize = 1
	case handleAt != none:
		m.elem, m.typ, m.elemSize = "HandleElems", handleAt, 8
	case structAt != none:
		m.elem, m.typ = "StructElems", structAt
		m.elemSize, _, err = b.sizeOf(d.typ)
	default:
		if _, ok := b.primitive(d.typ); !ok {
			return m, fmt.Errorf("%s: a pointer to %s is not supported", key, d.typ)
		}
		m.elemSize, _, err = b.sizeOf(d.typ)
	}
	return m, err
}

// length reads a length attribute. locate finds a member by its name: its
// offset, or a parameter's index.
func (b *builder) length(d declaration, owner string, locate func(string) (int, declaration, bool)) (length, error) {
	text := d.length
	key := owner + "." + d.name
	if s, ok := lengths[key]; ok {
		b.decisions[key] = true
		text = s
	}
	text = strings.TrimSuffix(text, ",null-terminated")
	l := length{kind: "One", then: none}
	if text == "" || text == "null-terminated" || text == "1" {
		return l, nil
	}
	if factor, constant, ok := strings.Cut(text, "*"); ok {
		a, err := strconv.Atoi(strings.TrimSpace(factor))
		v, known := b.values[strings.TrimSpace(constant)]
		if err != nil || !known {
			return l, fmt.Errorf("%s: length %q", key, text)
		}
		text = strconv.Itoa(a * int(v))
	}
	if n, err := strconv.Atoi(text); err == nil {
		l.kind, l.n = "Fixed", n
		return l, nil
	}
	l.kind = "Counted"
	if counter, divisor, ok := strings.Cut(text, " / "); ok {
		n, err := strconv.Atoi(divisor)
		if err != nil {
			return l, fmt.Errorf("%s: length %q", key, text)
		}
		l.kind, l.n = "Divided", n
		text = counter
		if sum, ok := strings.CutPrefix(counter, "("); ok {
			l.kind = "RoundUp"
			if text, ok = strings.CutSuffix(sum, fmt.Sprintf(" + %d)", n-1)); !ok {
				return l, fmt.Errorf("%s: length %q", key, d.length)
			}
		}
	}
	name, then, _ := strings.Cut(text, "->")
	of, counter, ok := locate(name)
	if !ok {
		return l, fmt.Errorf("%s: length %q: no %s", key, d.length, name)
	}
	l.of = of
	if then != "" {
		s := b.structNamed(counter.typ)
		if s == nil || counter.pointers != 1 {
			return l, fmt.Errorf("%s: length %q: no structure", key, d.length)
		}
		at, err := b.layoutOf(s)
		if err != nil {
			return l, err
		}
		i := slices.IndexFunc(s.members, func(m declaration) bool { return m.name == then })
		if i < 0 {
			return l, fmt.Errorf("%s: length %q: no %s", key, d.length, then)
		}
		l.then, counter = at.offsets[i], s.members[i]
	} else if counter.pointers == 1 {
		l.kind = "Pointed"
	}
	var err error
	l.size, _, err = b.sizeOf(counter.typ)
	if err != nil {
		return l, err
	}
	if d.stride != "" {
		at, _, ok := locate(d.stride)
		if !ok || l.kind != "Counted" || then != "" {
			return l, fmt.Errorf("%s: stride %q", key, d.stride)
		}
		l.kind, l.n = "Strided", at
	}
	return l, nil
}
