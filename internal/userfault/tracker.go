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
// bytes each for every Collect at a time.
const scanRoom = 512

// A Range is bytes [Start, End) of a tracked mapping, whole pages.
type Range struct{ Start, End int }

// A Tracker remembers which pages of memory were written, of any number of
// mappings, with two descriptors. What it is asked about is whole pages that it
// tracks. Its methods may be called concurrently; Close
// must come last.
type Tracker struct {
	uffd, pagemap *os.File
	room          sync.Pool // *[scanRoom]pageRegion
}

// New returns a tracker that works: it has tried on a page of its own. If pages
// cannot be tracked on this system the error wraps errors.ErrUnsupported and
// says what is in the way and what would help.
func New() (*Tracker, error) {
	t, err := open()
	if err == nil {
		if err = t.try(); err == nil {
			return t, nil
		}
		err = errors.Join(err, t.Close())
	}
	return nil, explain(err)
}

func open() (*Tracker, error) {
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|userModeOnly, 0, 0)
	if errno != 0 {
		return nil, errors.Join(os.NewSyscallError("userfaultfd", errno), pagemap.Close())
	}
	t := &Tracker{uffd: os.NewFile(fd, "userfaultfd"), pagemap: pagemap}
	t.room.New = func() any { return new([scanRoom]pageRegion) }
	api := apiArg{api: apiVersion, features: featureHugetlbfsShmemWP | featureUnpopulatedWP | featureAsyncWP}
	if err := control(t.fd(), ioctlAPI, &api); err != nil {
		return nil, errors.Join(os.NewSyscallError("ioctl(UFFDIO_API)", err), t.Close())
	}
	return t, nil
}

// fd returns the userfaultfd; one that fails after Close.
func (t *Tracker) fd() int { return int(t.uffd.Fd()) }

// Track prepares to track writes to mem, whole pages of a shared or anonymous
// mapping that no other tracker tracks. Tracking begins with Arm. It ends when
// mem is unmapped, and for all memory with Close.
func (t *Tracker) Track(mem []byte) error {
	if len(mem) == 0 {
		return errors.New("userfault: track nothing")
	}
	if err := check(mem); err != nil {
		return err
	}
	// Huge pages would make every first write count for 2 MiB. Worse, the
	// kernel forgets that one was written when it takes it out of the page
	// table; of small pages it knows.
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a kernel without huge pages
		return os.NewSyscallError("madvise(MADV_NOHUGEPAGE)", err)
	}
	reg := registerArg{start: address(mem), len: uint64(len(mem)), mode: registerModeWP}
	return os.NewSyscallError("ioctl(UFFDIO_REGISTER)", control(t.fd(), ioctlRegister, &reg))
}

// Arm makes every page of mem count as not written.
func (t *Tracker) Arm(mem []byte) error { return t.protect(mem, writeProtectWP) }

// Disarm ends the tracking of mem until it is armed again: stores there cost
// nothing, and Collect reports what it likes.
func (t *Tracker) Disarm(mem []byte) error { return t.protect(mem, 0) }

func (t *Tracker) protect(mem []byte, mode uint64) error {
	if err := check(mem); err != nil || len(mem) == 0 {
		return err
	}
	arg := writeProtectArg{start: address(mem), len: uint64(len(mem)), mode: mode}
	return os.NewSyscallError("ioctl(UFFDIO_WRITEPROTECT)", control(t.fd(), ioctlWriteProtect, &arg))
}

// Collect appends to into the pages of mem[off:off+n], whole pages, that were
// written since they were armed or last collected, in order, and arms them again.
// Both happen in one step for each page: a write comes either before, and its page
// is in the answer and its bytes can be read after Collect, or it is left for the
// next time. After an error any page may have been armed without being in the
// answer, so every page must be taken as written.
func (t *Tracker) Collect(mem []byte, off, n int, into []Range) ([]Range, error) {
	if off < 0 || n < 0 || off > len(mem) || n > len(mem)-off {
		return into, fmt.Errorf("userfault: range [%d, +%d) of %d bytes", off, n, len(mem))
	}
	if err := check(mem[off : off+n]); err != nil {
		return into, err
	}
	room := t.room.Get().(*[scanRoom]pageRegion)
	defer t.room.Put(room)
	base := address(mem)
	start, end := base+uint64(off), base+uint64(off+n)
	for start < end {
		// With exactly these masks the kernel also reports a written page that
		// it has since taken out of the page table, to swap for instance.
		arg := scanArg{
			flags: scanWPMatching | scanCheckWPAsync,
			start: start, end: end,
			categoryMask: pageIsWritten, returnMask: pageIsWritten,
		}
		got, err := scan(int(t.pagemap.Fd()), &arg, room[:])
		if err != nil {
			return into, os.NewSyscallError("ioctl(PAGEMAP_SCAN)", err)
		}
		for _, r := range room[:got] {
			into = appendRange(into, Range{Start: int(r.start - base), End: int(r.end - base)})
		}
		// Only a full answer says that there may be more: walkEnd also stays
		// short of the end on scans that are complete.
		if got < len(room) {
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

// check fails unless mem is whole pages.
func check(mem []byte) error {
	if page := os.Getpagesize(); len(mem)%page != 0 || address(mem)%uint64(page) != 0 {
		return fmt.Errorf("userfault: %d bytes at %#x are not whole pages of %d bytes", len(mem), address(mem), page)
	}
	return nil
}

// Close ends all tracking. The mappings stay as they are. Close is idempotent.
func (t *Tracker) Close() error {
	err := errors.Join(t.uffd.Close(), t.pagemap.Close())
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Probe returns what New would fail with.
func Probe() error {
	t, err := New()
	if err != nil {
		return err
	}
	return t.Close()
}

// try tracks a page of its own.
func (t *Tracker) try() error {
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(mem)
	if err := t.Track(mem); err != nil {
		return err
	}
	if err := t.Arm(mem); err != nil {
		return err
	}
	mem[page] = 1
	got, err := t.Collect(mem, 0, len(mem), nil)
	if err != nil {
		return err
	}
	if len(got) != 1 || got[0] != (Range{Start: page, End: 2 * page}) {
		return fmt.Errorf("a write to the second of two pages was reported as %v", got)
	}
	return nil
}

// explain says why a tracker cannot be made, and whether that may pass.
func explain(err error) error {
	why := "it does not work on this system"
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("userfault: page tracking needs two descriptors; raise the limit of open files (ulimit -n): %w", err)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("userfault: page tracking needs two pages of memory: %w", err)
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
