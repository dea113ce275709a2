// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"strings"
)

// cFile writes the driver library's entry points: a C function per command that
// packs its arguments into words. It needs no Vulkan headers: to the calling
// convention a structure's pointer is a pointer, and an enumerant a uint32_t.
func (t *tables) cFile() ([]byte, error) {
	b := t.builder
	var out bytes.Buffer
	fmt.Fprintf(&out, "// SPDX-License-Identifier: Apache-2.0\n\n// %s\n\n", notice)
	out.WriteString(`#include "entry.h"

#include <string.h>

#define WORD(p) ((uint64_t)(uintptr_t)(p))

static inline uint64_t floatWord(float f) {
	uint32_t bits;
	memcpy(&bits, &f, sizeof bits);
	return bits;
}
`)
	for i, c := range t.commands {
		if c.returns == "Procedure" {
			continue // answered in C: entry.c
		}
		target := i
		if c.alias != none {
			target = c.alias
		}
		result, _ := b.primitive(c.result)
		switch c.returns {
		case "Nothing":
			result = "void"
		case "Result":
			result = "int32_t"
		}
		var params, words []string
		definition := b.definition(b.commands[c.name])
		for j, p := range c.params {
			typ, word := "const void *", fmt.Sprintf("WORD(p%d)", j)
			if d := definition.params[j]; !p.pointer && p.kind == "Plain" {
				primitive, ok := b.primitive(d.typ)
				if !ok {
					return nil, fmt.Errorf("%s.%s: no C type for %s", c.name, p.name, d.typ)
				}
				typ = primitive + " "
				switch primitive {
				case "float":
					word = fmt.Sprintf("floatWord(p%d)", j)
				case "int32_t", "int64_t":
					word = fmt.Sprintf("(uint64_t)(int64_t)p%d", j)
				default:
					word = fmt.Sprintf("p%d", j)
				}
			} else if !p.pointer && p.kind == "Handle" && !t.handles[p.typ].dispatchable {
				typ, word = "uint64_t ", fmt.Sprintf("p%d", j)
			}
			params = append(params, fmt.Sprintf("%sp%d", typ, j))
			words = append(words, fmt.Sprintf("a[%d] = %s;", j, word))
		}
		fmt.Fprintf(&out, "\nstatic %s %s(%s) {\n\tuint64_t a[16];\n", result, c.name, strings.Join(params, ", "))
		for _, w := range words {
			fmt.Fprintf(&out, "\t%s\n", w)
		}
		carry := "carried"
		if c.first == none {
			carry = "begun"
		}
		call := fmt.Sprintf("%s(%d, (uintptr_t)a)", carry, target)
		if result == "void" {
			fmt.Fprintf(&out, "\t%s;\n}\n", call)
		} else {
			fmt.Fprintf(&out, "\treturn (%s)%s;\n}\n", result, call)
		}
	}
	names := fnv.New64a()
	for _, c := range t.commands {
		fmt.Fprintln(names, c.name)
	}
	fmt.Fprintf(&out, "\nconst char carrierName[] = \"vk_icdMemspanCall%016x\";\n", names.Sum64())
	out.WriteString("\nconst struct entry entries[] = {\n")
	for _, c := range t.commands {
		level := "DEVICE"
		switch {
		case c.first == none:
			level = "GLOBAL"
		case t.handles[c.first].name == "VkInstance":
			level = "INSTANCE"
		case t.handles[c.first].name == "VkPhysicalDevice":
			level = "PHYSICAL_DEVICE"
		}
		if c.name == "vkGetInstanceProcAddr" {
			level = "GLOBAL" // its instance may be null
		}
		core := 0
		if c.core == 10 { // others are asked for
			core = 1
		}
		fmt.Fprintf(&out, "\t{\"%s\", (procedure)%s, %s, %d},\n", c.name, c.name, level, core)
	}
	out.WriteString("};\n\nconst size_t entryCount = sizeof entries / sizeof entries[0];\n")
	for i, c := range t.commands {
		if c.name == "vkGetDeviceProcAddr" {
			fmt.Fprintf(&out, `
int deviceHas(void *device, const char *name) {
	uint64_t a[16];
	a[0] = WORD(device);
	a[1] = WORD(name);
	return carried(%d, (uintptr_t)a) == 1;
}
`, i)
		}
	}
	return out.Bytes(), nil
}
