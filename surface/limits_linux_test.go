// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"golang.org/x/sys/unix"
)

// Whoever has the descriptors reads, and can change nothing of what others see.
func TestPullersChangeNothing(t *testing.T) {
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: -1})
	if err := e.Append(t.Context(), random(3<<20, 10)); err != nil {
		t.Fatal(err)
	}
	o := open(t, s, e.Ticket())
	memory, page, err := files(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"open", "sealed"} {
		for name, f := range map[string]*os.File{"memory": memory, "page": page} {
			path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
			os.Chmod(path, 0o600) // as its owner could
			w, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if mem, err := unix.Mmap(int(w.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
				t.Errorf("%s, %s: a writable mapping", when, name)
				unix.Munmap(mem)
			}
			if _, err := w.WriteAt([]byte{1}, 0); err == nil {
				t.Errorf("%s, %s: written", when, name)
			}
			if err := w.Truncate(0); err == nil {
				t.Errorf("%s, %s: truncated", when, name)
			}
			w.Close()
		}
		if when == "open" {
			if _, err := e.Seal(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	verify(t, e.Manifest(), readAll(t, o))
}

// A surface that is larger than files may be is refused, and the error says why.
func TestFileSizeLimitIsNamed(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	less := limit
	less.Cur = 256 << 20
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &less); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &limit)
	_, err := newStore(t, 0).Create(t.Context(), surface.Spec{Size: 256<<20 + 1, Sparse: true})
	if !errors.Is(err, surface.ErrRoom) || !strings.Contains(err.Error(), "RLIMIT_FSIZE") {
		t.Errorf("error %v, want one that names RLIMIT_FSIZE", err)
	}
}

// A surface for which there is no address space is refused, and the error says why.
func TestAddressSpaceLimitIsNamed(t *testing.T) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var pages uint64
	if _, err := fmt.Sscan(string(text), &pages); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &limit); err != nil {
		t.Fatal(err)
	}
	less := limit
	less.Cur = min(limit.Cur, pages*uint64(os.Getpagesize())+1<<30)
	if err := unix.Setrlimit(unix.RLIMIT_AS, &less); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_AS, &limit)
	s := newStore(t, 0)
	_, err = s.Create(t.Context(), surface.Spec{Size: 4 << 30, Sparse: true})
	if !errors.Is(err, surface.ErrRoom) || !strings.Contains(err.Error(), "RLIMIT_AS") {
		t.Errorf("error %v, want one that names RLIMIT_AS", err)
	}
	if used, pending := s.Used(); used != 0 || pending != 0 {
		t.Errorf("%d bytes are kept, %d of them pending", used, pending)
	}
}

// A surface's end gives its memory back: no mapping and no descriptor is left of it.
func TestEndFreesTheMemory(t *testing.T) {
	const name = "freed-with-the-last"
	left := func() (found []string) {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(maps)) {
			if strings.Contains(line, name) {
				found = append(found, line)
			}
		}
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if target, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.Contains(target, name) {
				found = append(found, target)
			}
		}
		return found
	}
	s := newStore(t, 0)
	e, _ := exposed(t, s, surface.Spec{Name: name, Size: 1 << 20}, 1)
	stream := create(t, s, surface.Spec{Name: name, Size: -1})
	o, err := s.Open(ask(e.Ticket()))
	if err != nil {
		t.Fatal(err)
	}
	if len(left()) == 0 {
		t.Fatal("what is looked for cannot be found")
	}
	stream.Fail(errors.New("killed"))
	if err := s.Revoke(e.ID()); err != nil {
		t.Fatal(err)
	}
	defer o.Close() // idle, it keeps nothing
	if found := left(); len(found) > 0 {
		t.Errorf("left behind: %q", found)
	}
}

// Address space is kept for what a surface stores, and not for what it might have.
func TestAddressSpaceIsForWhatIsThere(t *testing.T) {
	s := newStore(t, 1<<30)
	stream := create(t, s, surface.Spec{Size: -1})
	if err := stream.Append(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	before := s.Space()
	o := open(t, s, stream.Ticket())
	err := o.ReadStored(0, 1, func([]byte) error { return nil })
	if !errors.Is(err, surface.ErrMissing) {
		t.Fatal(err)
	}
	if _, err := stream.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Space(); got != 1 || before < 1<<20 {
		t.Errorf("%d bytes of address space for a byte, %d while it was open", got, before)
	}
	if got, err := read(o, 0, 1); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if err := s.Revoke(stream.ID()); err != nil {
		t.Fatal(err)
	}
	if got := s.Space(); got != 0 {
		t.Errorf("%d bytes of address space are kept", got)
	}
	huge, err := memfd.Blank("huge")
	if err != nil {
		t.Fatal(err)
	}
	defer huge.Close()
	if err := huge.Truncate(1 << 46); err != nil {
		t.Fatal(err)
	}
	if err := memfd.Freeze(huge); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Take(t.Context(), surface.Spec{Size: 4096}, huge); !errors.Is(err, surface.ErrRoom) {
		t.Errorf("took all address space: %v", err)
	}
	if got := s.Space(); got != 0 {
		t.Errorf("%d bytes of address space are kept", got)
	}
}

// Copying a file leaves its owner's offset where it is.
func TestCopyFileMovesNoOffset(t *testing.T) {
	s := newStore(t, 0)
	f := writeFile(t, []byte("0123456789"))
	if _, err := f.Seek(3, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	e := create(t, s, surface.Spec{Size: 10, Sparse: true})
	if err := e.CopyFile(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if at, err := f.Seek(0, io.SeekCurrent); at != 3 || err != nil {
		t.Errorf("the offset is %d, %v", at, err)
	}
}

// Who has no descriptors left is told so, and not that something is wrong with what he brings.
func TestDescriptorLimitIsNamed(t *testing.T) {
	s := newStore(t, 0)
	frozen, err := memfd.Blank("frozen")
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Close()
	if err := memfd.Freeze(frozen); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	less := limit
	less.Cur = 3 // which are open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &less); err != nil {
		t.Fatal(err)
	}
	_, taking := s.Take(t.Context(), surface.Spec{}, frozen)
	_, creating := s.Create(t.Context(), surface.Spec{Size: 1})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{taking, creating} {
		if !errors.Is(err, surface.ErrLimit) {
			t.Errorf("error %v, want ErrLimit", err)
		}
	}
}
