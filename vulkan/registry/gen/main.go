// SPDX-License-Identifier: Apache-2.0

// Command gen writes what memspan knows of Vulkan from the Khronos registry:
// the tables of package registry, and the entry points of the driver library.
// It runs in the package's directory (go generate); which extensions are
// carried stands in extensions.txt.
//
// Where there is no vk.xml (Debian: libvulkan-dev), or another version than
// the tables come from, it says so and changes nothing: -force takes it.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// defaultRegistry is where Debian's libvulkan-dev puts it.
const defaultRegistry = "/usr/share/vulkan/registry/vk.xml"

// The files written, from package registry's directory.
const (
	tablesFile      = "tables_gen.go"
	trampolinesFile = "../icd/trampolines_gen.c"
)

func main() {
	from := flag.String("registry", defaultRegistry, "the registry to read")
	force := flag.Bool("force", false, "take a registry of another version")
	flag.Parse()
	if err := run(*from, *force); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(from string, force bool) error {
	text, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) && !force {
		fmt.Fprintf(os.Stderr, "gen: no %s: the tables stay as they are\n", from)
		return nil
	}
	if err != nil {
		return err
	}
	extensions, err := os.ReadFile("extensions.txt")
	if err != nil {
		return err
	}
	t, err := read(text, extensions)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if have := recordedVersion("."); have != 0 && have != t.version && !force {
		fmt.Fprintf(os.Stderr, "gen: the tables come from version %d, %s is %d: they stay as they are (-force takes it)\n", have, from, t.version)
		return nil
	}
	files, err := t.files()
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.FromSlash(name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// read makes tables of a registry and a list of extensions.
func read(text, extensions []byte) (*tables, error) {
	root, err := parseXML(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	r, err := newRegistry(root)
	if err != nil {
		return nil, err
	}
	l, err := parseList(bytes.NewReader(extensions))
	if err != nil {
		return nil, fmt.Errorf("extensions.txt: %w", err)
	}
	s, err := r.choose(l.carried)
	if err != nil {
		return nil, err
	}
	return r.build(s)
}

// files are what is generated, by path from package registry's directory.
func (t *tables) files() (map[string][]byte, error) {
	goFile, err := t.goFile()
	if err != nil {
		return nil, err
	}
	cFile, err := t.cFile()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{tablesFile: goFile, trampolinesFile: cFile}, nil
}

var versionLine = regexp.MustCompile(`(?m)^const RegistryVersion = (\d+)$`)

// recordedVersion is that of the tables in package registry's directory, or 0
// if there are none.
func recordedVersion(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, tablesFile))
	if err != nil {
		return 0
	}
	m := versionLine.FindSubmatch(text)
	if m == nil {
		return 0
	}
	v, _ := strconv.Atoi(string(m[1]))
	return v
}
