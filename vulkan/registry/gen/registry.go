// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
)

// A declaration is a member of a structure or a parameter of a command.
type declaration struct {
	name     string
	typ      string // without const and pointers
	pointers int
	constant bool   // what it points to is const
	array    []int  // dimensions
	length   string // the len attribute, or altlen where there is one
	stride   string // the parameter that says how far elements are apart
	values   string // of sType
	optional bool
	unchecked,
	bits bool // noautovalidity; a bit field
}

type structType struct {
	name    string
	union   bool
	members []declaration
	// returned: the driver fills it in.
	returned bool
}

type handleType struct {
	name         string
	dispatchable bool
	parent       string
	object       string // VK_OBJECT_TYPE_…
}

type commandType struct {
	name    string
	alias   string
	returns string
	params  []declaration
}

type extension struct {
	name     string
	instance bool
	version  int
	node     *node
}

// A registry is what vk.xml says, by name, whether memspan carries it or not.
type registry struct {
	version    int
	root       *node
	category   map[string]string // of types
	alias      map[string]string // of types
	base       map[string]string // what a basetype, enum or bitmask is in C
	structs    map[string]*structType
	handles    map[string]*handleType
	commands   map[string]*commandType
	extensions map[string]*extension
	values     map[string]int64 // of enumerants and constants
}

func newRegistry(root *node) (*registry, error) {
	r := &registry{
		root:       root,
		category:   make(map[string]string),
		alias:      make(map[string]string),
		base:       make(map[string]string),
		structs:    make(map[string]*structType),
		handles:    make(map[string]*handleType),
		commands:   make(map[string]*commandType),
		extensions: make(map[string]*extension),
		values:     make(map[string]int64),
	}
	if err := r.readValues(); err != nil {
		return nil, err
	}
	for _, types := range root.all("types") {
		for _, t := range types.all("type") {
			if err := r.readType(t); err != nil {
				return nil, fmt.Errorf("%s: %w", t.name(), err)
			}
		}
	}
	for _, commands := range root.all("commands") {
		for _, c := range commands.all("command") {
			if err := r.readCommand(c); err != nil {
				return nil, err
			}
		}
	}
	if r.version == 0 {
		return nil, fmt.Errorf("no VK_HEADER_VERSION")
	}
	return r, nil
}

// readValues reads constants and the enumerants that extensions add to
// VkStructureType and VkObjectType.
func (r *registry) readValues() error {
	aliases := make(map[string]string)
	value := func(e *node, number int) error {
		name := e.name()
		switch a := e.attrs; {
		case a["alias"] != "":
			aliases[name] = a["alias"]
		case a["offset"] != "":
			if s := a["extnumber"]; s != "" {
				number, _ = strconv.Atoi(s)
			}
			offset, err := strconv.Atoi(a["offset"])
			if err != nil {
				return err
			}
			v := int64(1000000000 + (number-1)*1000 + offset)
			if a["dir"] == "-" {
				v = -v
			}
			r.values[name] = v
		case a["value"] != "":
			// Floats, strings and complements are of no use here.
			if v, err := strconv.ParseInt(a["value"], 0, 64); err == nil {
				r.values[name] = v
			}
		}
		return nil
	}
	for _, enums := range r.root.all("enums") {
		if enums.attrs["bitwidth"] == "64" {
			r.base[enums.name()] = "uint64_t"
		}
		for _, e := range enums.all("enum") {
			if err := value(e, 0); err != nil {
				return err
			}
		}
	}
	for _, feature := range r.root.all("feature") {
		for _, require := range feature.all("require") {
			for _, e := range require.all("enum") {
				if err := value(e, 0); err != nil {
					return err
				}
			}
		}
	}
	for _, extensions := range r.root.all("extensions") {
		for _, n := range extensions.all("extension") {
			number, _ := strconv.Atoi(n.attrs["number"])
			x := &extension{name: n.name(), instance: n.attrs["type"] == "instance", node: n}
			for _, require := range n.all("require") {
				for _, e := range require.all("enum") {
					if err := value(e, number); err != nil {
						return err
					}
					if strings.HasSuffix(e.name(), "_SPEC_VERSION") && x.version == 0 {
						x.version, _ = strconv.Atoi(e.attrs["value"])
					}
				}
			}
			r.extensions[x.name] = x
		}
	}
	for name := range aliases {
		to := name
		for aliases[to] != "" {
			to = aliases[to]
		}
		if v, ok := r.values[to]; ok {
			r.values[name] = v
		}
	}
	return nil
}

func (r *registry) readType(t *node) error {
	name, category := t.name(), t.attrs["category"]
	r.category[name] = category
	if to := t.attrs["alias"]; to != "" {
		r.alias[name] = to
		return nil
	}
	switch category {
	case "define":
		if name == "VK_HEADER_VERSION" {
			text := strings.Fields(t.content())
			v, err := strconv.Atoi(text[len(text)-1])
			if err != nil {
				return err
			}
			r.version = v
		}
	case "basetype", "bitmask":
		r.base[name] = t.child("type").content()
	case "enum":
		if r.base[name] == "" { // else its values said that it has 64 bits
			r.base[name] = "uint32_t"
		}
	case "funcpointer":
		r.base[name] = "size_t"
	case "handle":
		r.handles[name] = &handleType{
			name:         name,
			dispatchable: t.child("type").content() == "VK_DEFINE_HANDLE",
			parent:       t.attrs["parent"],
			object:       t.attrs["objtypeenum"],
		}
	case "struct", "union":
		s := &structType{name: name, union: category == "union", returned: t.true("returnedonly")}
		for _, m := range t.all("member") {
			d, err := r.declare(m)
			if err != nil {
				return err
			}
			s.members = append(s.members, d)
		}
		r.structs[name] = s
	}
	return nil
}

func (r *registry) readCommand(n *node) error {
	c := &commandType{name: n.child("proto").name(), returns: n.child("proto").child("type").content()}
	if to := n.attrs["alias"]; to != "" {
		c.name, c.alias = n.name(), to
	}
	for _, p := range n.all("param") {
		d, err := r.declare(p)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		// C passes an array as a pointer to its first element.
		if d.array != nil {
			d.length = strconv.Itoa(product(d.array))
			d.array = nil
			d.pointers++
		}
		c.params = append(c.params, d)
	}
	r.commands[c.name] = c
	return nil
}

// declare reads "const <type>T</type>* <name>n</name>[<enum>N</enum>]".
func (r *registry) declare(n *node) (declaration, error) {
	d := declaration{
		name:      n.name(),
		length:    n.attrs["len"],
		stride:    n.attrs["stride"],
		values:    n.attrs["values"],
		optional:  n.true("optional"),
		unchecked: n.true("noautovalidity"),
	}
	if s := n.attrs["altlen"]; s != "" {
		d.length = s
	}
	var after strings.Builder // the name
	named := false
	for _, c := range n.children {
		switch {
		case c.tag == "type":
			d.typ = c.content()
		case c.tag == "name":
			named = true
		case named:
			after.WriteString(c.content())
		case d.typ == "":
			d.constant = d.constant || strings.Contains(c.content(), "const")
		default:
			d.pointers += strings.Count(c.content(), "*")
		}
	}
	rest := strings.TrimSpace(after.String())
	d.bits = strings.HasPrefix(rest, ":")
	for strings.HasPrefix(rest, "[") {
		dimension, more, ok := strings.Cut(rest[1:], "]")
		if !ok {
			return d, fmt.Errorf("%s: array %q is not closed", d.name, rest)
		}
		count, err := strconv.ParseInt(dimension, 0, 32)
		if v, ok := r.values[dimension]; ok {
			count, err = v, nil
		}
		if err != nil || count <= 0 {
			return d, fmt.Errorf("%s: array of %q", d.name, dimension)
		}
		d.array = append(d.array, int(count))
		rest = more
	}
	return d, nil
}

// resolve gives the type that a name is another name for.
func (r *registry) resolve(name string) string {
	for r.alias[name] != "" {
		name = r.alias[name]
	}
	return name
}

func product(dimensions []int) int {
	n := 1
	for _, d := range dimensions {
		n *= d
	}
	return n
}
