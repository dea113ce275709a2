// SPDX-License-Identifier: Apache-2.0

//go:build linux

package memfd_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/memfd"
)

var page = int64(os.Getpagesize())

func create(t *testing.T, size int64) *memfd.Region {
	t.Helper()
	r, err := memfd.Create("test", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func resident(t *testing.T, r *memfd.Region) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(r.File().Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestCreateSealsItsSize(t *testing.T) {
	r := create(t, page+1)
	if r.Size() != 2*page || int64(len(r.Bytes())) != r.Size() {
		t.Errorf("size %d, %d bytes, want %d", r.Size(), len(r.Bytes()), 2*page)
	}
	for _, size := range []int64{0, page, 4 * page} {
		if err := r.File().Truncate(size); !errors.Is(err, unix.EPERM) {
			t.Errorf("Truncate(%d): %v, want EPERM", size, err)
		}
	}
	if flags, err := unix.FcntlInt(r.File().Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("not close-on-exec: %#x, %v", flags, err)
	}
	for _, size := range []int64{0, -1, 1<<63 - 1} {
		if _, err := memfd.Create("test", size); err == nil {
			t.Errorf("Create(%d): no error", size)
		}
	}
}

func TestOpenSharesAndRefuses(t *testing.T) {
	r := create(t, 2*page)
	dup := func() *os.File {
		fd, err := unix.Dup(int(r.File().Fd()))
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "dup")
		t.Cleanup(func() { f.Close() })
		return f
	}
	o, err := memfd.Open(dup(), 2*page)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	o.Bytes()[page] = 5
	if r.Bytes()[page] != 5 {
		t.Error("Open does not share memory")
	}
	if _, err := memfd.Open(dup(), 2*page+1); err == nil {
		t.Error("Open of more than there is: no error")
	}
	plain, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := memfd.Open(plain, 1); err == nil {
		t.Error("Open of a file without seals: no error")
	}

	for _, w := range [][2]int64{{0, 2 * page}, {page + 3, 5}, {page - 1, 2}} {
		mem, err := memfd.MapRange(dup(), w[0], w[1], true)
		if err != nil {
			t.Fatal(err)
		}
		mem[w[0]%page] = byte(w[1])
		if r.Bytes()[w[0]] != byte(w[1]) {
			t.Errorf("MapRange(%v) maps something else", w)
		}
		if err := memfd.Unmap(mem); err != nil {
			t.Error(err)
		}
	}
	for _, w := range [][2]int64{{-1, 1}, {0, 0}, {0, 2*page + 1}, {2 * page, 1}, {1<<63 - 1, 1<<63 - 1}} {
		if _, err := memfd.MapRange(dup(), w[0], w[1], false); err == nil {
			t.Errorf("MapRange(%v): no error", w)
		}
	}
}

func TestResidentFollowsAllocateAndPunch(t *testing.T) {
	r := create(t, 8*page)
	if n := resident(t, r); n != 0 {
		t.Errorf("a fresh region holds %d bytes", n)
	}
	r.Bytes()[0] = 1
	if n := resident(t, r); n != page {
		t.Errorf("one page touched, %d bytes held", n)
	}
	if err := r.Allocate(2*page, 4*page); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, r); n != 5*page {
		t.Errorf("%d bytes held, want %d", n, 5*page)
	}
	if err := r.Punch(0, 8*page); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, r); n != 0 || r.Bytes()[0] != 0 {
		t.Errorf("punched: %d bytes held, first byte %d", n, r.Bytes()[0])
	}
}

func TestReadOnlyDescriptor(t *testing.T) {
	r := create(t, page)
	f, err := r.Reopen(false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 0); err == nil {
		t.Error("write through a read-only descriptor: no error")
	}
	if _, err := memfd.MapRange(f, 0, page, true); !errors.Is(err, unix.EACCES) {
		t.Errorf("writable mapping of it: %v", err)
	}
}

func TestGuard(t *testing.T) {
	fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, page); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, int(page), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	out := make([]byte, page)
	if err := memfd.Guard(func() { memfd.Copy(out, mem) }); err != nil {
		t.Errorf("Guard of sound memory: %v", err)
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	var fault *memfd.FaultError
	if err := memfd.Guard(func() { memfd.Copy(out, mem) }); !errors.As(err, &fault) || fault.Addr == 0 {
		t.Errorf("Guard of truncated memory: %v", err)
	}
	defer func() {
		if v := recover(); v != "other" {
			t.Errorf("recovered %v", v)
		}
	}()
	_ = memfd.Guard(func() { panic("other") })
}

func TestCopy(t *testing.T) {
	src := make([]byte, 1<<20+12345)
	for i := range src {
		src[i] = byte(i ^ i>>8)
	}
	dst := make([]byte, len(src)+1)
	if n := memfd.Copy(dst, src); n != len(src) || !bytes.Equal(dst[:n], src) || dst[n] != 0 {
		t.Errorf("Copy of %d bytes returned %d", len(src), n)
	}
	if n := memfd.Copy(dst[:3], src[9:]); n != 3 || !bytes.Equal(dst[:3], src[9:12]) {
		t.Errorf("Copy into 3 bytes returned %d", n)
	}
}
