// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

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
	memory, page, err := o.Files()
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
