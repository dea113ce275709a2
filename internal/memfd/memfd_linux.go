// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// seals fix the size for ever. F_SEAL_SEAL keeps a peer that holds the
// descriptor from adding F_SEAL_WRITE under us.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// maxName is the longest name that memfd_create takes.
const maxName = 249

// A Region is a memfd whose size is sealed, mapped shared and writable.
// Its methods may be called concurrently; Close must come last.
type Region struct {
	file *os.File
	mem  []byte

	closeOnce sync.Once
	closeErr  error
}

// Create makes a region of size bytes, rounded up to whole pages, that reads
// as zeros. Its pages are taken from the system as they are first written, or
// by Allocate. The name appears in /proc/PID/maps only, clipped to what the
// kernel takes.
func Create(name string, size int64) (*Region, error) {
	if size <= 0 {
		return nil, fmt.Errorf("memfd: create %q: size %d is not positive", name, size)
	}
	page := int64(os.Getpagesize())
	if size > 1<<62 {
		return nil, fmt.Errorf("memfd: create %q: size %d is too large", name, size)
	}
	size = (size + page - 1) / page * page
	name = name[:min(len(name), maxName)]
	fd, err := create(name)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "memfd:"+name)
	if err := unix.Ftruncate(fd, size); err != nil {
		file.Close()
		return nil, os.NewSyscallError("ftruncate", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		file.Close()
		return nil, os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
	}
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		file.Close()
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Region{file: file, mem: mem}, nil
}

func create(name string) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // MFD_NOEXEC_SEAL: Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	return fd, os.NewSyscallError("memfd_create", nameLimit(err))
}

// nameLimit has an error for want of descriptors name the limit, and what raises
// it.
func nameLimit(err error) error {
	var files unix.Rlimit
	if errors.Is(err, unix.EMFILE) && unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		return fmt.Errorf("%w: RLIMIT_NOFILE allows %d (ulimit -n)", err, files.Cur)
	}
	return err
}

// Open maps a region that another process made and whose descriptor came from
// it. It refuses a descriptor that is not sealed against shrinking, or that is
// smaller than size bytes. On success the region owns file.
func Open(file *os.File, size int64) (*Region, error) {
	if err := CheckSealed(file, size); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Region{file: file, mem: mem}, nil
}

// Duplicate returns one more descriptor of the same file.
func Duplicate(file *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// CheckSealed fails unless file is one whose first size bytes nobody can take
// away any more.
func CheckSealed(file *os.File, size int64) error {
	got, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return os.NewSyscallError("fcntl(F_GET_SEALS)", err)
	}
	if got&unix.F_SEAL_SHRINK == 0 {
		return errors.New("memfd: descriptor is not sealed against shrinking")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if size <= 0 || st.Size < size {
		return fmt.Errorf("memfd: descriptor holds %d bytes, want %d", st.Size, size)
	}
	return nil
}

// CheckFixed fails unless file is memory of ordinary pages whose size nobody can
// change any more. The error matches errors.ErrUnsupported.
func CheckFixed(file *os.File) error {
	const want = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	got, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("memfd: %w: it is no memfd: %w", errors.ErrUnsupported, os.NewSyscallError("fcntl(F_GET_SEALS)", err))
	}
	if got&want != want {
		return fmt.Errorf("memfd: %w: its seals are %#x; F_SEAL_SHRINK and F_SEAL_GROW are needed", errors.ErrUnsupported, got)
	}
	return checkPages(file)
}

// checkPages fails if a memfd has huge pages, of hugetlbfs: reading a hole may
// fault there, and pages of the common size cannot be taken or given back. The
// error matches errors.ErrUnsupported.
func checkPages(file *os.File) error {
	var system unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(int(file.Fd()), &system) }); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	if system.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("memfd: %w: it has huge pages of hugetlbfs", errors.ErrUnsupported)
	}
	return nil
}

// Bytes returns the region's memory. It is valid until Close.
func (r *Region) Bytes() []byte { return r.mem }

// Size returns the region's length in bytes, a multiple of the page size.
func (r *Region) Size() int64 { return int64(len(r.mem)) }

// File returns the descriptor, for passing to another process. It stays owned
// by the region.
func (r *Region) File() *os.File { return r.file }

// Reopen returns a new descriptor of the same memory, which can be mapped
// writable only if writable is true. The caller closes it, and sees to it that
// Close does not run at the same time.
func (r *Region) Reopen(writable bool) (*os.File, error) {
	mode := os.O_RDONLY
	if writable {
		mode = os.O_RDWR
	}
	return os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(r.file.Fd())), mode, 0)
}

// MaxRegions estimates how many regions this process can have open: each takes
// a descriptor and a mapping (vm.max_map_count), of which others need some.
func MaxRegions() int {
	n := 1 << 20
	if text, err := os.ReadFile("/proc/sys/vm/max_map_count"); err == nil {
		if maps, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			n = min(n, maps/2)
		}
	}
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < uint64(2*n) {
		n = min(n, int(files.Cur/2))
	}
	return n
}

// Allocate takes the pages of [off, off+n) from the system now, so that a
// later store cannot fail for want of memory. Contents do not change.
func (r *Region) Allocate(off, n int64) error {
	return os.NewSyscallError("fallocate", ignoringEINTR(func() error {
		return unix.Fallocate(int(r.file.Fd()), 0, off, n)
	}))
}

// Punch gives the whole pages of [off, off+n) back to the system; they read as
// zeros afterwards.
func (r *Region) Punch(off, n int64) error {
	return os.NewSyscallError("fallocate(PUNCH_HOLE)", ignoringEINTR(func() error {
		return unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}))
}

// Populate makes the pages of [off, off+n), which lie within the region, ready to
// be stored to: at once, where each would fault by itself. It is a hint: a kernel
// before 5.14 takes none.
func (r *Region) Populate(off, n int64) {
	_ = unix.Madvise(r.mem[off:off+n], unix.MADV_POPULATE_WRITE)
}

// Close unmaps the memory and closes the descriptor. The pages go back to the
// system when the last process that maps them lets go. Close is idempotent.
func (r *Region) Close() error {
	r.closeOnce.Do(func() {
		r.closeErr = errors.Join(os.NewSyscallError("munmap", unix.Munmap(r.mem)), r.file.Close())
	})
	return r.closeErr
}

// MapRange maps bytes [off, off+n) of a region that another process made, and
// with them the rest of the pages they begin and end in. It refuses a file
// that is not sealed against shrinking or ends before off+n. The mapping does
// not need file any longer, which stays the caller's; give it back with Unmap.
func MapRange(file *os.File, off, n int64, writable bool) ([]byte, error) {
	if off < 0 || n <= 0 || off > 1<<62 || n > 1<<62 {
		return nil, fmt.Errorf("memfd: map [%d, +%d): not a range", off, n)
	}
	if err := CheckSealed(file, off+n); err != nil {
		return nil, err
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	start := off &^ int64(os.Getpagesize()-1)
	mem, err := unix.Mmap(int(file.Fd()), start, int(off+n-start), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return mem, nil
}

// Unmap gives back a mapping that MapRange returned: the whole slice.
func Unmap(mem []byte) error { return os.NewSyscallError("munmap", unix.Munmap(mem)) }

// ignoringEINTR repeats a call that the Go scheduler's signals interrupt:
// fallocate of large ranges does not restart by itself.
func ignoringEINTR(call func() error) error {
	for {
		err := call()
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
