// SPDX-License-Identifier: Apache-2.0

//go:build linux || windows

package sharedfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/sharedfile"
)

func open(t *testing.T, path string) *sharedfile.Dir {
	t.Helper()
	d, err := sharedfile.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func create(t *testing.T, d *sharedfile.Dir, name string) *os.File {
	t.Helper()
	f, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMap(t *testing.T) {
	for _, size := range []int64{1, 4096, 4097, 2<<20 - 1, 2 << 20, 5<<20 + 1} {
		d := open(t, t.TempDir())
		f := create(t, d, "f")
		if err := sharedfile.Reserve(f, size); err != nil {
			t.Fatal(err)
		}
		if info, err := f.Stat(); err != nil || info.Size() != size {
			t.Errorf("size %v, %v", info, err)
		}
		one, err := sharedfile.Map(f, size, true, false)
		if err != nil {
			t.Fatal(err)
		}
		two, err := sharedfile.Map(f, size, false, true)
		if err != nil {
			t.Fatal(err)
		}
		sharedfile.Enlarge(f, one)
		one[0]++
		one[size-1] += 2
		if int64(len(two)) != size || two[0] != one[0] || two[size-1] != one[size-1] {
			t.Errorf("two mappings of %d bytes differ", size)
		}
		// What is dropped from the cache is not lost.
		if err := errors.Join(sharedfile.Publish(f, one), sharedfile.Refresh(f, one)); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(text, one) || one[0] == 0 {
			t.Errorf("the file differs from its mapping, or lost a store: %v", err)
		}
		if err := errors.Join(sharedfile.Unmap(one), sharedfile.Unmap(two)); err != nil {
			t.Error(err)
		}
	}
	f := create(t, open(t, t.TempDir()), "f")
	for _, size := range []int64{-1, 0, 1 << 62} {
		if _, err := sharedfile.Map(f, size, false, false); err == nil {
			t.Errorf("%d bytes were mapped", size)
		}
	}
	// Windows has several words for it.
	if err := sharedfile.Reserve(f, 1<<62); err == nil || runtime.GOOS == "linux" && !errors.Is(err, sharedfile.ErrNoSpace) {
		t.Errorf("Reserve: %v", err)
	}
}

const boot = "one-kernel"

func TestLease(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	take := func(name string) *sharedfile.Lease {
		t.Helper()
		l, err := sharedfile.TakeLease(d, name, boot)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	sweep := func(from string, want ...string) {
		t.Helper()
		removed, err := sharedfile.RemoveAbandoned(d, "b", from)
		slices.Sort(removed)
		if err != nil || !slices.Equal(removed, want) {
			t.Errorf("removed %v, %v, want %v", removed, err, want)
		}
	}
	l := take("b1")
	create(t, d, "b1")
	if _, err := sharedfile.TakeLease(d, "b1", boot); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second lease: %v", err)
	}
	if err := l.SetGeneration(7); err != nil {
		t.Fatal(err)
	}
	if g, err := sharedfile.Generation(d, "b1"); err != nil || g != 7 {
		t.Errorf("generation %d, %v", g, err)
	}
	if _, err := sharedfile.Generation(d, "b2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a lease: %v", err)
	}
	sweep(boot)

	// Leases that nobody holds: as a killed maker leaves them.
	record, err := os.ReadFile(filepath.Join(path, "b1.lease"))
	if err != nil {
		t.Fatal(err)
	}
	abandon := func(name string, lease []byte) string {
		t.Helper()
		if err := create(t, d, name).Close(); err != nil { // Windows keeps the name of an open file
			t.Fatal(err)
		}
		file := filepath.Join(path, name+".lease")
		if err := os.WriteFile(file, lease, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	abandon("b3", record)
	abandon("c3", record) // another prefix
	create(t, d, "b4")    // no lease
	young := abandon("b5", nil)
	sweep("another-kernel")
	sweep(boot, "b3")
	sweep(boot)
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(young, long, long); err != nil {
		t.Fatal(err)
	}
	sweep(boot, "b5")
	want := []string{"b1", "b4", "c3", "c3.lease"}
	if runtime.GOOS != "windows" { // where not everybody may make one
		// A lease that is a link is none.
		if err := os.Symlink(filepath.Join(path, "c3.lease"), filepath.Join(path, "b4.lease")); err != nil {
			t.Fatal(err)
		}
		want = slices.Insert(want, 2, "b4.lease")
	}
	sweep(boot)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	left, err := d.Names("")
	slices.Sort(left)
	if err != nil || !slices.Equal(left, want) {
		t.Errorf("left are %v, %v, want %v", left, err, want)
	}
}

// However makers and sweepers meet, no living maker loses his file.
func TestLeasesAgainstSweepers(t *testing.T) {
	d := open(t, t.TempDir())
	var work sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		work.Go(func() {
			for {
				if _, err := sharedfile.RemoveAbandoned(d, "b", boot); err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	var makers sync.WaitGroup
	for range 2 {
		makers.Go(func() {
			for range 300 { // sweepers that never rest may win them all
				l, err := sharedfile.TakeLease(d, "b", boot)
				if errors.Is(err, fs.ErrExist) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				f, err := d.Create("b")
				if err != nil {
					t.Errorf("with the lease: %v", err)
					return
				}
				same, err := d.Same("b", f)
				if err != nil || !same {
					t.Errorf("the file of a living maker is gone: %v", err)
				}
				if err := errors.Join(d.Remove("b"), f.Close(), l.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	makers.Wait()
	close(stop)
	work.Wait()
}
