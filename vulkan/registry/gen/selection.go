// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// newestCore is the newest version carried, as major * 10 + minor.
const newestCore = 13

// A list is what extensions.txt says.
type list struct {
	carried []string
	left    map[string]string // name: why
}

func parseList(r io.Reader) (list, error) {
	l := list{left: make(map[string]string)}
	s := bufio.NewScanner(r)
	for s.Scan() {
		line, comment, _ := strings.Cut(s.Text(), "#")
		name := strings.TrimSpace(line)
		if name == "" {
			continue
		}
		if left, ok := strings.CutPrefix(name, "-"); ok {
			l.left[left] = strings.TrimSpace(comment)
			continue
		}
		if slices.Contains(l.carried, name) {
			return l, fmt.Errorf("%s is named twice", name)
		}
		l.carried = append(l.carried, name)
	}
	return l, s.Err()
}

// A source says what brings a command.
type source struct {
	core       int // 10 to 13, or 0
	extensions []string
}

// A selection is what of a registry is carried, each sorted by name.
type selection struct {
	commands   []string
	from       map[string]*source
	structs    []string
	handles    []string
	extensions []*extension
}

func (r *registry) choose(carried []string) (*selection, error) {
	s := &selection{from: make(map[string]*source)}
	types := make(map[string]bool)
	require := func(n *node, core int, extension string) {
		for _, t := range n.all("type") {
			types[r.resolve(t.name())] = true
		}
		for _, c := range n.all("command") {
			from := s.from[c.name()]
			if from == nil {
				from = &source{}
				s.from[c.name()] = from
			}
			if x, ok := belongs[c.name()]; ok {
				from.extensions = []string{x}
			} else if extension == "" {
				from.core = core
			} else if !slices.Contains(from.extensions, extension) {
				from.extensions = append(from.extensions, extension)
			}
		}
	}
	there := func(name string) bool { return slices.Contains(carried, name) }
	for _, f := range r.root.all("feature") {
		major, minor, _ := strings.Cut(f.attrs["number"], ".")
		a, _ := strconv.Atoi(major)
		b, _ := strconv.Atoi(minor)
		core := a*10 + b
		if core > newestCore {
			continue
		}
		carried = append(slices.Clip(carried), f.name())
		for _, n := range f.all("require") {
			require(n, core, "")
		}
	}
	for _, name := range carried {
		x := r.extensions[name]
		if x == nil {
			if strings.HasPrefix(name, "VK_VERSION_") {
				continue
			}
			return nil, fmt.Errorf("the registry has no extension %s", name)
		}
		s.extensions = append(s.extensions, x)
		for _, n := range x.node.all("require") {
			if holds(n.attrs["feature"], there) && holds(n.attrs["extension"], there) && holds(n.attrs["depends"], there) {
				require(n, 0, name)
			}
		}
	}
	for name, from := range s.from {
		c := r.commands[name]
		if c == nil {
			return nil, fmt.Errorf("the registry has no command %s", name)
		}
		if c.alias != "" && s.from[c.alias] == nil {
			return nil, fmt.Errorf("%s is another name for %s, which is not carried", name, c.alias)
		}
		for _, p := range r.definition(c).params {
			types[r.resolve(p.typ)] = true
		}
		slices.Sort(from.extensions)
	}
	structs, handles := make(map[string]bool), make(map[string]bool)
	var add func(name string)
	add = func(name string) {
		name = r.resolve(name)
		if h := r.handles[name]; h != nil && !handles[name] {
			handles[name] = true
			add(h.parent)
		}
		t := r.structs[name]
		if t == nil || structs[name] || slices.Contains(skipped, name) {
			return
		}
		structs[name] = true
		for _, m := range t.members {
			add(m.typ)
		}
	}
	for name := range types {
		add(name)
	}
	s.commands = slices.Sorted(maps.Keys(s.from))
	s.structs = slices.Sorted(maps.Keys(structs))
	s.handles = slices.Sorted(maps.Keys(handles))
	slices.SortFunc(s.extensions, func(a, b *extension) int { return strings.Compare(a.name, b.name) })
	return s, nil
}

// definition is the command itself, or the one that it is another name for.
func (r *registry) definition(c *commandType) *commandType {
	for c.alias != "" {
		c = r.commands[c.alias]
	}
	return c
}

// holds evaluates "A+(B,C)": + is and, a comma is or, both of one rank and from
// left to right. Nothing always holds.
func holds(expression string, there func(string) bool) bool {
	if expression == "" {
		return true
	}
	v, _ := holdsFrom(expression, there)
	return v
}

func holdsFrom(s string, there func(string) bool) (value bool, rest string) {
	value, s = holdsTerm(s, there)
	for s != "" && s[0] != ')' {
		operator := s[0]
		var v bool
		v, s = holdsTerm(s[1:], there)
		if operator == '+' {
			value = value && v
		} else {
			value = value || v
		}
	}
	return value, s
}

func holdsTerm(s string, there func(string) bool) (value bool, rest string) {
	if inner, ok := strings.CutPrefix(s, "("); ok {
		value, rest = holdsFrom(inner, there)
		return value, strings.TrimPrefix(rest, ")")
	}
	end := strings.IndexAny(s, "+,)")
	if end < 0 {
		end = len(s)
	}
	return there(s[:end]), s[end:]
}
