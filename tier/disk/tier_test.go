// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/tier/tiertest"
)

func TestConformance(t *testing.T) {
	tiertest.Run(t, func(t *testing.T) tier.Tier {
		return openTier(t, disk.Config{Dir: t.TempDir(), Budget: 32 << 20})
	})
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// change commits bytes of value v at off of a block.
func change(t *testing.T, d *disk.Tier, s *disk.Space, b, off int, m tier.Memory, v byte, version uint64) {
	t.Helper()
	x := d.Begin()
	x.Put(stage(t, s, b, off, m, v), version)
	ok(t, x.Commit(ctx))
}

func stage(t *testing.T, s *disk.Space, b, off int, m tier.Memory, v byte) *disk.Staged {
	t.Helper()
	for i := range m.Bytes() {
		m.Bytes()[i] = v
	}
	st, err := s.Stage(ctx, b, []disk.Run{{Offset: uint32(off), Length: uint32(m.Len)}}, m)
	ok(t, err)
	return st
}

func TestOneOwner(t *testing.T) {
	cfg := disk.Config{Dir: filepath.Join(t.TempDir(), "data")}
	d := openTier(t, cfg)
	_, err := disk.Open(ctx, cfg)
	if !errors.Is(err, disk.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second tier: %v", err)
	}
	if _, err := disk.Check(ctx, cfg.Dir, false); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("a check of a directory in use: %v", err)
	}
	ok(t, d.Close())
	ok(t, d.Close())
	if err := d.Begin().Commit(ctx); err == nil {
		t.Error("a closed tier commits")
	}
	info, err := os.Stat(cfg.Dir)
	ok(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", info.Mode())
	}
	ok(t, openTier(t, cfg).Close())
}

func TestDirectoriesOfOthers(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600))
	if _, err := disk.Open(ctx, disk.Config{Dir: dir}); !errors.Is(err, disk.ErrFormat) {
		t.Errorf("a directory with other files: %v", err)
	}
	dir = t.TempDir()
	ok(t, openTier(t, disk.Config{Dir: dir}).Close())
	path := filepath.Join(dir, "format")
	text, err := os.ReadFile(path)
	ok(t, err)
	ok(t, os.WriteFile(path, []byte("something else\n"), 0o600))
	if _, err := disk.Open(ctx, disk.Config{Dir: dir}); !errors.Is(err, disk.ErrFormat) {
		t.Errorf("another's format: %v", err)
	}
	ok(t, os.WriteFile(path, text, 0o600))
	ok(t, openTier(t, disk.Config{Dir: dir}).Close())
	if _, err := disk.Open(ctx, disk.Config{}); err == nil {
		t.Error("no directory was opened")
	}
	if _, err := disk.Check(ctx, filepath.Join(dir, "none"), true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a check of no directory: %v", err)
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	if os.Geteuid() == 0 {
		// Nothing is forbidden to root: another user tries.
		cmd := exec.Command(os.Args[0], "-test.run=^TestReadOnlyDirectory$")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
		if out, err := cmd.CombinedOutput(); errors.Is(err, os.ErrPermission) {
			t.Skip("the test's program cannot be run by another user")
		} else if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	ok(t, os.Chmod(dir, 0o500))
	_, err := disk.Open(ctx, disk.Config{Dir: dir})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "must be writable") {
		t.Errorf("a directory that cannot be written: %v", err)
	}
}

// Many commits at once share what they wait for, and a context ends waiting.
func TestManyCommits(t *testing.T) {
	d := openTier(t, disk.Config{Dir: t.TempDir()})
	defer d.Close()
	s := newSpan(t, d, "s", 64<<20)
	results := make(chan error)
	for w := range 16 {
		m := region(t, 5000)
		go func() {
			for i := range 20 {
				st, err := s.Stage(ctx, w, []disk.Run{{Offset: uint32(i * 5000), Length: 5000}}, m)
				if err != nil {
					results <- err
					return
				}
				x := d.Begin()
				x.Put(st, uint64(i+1))
				c, cancel := context.WithCancel(ctx)
				if i%5 == 4 {
					go cancel()
				}
				err = x.Commit(c)
				cancel()
				if err != nil && !errors.Is(err, context.Canceled) {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	for range 16 {
		ok(t, <-results)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	x := d.Begin()
	x.Epoch(1)
	if err := x.Commit(ended); !errors.Is(err, context.Canceled) || d.Epoch() != 0 {
		t.Errorf("commit with a context that has ended: %v, epoch %d", err, d.Epoch())
	}
}

func TestStale(t *testing.T) {
	d := openTier(t, disk.Config{Dir: t.TempDir()})
	defer d.Close()
	s := newSpan(t, d, "s", 1<<20)
	big, small := region(t, 100<<10), region(t, 100)
	change(t, d, s, 0, 0, small, 1, 1)
	merged := stage(t, s, 0, 1000, big, 2)
	patch := stage(t, s, 0, 50, small, 3)
	if merged.Stale() || patch.Stale() {
		t.Error("stale from the beginning")
	}
	change(t, d, s, 0, 500_000, small, 4, 2)
	if !merged.Stale() || patch.Stale() {
		t.Errorf("stale: merged %v, patch %v", merged.Stale(), patch.Stale())
	}
	fresh, err := merged.Restage(ctx)
	ok(t, err)
	x := d.Begin()
	x.Put(fresh, 3)
	ok(t, x.Commit(ctx))
	x = d.Begin()
	x.Put(patch, 4)
	ok(t, x.Commit(ctx))
	want := make([]byte, 1<<20)
	for _, w := range []struct {
		off, n int
		v      byte
	}{{0, 100, 1}, {500_000, 100, 4}, {1000, 100 << 10, 2}, {50, 100, 3}} {
		for i := range w.n {
			want[w.off+i] = w.v
		}
	}
	holds(t, s, 0, want, region(t, 1<<20))

	// Put all the same, it is refused, and nothing with it.
	stale := stage(t, s, 0, 2000, big, 5)
	change(t, d, s, 0, 50, small, 3, 5)
	x = d.Begin()
	x.Epoch(9)
	x.Put(stale, 6)
	if err := x.Commit(ctx); !errors.Is(err, disk.ErrStale) || d.Epoch() != 0 {
		t.Errorf("commit of stale bytes: %v, epoch %d", err, d.Epoch())
	}
	holds(t, s, 0, want, region(t, 1<<20))
}

func TestWrongTransactions(t *testing.T) {
	d := openTier(t, disk.Config{Dir: t.TempDir()})
	defer d.Close()
	s, m := newSpan(t, d, "s", 1<<20), region(t, 100)
	unknown, err := d.Durable(record("unknown", 1<<20))
	ok(t, err)
	gone := newSpan(t, d, "gone", 1<<20)
	late := stage(t, gone, 0, 0, m, 1)
	x := d.Begin()
	rec := d.Recovered()[1]
	x.Delete(rec.ID)
	ok(t, x.Commit(ctx))
	swap, err := d.Open(ctx, "swap", 1<<20, 0)
	ok(t, err)
	for what, fill := range map[string]func(x *disk.Tx){
		"a put to no durable span": func(x *disk.Tx) { x.Put(stage(t, unknown, 0, 0, m, 1), 1) },
		"a put to a deleted span":  func(x *disk.Tx) { x.Put(late, 1) },
		"a second put":             func(x *disk.Tx) { st := stage(t, s, 0, 0, m, 1); x.Put(st, 1); x.Put(st, 2) },
		"a mark of no block":       func(x *disk.Tx) { x.Mark(s, 1, 1) },
		"a mark of a swap space":   func(x *disk.Tx) { x.Mark(swap.(*disk.Space), 0, 1) },
		"another size":             func(x *disk.Tx) { r := d.Recovered()[0]; r.Size++; x.Set(r) },
		"a long name":              func(x *disk.Tx) { r := d.Recovered()[0]; r.Name = strings.Repeat("x", 2000); x.Set(r) },
	} {
		x := d.Begin()
		x.Epoch(5)
		fill(x)
		if err := x.Commit(ctx); err == nil || d.Epoch() != 0 {
			t.Errorf("%s: %v, epoch %d", what, err, d.Epoch())
		}
		if err := x.Commit(ctx); err == nil {
			t.Errorf("%s: committed again", what)
		}
	}
	if d.Err() != nil {
		t.Errorf("the tier failed: %v", d.Err())
	}
	if _, err := d.Durable(d.Recovered()[0]); err == nil {
		t.Error("a second space of a span was opened")
	}
}

// Nothing of swap space is left after a restart, nor its room.
func TestSwapIsForgotten(t *testing.T) {
	cfg := disk.Config{Dir: t.TempDir()}
	d := openTier(t, cfg)
	s := newSpan(t, d, "kept", 2<<20)
	m := region(t, 1<<20)
	swap, err := d.Open(ctx, "swap", 8<<20, 0)
	ok(t, err)
	for b := range 8 {
		ok(t, swap.Reserve(ctx, b))
		ok(t, swap.Write(ctx, b, 0, m))
	}
	change(t, d, s, 1, 0, m, 1, 1)
	ok(t, d.Abandon())
	d = openTier(t, cfg)
	defer d.Close()
	if u := d.Usage().Used; u != 1<<20 {
		t.Errorf("%d bytes are in use", u)
	}
	var st syscall.Stat_t
	ok(t, syscall.Stat(filepath.Join(cfg.Dir, "blocks"), &st))
	if taken := st.Blocks * 512; taken > 2<<20 {
		t.Errorf("the blocks take %d bytes of the file system", taken)
	}
}

// A budget counts durable blocks from when they are staged to when they go.
func TestDurableBudget(t *testing.T) {
	d := openTier(t, disk.Config{Dir: t.TempDir(), Budget: 2 << 20})
	defer d.Close()
	s, m := newSpan(t, d, "s", 8<<20), region(t, 1<<20)
	used := func(want int64) {
		t.Helper()
		if u := d.Usage().Used; u != want {
			t.Errorf("%d bytes in use, want %d", u, want)
		}
	}
	change(t, d, s, 0, 0, m, 1, 1)
	st := stage(t, s, 1, 0, m.Slice(0, 100), 1)
	used(2 << 20)
	if err := s.Reserve(ctx, 2); !errors.Is(err, tier.ErrBudget) {
		t.Errorf("reserve: %v", err)
	}
	if _, err := s.Stage(ctx, 2, []disk.Run{{Offset: 0, Length: 1 << 20}}, m); !errors.Is(err, tier.ErrBudget) {
		t.Errorf("stage: %v", err)
	}
	change(t, d, s, 0, 0, m, 2, 2) // takes the place of what is there
	st.Discard()
	st.Discard()
	used(1 << 20)
	change(t, d, s, 2, 0, m, 1, 1)
	used(2 << 20)
	x := d.Begin()
	x.Delete(d.Recovered()[0].ID)
	ok(t, x.Commit(ctx))
	used(0)
	if err := s.Read(ctx, 0, 0, m); err == nil {
		t.Error("a deleted span is read")
	}
}

// A block whose bytes changed on disk is named, and never served; the others
// are.
func TestDamagedBlock(t *testing.T) {
	cfg := disk.Config{Dir: t.TempDir()}
	d := openTier(t, cfg)
	s, m := newSpan(t, d, "precious", 3<<20), region(t, 1<<20)
	for b := range 3 {
		change(t, d, s, b, 0, m, byte(b+1), 1)
	}
	f, err := os.OpenFile(filepath.Join(cfg.Dir, "blocks"), os.O_RDWR, 0)
	ok(t, err)
	const at = 1<<20 + 4096 + 4096 + 500_000 // in the second slot
	_, err = f.WriteAt([]byte{77}, at)
	ok(t, err)
	ok(t, f.Close())
	for i := range m.Bytes() {
		m.Bytes()[i] = 99
	}
	err = s.Read(ctx, 1, 0, m)
	var corrupt *disk.CorruptError
	if !errors.Is(err, tier.ErrCorrupt) || !errors.As(err, &corrupt) || corrupt.Block != 1 || corrupt.Span != "precious" || corrupt.File != "blocks" || corrupt.Offset != at&^4095 {
		t.Fatalf("a damaged block: %v", err)
	}
	if slices.ContainsFunc(m.Bytes(), func(b byte) bool { return b != 0 }) {
		t.Error("bytes of a damaged block were handed out")
	}
	ok(t, s.Read(ctx, 1, 0, m.Slice(0, 4096))) // another page is whole
	ok(t, s.Read(ctx, 0, 0, m))
	r, err := d.Check(ctx)
	ok(t, err)
	if r.Spans != 1 || r.Blocks != 3 || r.Bytes != 2<<20 || len(r.Faults) != 1 || r.Faults[0].CorruptError != *corrupt || r.Faults[0].Repaired {
		t.Errorf("report %+v", r)
	}
	ok(t, d.Close())
	r, err = disk.Check(ctx, cfg.Dir, true)
	ok(t, err)
	if len(r.Faults) != 1 || !r.Faults[0].Repaired {
		t.Errorf("report %+v", r)
	}
	d = openTier(t, cfg)
	defer d.Close()
	s, err = d.Durable(d.Recovered()[0])
	ok(t, err)
	for b, st := range s.Blocks() {
		if want := (disk.BlockState{Version: 1, Held: true}); b != 1 && st != want {
			t.Errorf("block %d: %+v", b, st)
		}
		if want := (disk.BlockState{Marked: 1}); b == 1 && st != want {
			t.Errorf("block %d: %+v", b, st)
		}
	}
	change(t, d, s, 1, 0, m, 5, 2)
	for _, st := range s.Blocks() {
		if !st.Held || st.Marked != 0 {
			t.Errorf("after it was written anew: %+v", st)
		}
	}
}

// A span's record may be set anew while its blocks are staged, read and put: the
// race detector watches.
func TestSetWhileStaging(t *testing.T) {
	d := openTier(t, disk.Config{Dir: t.TempDir()})
	rec := record("s", 1<<20)
	s, err := d.Durable(rec)
	if err != nil {
		t.Fatal(err)
	}
	set := func() error {
		x := d.Begin()
		x.Set(rec)
		return x.Commit(ctx)
	}
	if err := set(); err != nil {
		t.Fatal(err)
	}
	m := region(t, 100)
	var work sync.WaitGroup
	work.Go(func() {
		for range 50 {
			if err := set(); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 50 {
		st, err := s.Stage(ctx, 0, []disk.Run{{Offset: 7, Length: 100}}, m)
		if err != nil {
			t.Fatal(err)
		}
		x := d.Begin()
		x.Put(st, uint64(i+1))
		x.Version(s, uint64(i+1))
		if err := errors.Join(x.Commit(ctx), s.Read(ctx, 0, 0, m)); err != nil {
			t.Fatal(err)
		}
	}
	work.Wait()
	if err := errors.Join(s.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
}
