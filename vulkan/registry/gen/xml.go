// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A node is an element of the registry, or a piece of text between two (then
// tag is empty). The registry mixes C with elements, so the order counts.
type node struct {
	tag      string
	attrs    map[string]string
	text     string
	children []*node
}

// parseXML reads a document and gives its root. What is marked for another API
// than Vulkan, and comments, are left out.
func parseXML(r io.Reader) (*node, error) {
	d := xml.NewDecoder(r)
	root := &node{}
	stack := []*node{root}
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		top := stack[len(stack)-1]
		switch t := token.(type) {
		case xml.StartElement:
			n := &node{tag: t.Name.Local, attrs: make(map[string]string, len(t.Attr))}
			for _, a := range t.Attr {
				n.attrs[a.Name.Local] = a.Value
			}
			if api, ok := n.attrs["api"]; n.tag == "comment" || ok && !slices.Contains(strings.Split(api, ","), "vulkan") {
				if err := d.Skip(); err != nil {
					return nil, err
				}
				continue
			}
			top.children = append(top.children, n)
			stack = append(stack, n)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			top.children = append(top.children, &node{text: string(t)})
		}
	}
	for _, n := range root.children {
		if n.tag == "registry" {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no <registry> element")
}

// all gives the children with a tag.
func (n *node) all(tag string) []*node {
	var found []*node
	for _, c := range n.children {
		if c.tag == tag {
			found = append(found, c)
		}
	}
	return found
}

// child gives the first child with a tag, or an empty node.
func (n *node) child(tag string) *node {
	for _, c := range n.children {
		if c.tag == tag {
			return c
		}
	}
	return &node{}
}

// name is the name attribute, or what the name element says.
func (n *node) name() string {
	if s, ok := n.attrs["name"]; ok {
		return s
	}
	return n.child("name").content()
}

// content is all text inside.
func (n *node) content() string {
	var b strings.Builder
	b.WriteString(n.text)
	for _, c := range n.children {
		b.WriteString(c.content())
	}
	return b.String()
}

// true says whether the first of an attribute's comma-separated values is
// "true": those after it are about what is behind a pointer.
func (n *node) true(attr string) bool {
	first, _, _ := strings.Cut(n.attrs[attr], ",")
	return first == "true"
}
