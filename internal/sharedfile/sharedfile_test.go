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

// tempDir is t.TempDir, whose cleanup fails under Wine.
func tempDir(t *testing.T) string {
	t.Helper()
	path, err := os.MkdirTemp("", "sharedfile-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil && runtime.GOOS != "windows" {
			t.Error(err)
		}
	})
	return path
}

func open(t testing.TB, path string) *sharedfile.Dir {
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
		d := open(t, tempDir(t))
		f := create(t, d, "f")
		if err := errors.Join(sharedfile.Reserve(f, 0, size/2+1), sharedfile.Reserve(f, size/2, size-size/2)); err != nil {
			t.Fatal(err)
		}
		if info, err := f.Stat(); err != nil || info.Size() != size {
			t.Errorf("size %v, %v", info, err)
		}
		one, err := sharedfile.Map(f, size, true)
		if err != nil {
			t.Fatal(err)
		}
		two, err := sharedfile.Map(f, size, false)
		if err != nil {
			t.Fatal(err)
		}
		sharedfile.Populate(two)
		sharedfile.Enlarge(f, 0, one)
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
	f := create(t, open(t, tempDir(t)), "f")
	for _, size := range []int64{-1, 0, 1 << 62} {
		if _, err := sharedfile.Map(f, size, false); err == nil {
			t.Errorf("%d bytes were mapped", size)
		}
	}
	// Windows has several words for it.
	if err := sharedfile.Reserve(f, 0, 1<<62); err == nil || runtime.GOOS == "linux" && !errors.Is(err, sharedfile.ErrNoSpace) {
		t.Errorf("Reserve: %v", err)
	}
}

const boot = "one-kernel"

func TestLease(t *testing.T) {
	path := tempDir(t)
	d := open(t, path)
	take := func(name string) *sharedfile.Lease {
		t.Helper()
		l, err := sharedfile.TakeLease(d, name, boot, []byte("terms"))
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
	if _, err := sharedfile.TakeLease(d, "b1", boot, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second lease: %v", err)
	}
	if err := l.SetGeneration(7); err != nil {
		t.Fatal(err)
	}
	file := create(t, d, "b1")
	if r, err := sharedfile.ReadLease(d, "b1", file); err != nil || r.Generation != 7 || r.Boot != boot || string(r.Terms) != "terms" {
		t.Errorf("the lease says %+v, %v", r, err)
	}
	if _, err := sharedfile.ReadLease(d, "b2", file); !errors.Is(err, fs.ErrNotExist) {
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
	d := open(t, tempDir(t))
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
				l, err := sharedfile.TakeLease(d, "b", boot, nil)
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

// Terms come back whole, however long they are; longer ones are refused.
func TestLeaseTerms(t *testing.T) {
	d := open(t, tempDir(t))
	file := create(t, d, "b")
	for _, size := range []int{0, 1, 443, 444, 445, 4095, 4096} {
		terms := make([]byte, size)
		for i := range terms {
			terms[i] = byte(i) | 1
		}
		l, err := sharedfile.TakeLease(d, "b", boot, terms)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if r, err := sharedfile.ReadLease(d, "b", file); err != nil || !bytes.Equal(r.Terms, terms) || r.Boot != boot {
			t.Errorf("%d bytes: %d came, of %q, %v", size, len(r.Terms), r.Boot, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sharedfile.TakeLease(d, "b", boot, make([]byte, 4097)); err == nil {
		t.Error("4097 bytes were taken")
	}
}

// What is read as a lease is one that somebody wrote, in this version or the
// first: nothing else is, and nothing makes the reader fall over.
func FuzzReadLease(f *testing.F) {
	first := append([]byte("MSPLEASE\x07\x00\x00\x00\x00\x00\x00\x00one-kernel"), make([]byte, 38)...)
	second := append([]byte("MSPLEAS2"), first[8:]...)
	f.Add(first)
	f.Add(append(second, 2, 0, 0, 0, '{', '}'))
	f.Add(append(second, 3, 0, 0, 0, '{', '}')) // one is missing
	f.Add(second)
	f.Add([]byte("MSPLEAS3"))
	path := f.TempDir()
	d := open(f, path)
	file, err := d.Create("b")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { file.Close() })
	f.Fuzz(func(t *testing.T, lease []byte) {
		if err := os.WriteFile(filepath.Join(path, "b.lease"), lease, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := sharedfile.ReadLease(d, "b", file)
		switch {
		case bytes.Equal(lease, first):
			if err != nil || r.Generation != 7 || len(r.Terms) != 0 || r.Boot != "one-kernel" {
				t.Errorf("the first version is read as %+v, %v", r, err)
			}
		case err != nil:
		case len(lease) < 64 || !bytes.HasPrefix(lease, []byte("MSPLEAS")):
			t.Errorf("%q is read as %+v", lease, r)
		case len(r.Terms) > len(lease)-64 || !bytes.Contains(lease, r.Terms):
			t.Errorf("%q has terms %q", lease, r.Terms)
		}
	})
}

// A lease is locked a moment after it was made. Whoever removes it in between, as
// one that nobody holds, must not leave its maker with a lock on nothing.
func TestLeaseRemovedBeforeItIsLocked(t *testing.T) {
	d := open(t, t.TempDir())
	file := create(t, d, "b")
	stop := make(chan struct{})
	var remover sync.WaitGroup
	remover.Go(func() { // as RemoveAbandoned, but for young leases too
		for {
			select {
			case <-stop:
				return
			default:
			}
			f, err := d.Open("b"+sharedfile.LeaseSuffix, true)
			if err != nil {
				continue
			}
			if locked, err := sharedfile.TryLock(f); err == nil && locked {
				if same, err := d.Same("b"+sharedfile.LeaseSuffix, f); err == nil && same {
					d.Remove("b" + sharedfile.LeaseSuffix)
				}
			}
			f.Close()
		}
	})
	refused := 0
	for range 500 {
		l, err := sharedfile.TakeLease(d, "b", boot, nil)
		if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
			refused++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sharedfile.ReadLease(d, "b", file); err != nil {
			t.Fatalf("the maker has a lock, and no lease: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	remover.Wait()
	t.Logf("%d of 500 leases were removed before they were locked", refused)
}
