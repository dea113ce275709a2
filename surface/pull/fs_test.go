// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/memspan/memspan/surface/pull"
)

func TestFS(t *testing.T) {
	surfaces := make(map[string]*pull.Surface)
	for name, size := range map[string]int{"a": 0, "b.bin": 100*kib + 5} {
		h := expose(t, random(size), 16*kib, nil)
		surfaces[name] = open(t, h.rooted(h.tcp()), pull.Options{})
	}
	files, err := pull.FS(surfaces)
	if err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(files, "a", "b.bin"); err != nil {
		t.Error(err)
	}
	if text, err := fs.ReadFile(files, "b.bin"); err != nil || string(text) != string(random(100*kib+5)) {
		t.Errorf("other bytes, or %v", err)
	}
	if _, err := fs.ReadFile(files, "c"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/a"} {
		if _, err := pull.FS(map[string]*pull.Surface{name: nil}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
