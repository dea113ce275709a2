// SPDX-License-Identifier: Apache-2.0

package sharedfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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
		os.Symlink("in", filepath.Join(path, "link")),
		os.Symlink("sub", filepath.Join(path, "linked")),
		os.Link(filepath.Join(root, "out"), filepath.Join(path, "hard")),
		unix.Mkfifo(filepath.Join(path, "pipe"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	for rel, want := range map[string]error{
		"in": nil, "sub/in": nil, "sub/../in": nil,
		"../out": sharedfile.ErrEscape, "sub/../../out": sharedfile.ErrEscape, root + "/out": sharedfile.ErrEscape,
		"link": sharedfile.ErrEscape, "linked/in": sharedfile.ErrEscape,
		"hard": sharedfile.ErrNotRegular, "sub": sharedfile.ErrNotRegular, ".": sharedfile.ErrNotRegular, "pipe": sharedfile.ErrNotRegular,
		"none": fs.ErrNotExist, "": fs.ErrNotExist,
	} {
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
	if _, err := d.Create("link"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a link's name: %v", err)
	}
}

// In a directory that several users make files in, one who puts a lease beside
// another's file changes nothing for that: it is not removed, and has no lease.
func TestLeaseOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root makes files of others")
	}
	d := open(t, t.TempDir())
	for name, theirs := range map[string]string{"b1": "b1" + sharedfile.LeaseSuffix, "b2": "b2"} {
		f := create(t, d, name)
		if err := f.Chmod(0o644); err != nil {
			t.Fatal(err)
		}
		l, err := sharedfile.TakeLease(d, name, boot, nil)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(filepath.Dir(f.Name()), name+sharedfile.LeaseSuffix)
		record, err := os.ReadFile(path)
		if err := errors.Join(err, l.Close(), os.WriteFile(path, record, 0o666)); err != nil { // nobody holds it
			t.Fatal(err)
		}
		if _, err := sharedfile.ReadLease(d, name, f); err != nil {
			t.Errorf("%s: its owner's lease: %v", name, err)
		}
		if err := os.Chown(filepath.Join(filepath.Dir(path), theirs), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := sharedfile.ReadLease(d, name, f); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: another user's lease: %v", name, err)
		}
	}
	if removed, err := sharedfile.RemoveAbandoned(d, "b", boot); err != nil || len(removed) != 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
}
