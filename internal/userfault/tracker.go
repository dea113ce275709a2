// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package userfault

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// scanRoom is how many ranges one PAGEMAP_SCAN call may return. It costs 24
// bytes each in every tracker.
const scanRoom = 512

// A Range is bytes [Start, End) of a tracked mapping, whole pages.
type Range struct{ Start, End int }

// A Tracker remembers which pages of one mapping were written. Its methods may
// be called concurrently; Close must come last, and before the mapping goes.
type Tracker struct {
	mem     []byte
	uffd    int
	pagemap *os.File

	mu  sync.Mutex // guards vec, and uffd against Close
	vec [scanRoom]pageRegion
}

// Track prepares to track writes to mem, which must begin and end at page
// boundaries of a shared or anonymous mapping that is not tracked yet.
// Tracking begins with Arm. A tracker holds two descriptors.
func Track(mem []byte) (*Tracker, error) {
	page := os.Getpagesize()
	if len(mem) == 0 || len(mem)%page != 0 || address(mem)%uint64(page) != 0 {
		return nil, fmt.Errorf("userfault: track %d bytes at %#x: not whole pages of %d bytes", len(mem), address(mem), page)
	}
	// Huge pages would make every first write count for 2 MiB. Worse, the
	// kernel forgets that one was written when it takes it out of the page
	// table; of small pages it knows.
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a kernel without huge pages
		return nil, os.NewSyscallError("madvise(MADV_NOHUGEPAGE)", err)
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, fmt.Errorf("userfault: track: is /proc mounted? %w", err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly, 0, 0)
	if errno != 0 {
		pagemap.Close()
		return nil, os.NewSyscallError("userfaultfd", errno)
	}
	t := &Tracker{mem: mem, uffd: int(fd), pagemap: pagemap}
	api := apiArg{api: apiVersion, features: featureHugetlbfsShmemWP | featureUnpopulatedWP | featureAsyncWP}
	if err := control(t.uffd, ioctlAPI, &api); err != nil {
		t.Close()
		return nil, os.NewSyscallError("ioctl(UFFDIO_API)", err)
	}
	reg := registerArg{start: address(mem), len: uint64(len(mem)), mode: registerModeWP}
	if err := control(t.uffd, ioctlRegister, &reg); err != nil {
		t.Close()
		return nil, os.NewSyscallError("ioctl(UFFDIO_REGISTER)", err)
	}
	return t, nil
}

// Arm makes every page of [off, off+n), whole pages, count as not written.
func (t *Tracker) Arm(off, n int) error { return t.protect(off, n, writeProtectWP) }

// Disarm ends the tracking of [off, off+n), whole pages, until it is armed
// again: stores there cost nothing, and Collect reports what it likes.
func (t *Tracker) Disarm(off, n int) error { return t.protect(off, n, 0) }

func (t *Tracker) protect(off, n int, mode uint64) error {
	if err := t.check(off, n); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	arg := writeProtectArg{start: address(t.mem) + uint64(off), len: uint64(n), mode: mode}
	if n == 0 {
		return nil
	}
	return os.NewSyscallError("ioctl(UFFDIO_WRITEPROTECT)", control(t.uffd, ioctlWriteProtect, &arg))
}

// Collect appends to into the pages of [off, off+n), whole pages, that were
// written since they were armed or last collected, in order, and arms them
// again. Both happen in one step for each page: a write comes either before,
// and its page is in the answer and its bytes can be read after Collect, or it
// is left for the next time. After an error any page may have been armed
// without being in the answer, so every page must be taken as written.
func (t *Tracker) Collect(off, n int, into []Range) ([]Range, error) {
	if err := t.check(off, n); err != nil {
		return into, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	base := address(t.mem)
	start, end := base+uint64(off), base+uint64(off+n)
	for start < end {
		// With exactly these masks the kernel also reports a written page that
		// it has since taken out of the page table, to swap for instance.
		arg := scanArg{
			flags: scanWPMatching | scanCheckWPAsync,
			start: start, end: end,
			categoryMask: pageIsWritten, returnMask: pageIsWritten,
		}
		got, err := scan(int(t.pagemap.Fd()), &arg, t.vec[:])
		if err != nil {
			return into, os.NewSyscallError("ioctl(PAGEMAP_SCAN)", err)
		}
		for _, r := range t.vec[:got] {
			into = appendRange(into, Range{Start: int(r.start - base), End: int(r.end - base)})
		}
		// Only a full answer says that there may be more: walkEnd also stays
		// short of the end on scans that are complete.
		if got < len(t.vec) {
			break
		}
		if arg.walkEnd <= start || arg.walkEnd > end {
			return into, fmt.Errorf("userfault: PAGEMAP_SCAN of [%#x, %#x) went on to %#x", start, end, arg.walkEnd)
		}
		start = arg.walkEnd
	}
	return into, nil
}

// appendRange joins r to the last range where they touch.
func appendRange(into []Range, r Range) []Range {
	if k := len(into) - 1; k >= 0 && into[k].End == r.Start {
		into[k].End = r.End
		return into
	}
	return append(into, r)
}

func (t *Tracker) check(off, n int) error {
	mask := os.Getpagesize() - 1
	if off < 0 || n < 0 || off > len(t.mem) || n > len(t.mem)-off || off&mask != 0 || n&mask != 0 {
		return fmt.Errorf("userfault: range [%d, +%d) is not whole pages of the %d bytes tracked", off, n, len(t.mem))
	}
	return nil
}

// Close ends the tracking. The mapping stays as it is.
func (t *Tracker) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.uffd < 0 {
		return nil
	}
	err := errors.Join(os.NewSyscallError("close", unix.Close(t.uffd)), t.pagemap.Close())
	t.uffd = -1
	return err
}

// Probe tries tracking on a page of its own. It returns nil if that works, and
// otherwise an error that wraps errors.ErrUnsupported and says what is in the
// way and what would help.
func Probe() error {
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("userfault: probe: %w", os.NewSyscallError("mmap", err))
	}
	defer unix.Munmap(mem)
	t, err := Track(mem)
	if err != nil {
		return unusable(err)
	}
	defer t.Close()
	if err := t.Arm(0, len(mem)); err != nil {
		return unusable(err)
	}
	mem[page] = 1
	got, err := t.Collect(0, len(mem), nil)
	if err != nil {
		return unusable(err)
	}
	if len(got) != 1 || got[0] != (Range{Start: page, End: 2 * page}) {
		return unusable(fmt.Errorf("a write to the second of two pages was reported as %v", got))
	}
	return nil
}

func unusable(err error) error {
	why := "it does not work on this system"
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		why = "userfaultfd is not permitted here; a container's seccomp profile must allow it, or the kernel lacks CONFIG_USERFAULTFD"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY):
		why = "the kernel does not offer it; Linux 6.7 or later is needed" + release()
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		why = "/proc/self/pagemap cannot be opened; mount /proc"
	}
	return fmt.Errorf("userfault: page tracking is not available: %s (%w): %w", why, errors.ErrUnsupported, err)
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return ", this is " + unix.ByteSliceToString(u.Release[:])
}
