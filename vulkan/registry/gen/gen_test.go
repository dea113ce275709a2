// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestGeneratedFilesAreCurrent(t *testing.T) {
	tables := carried(t)
	if have := recordedVersion(".."); have != tables.version {
		t.Skipf("the tables come from version %d, this machine's registry is %d", have, tables.version)
	}
	files, err := tables.files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		have, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what the generator writes: go generate ./vulkan/registry", name)
		}
	}
}

// Every extension of the registry was looked at: it is carried, or left out for
// a reason.
func TestEveryExtensionIsDecided(t *testing.T) {
	tables := carried(t)
	file, err := os.Open("../extensions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l, err := parseList(file)
	if err != nil {
		t.Fatal(err)
	}
	known := tables.builder.extensions
	for name, x := range known {
		why, left := l.left[name]
		switch {
		case slices.Contains(l.carried, name):
			if left {
				t.Errorf("%s is carried and left out", name)
			}
		case !left && x.node.attrs["supported"] != "disabled" && tables.version == recordedVersion(".."):
			t.Errorf("%s is neither carried nor left out", name)
		case left && why == "":
			t.Errorf("%s is left out without a reason", name)
		}
	}
	for name := range l.left {
		if known[name] == nil {
			t.Errorf("%s is left out, and the registry does not know it", name)
		}
	}
}

// What an extension needs is carried too, unless a version of the core has it.
func TestExtensionsHaveWhatTheyRequire(t *testing.T) {
	tables := carried(t)
	for _, x := range tables.extensions {
		for _, name := range strings.Split(x.node.attrs["requires"], ",") {
			if name != "" && !slices.ContainsFunc(tables.extensions, func(o *extension) bool { return o.name == name }) {
				t.Errorf("%s requires %s, which is not carried", x.name, name)
			}
		}
	}
}

// All commands of the versions carried are there, and what an extension may
// chain is.
func TestCoreIsComplete(t *testing.T) {
	tables := carried(t)
	have := make(map[string]command)
	for _, c := range tables.commands {
		have[c.name] = c
	}
	count := 0
	for _, f := range tables.builder.root.all("feature") {
		for _, require := range f.all("require") {
			for _, c := range require.all("command") {
				count++
				if have[c.name()].core == 0 {
					t.Errorf("%s of %s is not there", c.name(), f.name())
				}
			}
		}
	}
	if count < 215 {
		t.Errorf("the registry lists %d commands of the core, 1.0 to 1.3 had 215", count)
	}
	for _, x := range tables.extensions {
		for _, require := range x.node.all("require") {
			if len(require.attrs) > 0 {
				continue
			}
			for _, n := range require.all("type") {
				name := tables.builder.resolve(n.name())
				if tables.builder.registry.structs[name] != nil && tables.builder.structAt(name) == none {
					t.Errorf("%s of %s is not there", name, x.name)
				}
			}
		}
	}
}

func TestHolds(t *testing.T) {
	there := func(name string) bool { return name == "A" || name == "B" }
	for expression, want := range map[string]bool{
		"": true, "A": true, "X": false, "A+B": true, "A+X": false, "X,B": true, "X,Y": false,
		"(X,A)+B": true, "X+(A,B)": false, "A+(X,(Y,B))": true, "(A+X),Y": false,
	} {
		if got := holds(expression, there); got != want {
			t.Errorf("holds(%q) = %t", expression, got)
		}
	}
}

// What cannot be carried is refused, not carried wrongly.
func TestRefused(t *testing.T) {
	const head = `<registry><types>
		<type category="define">#define <name>VK_HEADER_VERSION</name> 7</type>
		<type category="handle" objtypeenum="O"><type>VK_DEFINE_HANDLE</type>(<name>VkInstance</name>)</type>`
	const tail = `</types><enums name="e"><enum name="O" value="1"/></enums><commands>
		<command><proto><type>void</type> <name>vkTest</name></proto><param>const <type>VkT</type>* <name>p</name></param></command></commands>
		<feature api="vulkan" name="VK_VERSION_1_0" number="1.0"><require><command name="vkTest"/></require></feature></registry>`
	for name, c := range map[string]struct{ text, want string }{
		"bit field":         {`<type category="struct" name="VkT"><member><type>uint32_t</type> <name>a</name>:24</member></type>`, "bit fields"},
		"union of pointers": {`<type category="union" name="VkT"><member>const <type>void</type>* <name>a</name></member></type>`, "unions"},
		"pointer to what":   {`<type category="struct" name="VkT"><member>const <type>void</type>* <name>a</name></member></type>`, "VkT.a"},
		"no length":         {`<type category="struct" name="VkT"><member len="n">const <type>char</type>* <name>a</name></member></type>`, "no n"},
		"unchecked":         {`<type category="struct" name="VkT"><member noautovalidity="true">const <type>char</type>* <name>a</name></member></type>`, "decide"},
		"pointers":          {`<type category="struct" name="VkT"><member>const <type>char</type>* const* <name>a</name></member></type>`, "pointers to pointers"},
		"array of pointers": {`<type category="struct" name="VkT"><member>const <type>char</type>* <name>a</name>[4]</member></type>`, "array of pointers"},
		"array of nothing":  {`<type category="struct" name="VkT"><member><type>char</type> <name>a</name>[N]</member></type>`, "array of"},
		"unknown type":      {`<type category="struct" name="VkT"><member><type>what</type> <name>a</name></member></type>`, "size of what"},
	} {
		_, err := read([]byte(head+c.text+tail), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, c.want)
		}
	}
	if _, err := read([]byte(head+tail), []byte("VK_KHR_nothing")); err == nil {
		t.Error("an unknown extension was carried")
	}
}
