// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/memspan/memspan"

// layers says what each package of the module may import of it. A pattern that
// ends in /... stands for the package and all below it. Arrows run downward
// only: what a package may import stands above it here.
var layers = []struct {
	packages string
	may      []string
}{
	{"internal/memlimit", nil},
	{"internal/...", []string{"internal/..."}},
	{"coherency", nil},
	{"residency", nil},
	{"sparsevec", nil},
	{"wire", []string{"internal/..."}},
	{"wire/control", []string{"coherency"}}, // its vocabulary
	{"wire/dial", []string{"internal/...", "wire", "wire/control"}},
	{"tier", []string{"internal/...", "coherency"}},
	{"tier/...", []string{"internal/...", "coherency", "wire", "tier"}},
	{"mapping", []string{"internal/...", "wire"}},
	{"span", []string{"internal/...", "coherency", "residency", "tier/..."}},
	{"vulkan/registry", nil},
	{"vulkan/registry/...", []string{"vulkan/registry"}}, // the generator
	{"vulkan/codec", []string{"vulkan/registry"}},
	{"vulkan/stream", []string{"internal/...", "wire"}},
	{"vulkan/handover", []string{"internal/...", "wire"}},
	{"vulkan/...", []string{"internal/...", "wire/...", "mapping", "vulkan/..."}},
	{"sharedbuf", []string{"internal/...", "wire", "wire/dial"}},
	{"sharedbuf/...", []string{"internal/...", "sharedbuf"}}, // the host's side
	{"surface", []string{"internal/..."}},
	{"surface/...", []string{"internal/...", "wire/...", "surface"}}, // the puller
	{"", []string{"internal/...", "coherency", "wire/...", "mapping", "surface/..."}},
	{"server", []string{"internal/...", "coherency", "wire/...", "tier/...", "span", "sharedbuf/...", "surface/...", "vulkan/handover"}},
	{"cmd/...", []string{"..."}},
	{"test/...", []string{"..."}},
	{"examples/...", []string{"", "server", "surface/..."}}, // what others can import too
}

func matches(pattern, pkg string) bool {
	prefix, all := strings.CutSuffix(pattern, "...")
	if !all {
		return pattern == pkg
	}
	return strings.HasPrefix(pkg+"/", prefix)
}

// A sourceFile is a Go file of the module, whatever system it is for.
type sourceFile struct {
	path   string // from the module's root
	pkg    string // directory, "" for the root
	text   []byte
	syntax *ast.File
}

func (f *sourceFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

func (f *sourceFile) imports() []string {
	var paths []string
	for _, spec := range f.syntax.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		paths = append(paths, p)
	}
	return paths
}

func sources(t *testing.T) []*sourceFile {
	t.Helper()
	var files []*sourceFile
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		name := d.Name()
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (name == "testdata" || name[0] == '.' || name[0] == '_'):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), p, text, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(p))
		if pkg == "." {
			pkg = ""
		}
		files = append(files, &sourceFile{filepath.ToSlash(p), pkg, text, syntax})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestFilesAreLicensedAndShort(t *testing.T) {
	const maxLines = 600
	for _, f := range sources(t) {
		if ast.IsGenerated(f.syntax) {
			continue
		}
		if !bytes.HasPrefix(f.text, []byte("// SPDX-License-Identifier: Apache-2.0\n")) {
			t.Errorf("%s: the first line is not the licence", f.path)
		}
		if n := bytes.Count(f.text, []byte("\n")); n >= maxLines {
			t.Errorf("%s: %d lines, want less than %d", f.path, n, maxLines)
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	documented := make(map[string]bool)
	for _, f := range sources(t) {
		if !f.isTest() {
			documented[f.pkg] = documented[f.pkg] || f.syntax.Doc != nil
		}
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %q has no doc comment", pkg)
		}
	}
}

func TestImportsRunDownward(t *testing.T) {
	for _, f := range sources(t) {
		layer := slices.IndexFunc(layers, func(l struct {
			packages string
			may      []string
		}) bool {
			return matches(l.packages, f.pkg)
		})
		if layer < 0 {
			t.Errorf("%s: package %q has no place in the table of layers", f.path, f.pkg)
			continue
		}
		if f.isTest() {
			continue
		}
		for _, imported := range f.imports() {
			pkg, ours := strings.CutPrefix(imported, module)
			pkg = strings.TrimPrefix(pkg, "/")
			if !ours || pkg == f.pkg {
				continue
			}
			if !slices.ContainsFunc(layers[layer].may, func(p string) bool { return matches(p, pkg) }) {
				t.Errorf("%s: package %q may not import %q", f.path, f.pkg, pkg)
			}
		}
	}
}

// Unsafe code and system calls have their rooms.
func TestUnsafeHasItsPlace(t *testing.T) {
	for _, f := range sources(t) {
		room := matches("internal/...", f.pkg)
		for _, imported := range f.imports() {
			switch {
			case imported == "unsafe":
				if !room && !matches("tier/...", f.pkg) && f.pkg != "mapping" && !matches("vulkan/...", f.pkg) {
					t.Errorf("%s: unsafe code does not belong in package %q", f.path, f.pkg)
				}
				if name := path.Base(f.path); !strings.Contains(name, "_unsafe.") && !strings.Contains(name, "_unsafe_") {
					t.Errorf("%s: the name does not say that the file is unsafe", f.path)
				}
			case strings.HasPrefix(imported, "golang.org/x/sys/") && !room && !f.isTest():
				t.Errorf("%s: system calls belong in internal packages", f.path)
			}
		}
	}
}

// Programs that import the client get little else: what compresses on the wire, and
// what surfaces are made of.
func TestClientDependsOnLittle(t *testing.T) {
	allowed := []string{
		module, "golang.org/x/sys", "github.com/klauspost/compress",
		"github.com/zeebo/blake3", "github.com/klauspost/cpuid/v2", "golang.org/x/sync", "golang.org/x/time",
	}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if !slices.ContainsFunc(allowed, func(m string) bool {
			return dep == m || strings.HasPrefix(dep, m+"/")
		}) {
			t.Errorf("package memspan depends on %s", dep)
		}
	}
}
