// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
)

// A daemon checks its own data directory, however it is called, and no other.
func TestCheck(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	srv := serve(t, server.Config{Data: dir})
	c := dial(t, srv.unix, nil)
	s, err := c.Alloc(t.Context(), memspan.SpanConfig{Name: "kept", Size: 3 << 20, Tier: memspan.On(memspan.Disk)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(t.Context(), make([]byte, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link} {
		got, err := c.Check(t.Context(), path)
		if err != nil || got.Directory != dir || got.Spans != 1 || got.Blocks != 1 || got.Bytes != 1<<20 || len(got.Faults) != 0 {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	for _, path := range []string{"", filepath.Dir(dir), filepath.Join(dir, "none")} {
		if _, err := c.Check(t.Context(), path); !errors.Is(err, memspan.ErrNotFound) {
			t.Errorf("%q: %v", path, err)
		}
	}
	without := dial(t, serve(t, server.Config{}).unix, nil)
	if _, err := without.Check(t.Context(), dir); !errors.Is(err, memspan.ErrTierAbsent) {
		t.Errorf("of a daemon without a data directory: %v", err)
	}

	// A block that is damaged is named.
	f, err := os.OpenFile(filepath.Join(dir, "blocks"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), 100_000); err != nil {
		t.Fatal(err)
	}
	got, err := c.Check(t.Context(), dir)
	if err != nil || len(got.Faults) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if f := got.Faults[0]; f.Span != "kept" || f.Block == nil || *f.Block != 1 || f.File != "blocks" || f.Repaired || f.Repair == "" {
		t.Errorf("%+v", f)
	}
}
