// SPDX-License-Identifier: Apache-2.0

package sharedfile_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/sharedfile"
)

func TestOpenStaysBeneath(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "dir")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(path, "sub"), 0o700),
		os.WriteFile(filepath.Join(root, "out"), nil, 0o600),
		os.WriteFile(filepath.Join(path, "in"), nil, 0o600),
		os.WriteFile(filepath.Join(path, "sub", "in"), nil, 0o600),
		os.Link(filepath.Join(root, "out"), filepath.Join(path, "hard")),
	); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	cases := map[string]error{
		"in": nil, "IN": nil, "sub/in": nil, `sub\in`: nil, "sub/../in": nil,
		"../out": sharedfile.ErrEscape, "sub/../../out": sharedfile.ErrEscape, root + `\out`: sharedfile.ErrEscape,
		`\\machine\share\in`: sharedfile.ErrEscape, `\\?\C:\in`: sharedfile.ErrEscape, `\\.\NUL`: sharedfile.ErrEscape, `\in`: sharedfile.ErrEscape,
		"C:in": sharedfile.ErrEscape, "in:stream": sharedfile.ErrEscape, "in::$DATA": sharedfile.ErrEscape, "sub:$I30:$INDEX_ALLOCATION/in": sharedfile.ErrEscape,
		"NUL": sharedfile.ErrEscape, "con": sharedfile.ErrEscape, "sub/COM1": sharedfile.ErrEscape, "CONIN$": sharedfile.ErrEscape,
		"hard": sharedfile.ErrNotRegular, "sub": sharedfile.ErrNotRegular, ".": sharedfile.ErrNotRegular,
		"none": fs.ErrNotExist, "none/in": fs.ErrNotExist, "": fs.ErrNotExist,
	}
	// Not every system makes them, or lets everybody make them.
	err := os.Symlink("in", filepath.Join(path, "link"))
	if err == nil {
		_, err = os.Readlink(filepath.Join(path, "link"))
	}
	if err != nil {
		t.Logf("no links here: %v", err)
	} else {
		cases["link"] = sharedfile.ErrEscape
	}
	if out, err := exec.Command("cmd", "/c", "mklink", "/j", filepath.Join(path, "junction"), filepath.Join(path, "sub")).CombinedOutput(); err != nil {
		t.Logf("no junctions here: %v: %s", err, out)
	} else if _, err := os.Lstat(filepath.Join(path, "junction")); err != nil {
		t.Logf("no junctions here: %v", err)
	} else {
		cases["junction/in"], cases["junction"] = sharedfile.ErrEscape, sharedfile.ErrEscape
	}
	for rel, want := range cases {
		for _, writable := range []bool{false, true} {
			f, err := d.Open(rel, writable)
			if !errors.Is(err, want) {
				t.Errorf("%q, writable %v: %v, want %v", rel, writable, err, want)
			}
			if err == nil {
				f.Close()
			}
		}
	}
	if _, err := d.Create("in"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
}

// A file cannot be cut short while it is mapped, nor mapped longer than it is.
func TestMappedFilesStay(t *testing.T) {
	f := create(t, open(t, t.TempDir()), "f")
	if err := sharedfile.Reserve(f, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := sharedfile.Map(f, 1<<21, true); err == nil {
		t.Error("a file was mapped for more than its length")
	}
	if info, err := f.Stat(); err != nil || info.Size() != 1<<20 {
		t.Errorf("mapping has made it longer: %v, %v", info, err)
	}
	mem, err := sharedfile.Map(f, 1<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 12); err == nil {
		t.Error("a mapped file was cut short")
	}
	if err := memfd.Guard(func() { mem[1<<20-1]++ }); err != nil {
		t.Error(err)
	}
	if err := sharedfile.Unmap(mem); err != nil {
		t.Error(err)
	}
	var fault *memfd.FaultError
	if err := memfd.Guard(func() { mem[0]++ }); !errors.As(err, &fault) {
		t.Errorf("memory that is gone: %v", err)
	}
}

func TestOwner(t *testing.T) {
	f := create(t, open(t, t.TempDir()), "f")
	if uid, err := sharedfile.Owner(f); err != nil || uid != os.Getuid() {
		t.Errorf("the owner of a new file is %d, %v, want %d", uid, err, os.Getuid())
	}
}

func TestBootID(t *testing.T) {
	one, err := sharedfile.BootID()
	two, err2 := sharedfile.BootID()
	if err != nil || err2 != nil || one != two || one == "" || len(one) > 48 {
		t.Errorf("%q, %v; %q, %v", one, err, two, err2)
	}
}
