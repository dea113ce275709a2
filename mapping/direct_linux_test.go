// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/mapping"
)

// passed returns a region and a descriptor of it as another process gets one.
func passed(t *testing.T, size int64) (*memfd.Region, func() *os.File) {
	t.Helper()
	r, err := memfd.Create("span", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, func() *os.File {
		fd, err := syscall.Dup(int(r.File().Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "passed")
	}
}

func TestDirectIsTheSameMemory(t *testing.T) {
	const size = 3*4096 + 100
	r, file := passed(t, size)
	for _, w := range [][2]int64{{0, size}, {1, 1}, {4095, 2}, {5000, 4096}, {size - 1, 1}} {
		off, n := w[0], w[1]
		clear(r.Bytes())
		d, err := mapping.NewDirect(file(), size, off, n, true)
		if err != nil {
			t.Fatal(err)
		}
		mem := d.Bytes()
		if int64(len(mem)) != n || cap(mem) != len(mem) {
			t.Fatalf("len %d, cap %d, want %d", len(mem), cap(mem), n)
		}
		for i := range mem {
			mem[i] = 7
		}
		for i, b := range r.Bytes() {
			if inside := int64(i) >= off && int64(i) < off+n; inside != (b == 7) {
				t.Fatalf("window %v: byte %d is %d", w, i, b)
			}
		}
		r.Bytes()[off] = 9
		if mem[0] != 9 {
			t.Error("a store of the owner is not visible")
		}
		for range 2 {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestDirectReadOnly(t *testing.T) {
	r, _ := passed(t, 8192)
	f, err := r.Reopen(false)
	if err != nil {
		t.Fatal(err)
	}
	d, err := mapping.NewDirect(f, 8192, 4096, 10, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r.Bytes()[4100] = 3
	if d.Bytes()[4] != 3 {
		t.Error("the owner's store is not visible")
	}
	var fault *memfd.FaultError
	if err := memfd.Guard(func() { d.Bytes()[0] = 1 }); !errors.As(err, &fault) {
		t.Errorf("store to a read-only mapping: %v", err)
	}
	if f, err = r.Reopen(false); err != nil {
		t.Fatal(err)
	}
	if _, err := mapping.NewDirect(f, 8192, 0, 10, true); !errors.Is(err, syscall.EACCES) {
		t.Errorf("writable mapping of a read-only descriptor: %v", err)
	}
}

func TestDirectRefuses(t *testing.T) {
	_, file := passed(t, 8192)
	for _, a := range [][3]int64{{8192, -1, 1}, {8192, 0, 0}, {8192, 0, -1}, {8192, 0, 8193}, {8192, 8192, 1}, {8192, 1, 1<<63 - 1}, {1 << 40, 0, 1}, {8193, 0, 1}, {-1, 0, 1}} {
		f := file()
		if d, err := mapping.NewDirect(f, a[0], a[1], a[2], true); err == nil {
			d.Close()
			t.Errorf("NewDirect(%v): no error", a)
		}
		if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("NewDirect(%v) left the file open", a)
		}
	}
	plain, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	if _, err := mapping.NewDirect(plain, 8192, 0, 10, true); err == nil {
		t.Error("a file that can shrink: no error")
	}
}
