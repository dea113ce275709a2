// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// carried reads the machine's registry, or skips.
func carried(t *testing.T) *tables {
	t.Helper()
	text, err := os.ReadFile(defaultRegistry)
	if err != nil {
		t.Skipf("no registry (Debian: libvulkan-dev): %v", err)
	}
	extensions, err := os.ReadFile("../extensions.txt")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := read(text, extensions)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// runC compiles a program and gives what it prints.
func runC(t *testing.T, program []byte) []byte {
	t.Helper()
	compiler := os.Getenv("CC")
	if compiler == "" {
		compiler = "cc"
	}
	if _, err := exec.LookPath(compiler); err != nil {
		t.Skipf("no C compiler: %v", err)
	}
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "program.c"), filepath.Join(dir, "program")
	if err := os.WriteFile(source, program, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(compiler, "-w", "-o", binary, source).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", compiler, err, bytes.TrimSpace(out))
	}
	out, err := exec.Command(binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What a C compiler makes of every structure is what the tables say: sizes,
// offsets and sizes of all members, sizes behind pointers, values of sType,
// object types and constants of lengths.
func TestLayoutIsTheCompilers(t *testing.T) {
	tables := carried(t)
	b := tables.builder
	if out := runC(t, []byte(`
#if defined(__has_include)
#if __has_include(<vulkan/vulkan_core.h>)
#include <vulkan/vulkan_core.h>
#define VERSION VK_HEADER_VERSION
#endif
#endif
#ifndef VERSION
#define VERSION 0
#endif
int printf(const char *, ...);
int main(void) { printf("%d", VERSION); }`)); string(out) != fmt.Sprint(tables.version) {
		t.Skipf("the headers are of version %s (0: none), the registry of %d", out, tables.version)
	}

	var program, want bytes.Buffer
	program.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <vulkan/vulkan_core.h>\nint main(void) {\n")
	say := func(what string, value any, expression string) {
		fmt.Fprintf(&program, "printf(\"%s %%lld\\n\", (long long)(%s));\n", what, expression)
		fmt.Fprintf(&want, "%s %d\n", what, value)
	}
	pointers := 0
	for _, s := range tables.structs {
		def := b.structNamed(s.name)
		l, err := b.layoutOf(def)
		if err != nil {
			t.Fatal(err)
		}
		say("sizeof "+s.name, s.size, fmt.Sprintf("sizeof(%s)", s.name))
		listed := make(map[string]member)
		for _, m := range s.members {
			listed[m.name] = m
		}
		for i, d := range def.members {
			at := s.name + "." + d.name
			say("offsetof "+at, l.offsets[i], fmt.Sprintf("offsetof(%s, %s)", s.name, d.name))
			size, _, err := b.elementSize(d)
			if err != nil {
				t.Fatal(err)
			}
			say("sizeof "+at, size*product(d.array), fmt.Sprintf("sizeof(((%s *)0)->%s)", s.name, d.name))
			if d.name == "sType" {
				say("sType "+s.name, s.sType, d.values)
			}
			m, ok := listed[d.name]
			if !ok {
				if d.pointers > 0 {
					t.Errorf("%s is a pointer and not listed", at)
				}
				continue
			}
			delete(listed, d.name)
			if m.offset != l.offsets[i] || m.size != size*product(d.array) {
				t.Errorf("%s: listed with offset %d, size %d; is at %d with %d", at, m.offset, m.size, l.offsets[i], size)
			}
			if m.kind == "Pointer" && d.typ != "void" {
				pointers++
				say("behind "+at, m.elemSize, fmt.Sprintf("sizeof(*((%s *)0)->%s)", s.name, d.name))
			}
		}
		if len(listed) > 0 {
			t.Errorf("%s: listed and not there: %v", s.name, listed)
		}
	}
	for _, h := range tables.handles {
		say("object "+h.name, h.object, b.handles[h.name].object)
		say("sizeof "+h.name, 8, fmt.Sprintf("sizeof(%s)", h.name))
	}
	for _, c := range tables.commands {
		for j, d := range b.definition(b.commands[c.name]).params {
			if m := c.params[j]; m.kind == "Pointer" && d.typ != "void" && m.elem != "Strings" {
				say("behind "+c.name+"."+d.name, m.elemSize, fmt.Sprintf("sizeof(%s)", d.typ))
			} else if m.kind == "Plain" {
				say("sizeof "+c.name+"."+d.name, m.size, fmt.Sprintf("sizeof(%s)", d.typ))
			}
		}
	}
	program.WriteString("}\n")
	got := strings.Split(string(runC(t, program.Bytes())), "\n")
	lines := strings.Split(want.String(), "\n")
	if len(got) != len(lines) {
		t.Fatalf("the program printed %d lines, want %d", len(got), len(lines))
	}
	for i := range lines {
		if got[i] != lines[i] {
			t.Errorf("C says %q, the tables %q", got[i], lines[i])
		}
	}
	t.Logf("%d structures, %d facts, %d pointers in structures", len(tables.structs), len(lines)-1, pointers)
}
