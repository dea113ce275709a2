// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pagemap

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func mapped(t *testing.T, size, flags int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	// Else a touch may bring pages around it.
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		t.Fatal(err)
	}
	return mem
}

// touched returns the pages that Touched names, by what f gets.
func touched(mem []byte) (pages []int, total int) {
	page := os.Getpagesize()
	Touched(mem, func(part []byte) {
		total += len(part)
		at := cap(mem) - cap(part)
		for p := at / page; p <= (at+len(part)-1)/page; p++ {
			pages = append(pages, p)
		}
	})
	return pages, total
}

// Pages that were written are named, and no others.
func TestTouched(t *testing.T) {
	page := os.Getpagesize()
	mem := mapped(t, 40000*page, unix.MAP_PRIVATE)
	want := []int{0, 1, 7, 8191, 8192, 8193, 39999}
	for _, p := range want {
		mem[p*page+page/2] = 1
	}
	if got, total := touched(mem); !slices.Equal(got, want) || total != len(want)*page {
		t.Errorf("pages %d, %d bytes; want %d", got, total, want)
	}
	// A slice that begins and ends within pages.
	if _, total := touched(mem[page/2 : 8192*page+10]); total != page/2+3*page+10 {
		t.Errorf("%d bytes", total)
	}
	if got, _ := touched(mem[2*page : 7*page+worthwhile]); len(got) != 1 {
		t.Errorf("pages %d", got)
	}
}

// Pages of shared memory may have been written by others: all are named.
func TestTouchedShared(t *testing.T) {
	mem := mapped(t, 4*worthwhile, unix.MAP_SHARED)
	if _, total := touched(mem); total != len(mem) {
		t.Errorf("%d of %d bytes", total, len(mem))
	}
}

func TestTouchedSmall(t *testing.T) {
	if _, total := touched(nil); total != 0 {
		t.Error("something of nothing")
	}
	mem := make([]byte, 100)
	if _, total := touched(mem); total != 100 {
		t.Errorf("%d of 100 bytes", total)
	}
}

func TestParseLine(t *testing.T) {
	for line, want := range map[string]bool{
		"7f00-8f00 rw-p 00000000 00:00 0 ":                     true,
		"7f00-8f00 rw-p 00000000 00:00 0      [heap]":          true,
		"7f00-8f00 rw-s 00000000 00:01 1024   /memfd:x (gone)": false,
		"7f00-8f00 r--p 00000000 fe:00 5      /usr/lib/x.so":   false,
	} {
		if from, to, anonymous, ok := parseLine([]byte(line)); !ok || from != 0x7f00 || to != 0x8f00 || anonymous != want {
			t.Errorf("%q: %x %x %v %v", line, from, to, anonymous, ok)
		}
	}
	for _, line := range []string{"", "x", "7f00 rw-p 0 0 0", "7f-g0 rw-p 0 00:00 0", "7f-80 rwp 0 00:00 0"} {
		if _, _, _, ok := parseLine([]byte(line)); ok {
			t.Errorf("%q is a line", line)
		}
	}
}
