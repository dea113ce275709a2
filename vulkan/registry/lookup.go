// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"cmp"
	"slices"
	"strings"
)

// CommandByName finds a command: its index in Commands, or None.
func CommandByName(name string) Index {
	i, ok := slices.BinarySearchFunc(Commands, name, func(c Command, name string) int { return strings.Compare(c.Name, name) })
	return at(i, ok)
}

// StructByName finds a structure or union: its index in Structs, or None. Names
// that are other names of a structure are not known.
func StructByName(name string) Index {
	i, ok := slices.BinarySearchFunc(Structs, name, func(s Struct, name string) int { return strings.Compare(s.Name, name) })
	return at(i, ok)
}

// HandleByName finds a handle type: its index in Handles, or None.
func HandleByName(name string) Index {
	i, ok := slices.BinarySearchFunc(Handles, name, func(h HandleType, name string) int { return strings.Compare(h.Name, name) })
	return at(i, ok)
}

// StructBySType finds the structure that a value of sType says, or None.
func StructBySType(sType uint32) Index {
	i, ok := slices.BinarySearchFunc(sTypes, sType, func(s typed, sType uint32) int { return cmp.Compare(s.sType, sType) })
	if !ok {
		return None
	}
	return sTypes[i].at
}

// ExtensionByName finds an extension that memspan carries.
func ExtensionByName(name string) (Extension, bool) {
	i, ok := slices.BinarySearchFunc(Extensions, name, func(x Extension, name string) int { return strings.Compare(x.Name, name) })
	if !ok {
		return Extension{}, false
	}
	return Extensions[i], true
}

// typed is a structure and its sType.
type typed struct {
	sType uint32
	at    Index
}

func at(i int, ok bool) Index {
	if !ok {
		return None
	}
	return Index(i)
}
