// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Published is a memfd that this process alone writes, and that others only
// read while it grows: once it is shared nobody can shrink it, nor get a writable mapping or
// write to it, whatever they do with a descriptor of it. In the end it is frozen,
// and then this process cannot write it either.
//
// Its methods may be called concurrently, but Grow, Fix, Freeze and Close
// with each other or with uses of the memory.
type Published struct {
	file    *os.File               // writable; nil once frozen
	readers *os.File               // read-only
	mem     atomic.Pointer[[]byte] // read-only
	limit   int64
	size    int64 // that it was grown to

	sharing  sync.Mutex             // held to share it and to freeze it
	writable atomic.Pointer[[]byte] // nil until it is shared, and once frozen
}

// Publish makes memory of 0 bytes that can grow to limit. It takes address space
// for limit, twice if it is shared before it is frozen, and no memory.
func Publish(name string, limit int64) (*Published, error) {
	if limit < 0 || limit > 1<<46 {
		return nil, fmt.Errorf("memfd: publish %q: limit %d is no size of memory", name, limit)
	}
	name = name[:min(len(name), maxName)]
	fd, err := create(name)
	if err != nil {
		return nil, err
	}
	p := &Published{file: os.NewFile(uintptr(fd), "memfd:"+name), limit: limit}
	if err := p.publish(fd); err != nil {
		p.Close()
		return nil, fmt.Errorf("memfd: publish %q of up to %d bytes: %w", name, limit, err)
	}
	return p, nil
}

func (p *Published) publish(fd int) (err error) {
	// Other users cannot open it anew by the descriptor that they are passed.
	if err := unix.Fchmod(fd, 0o400); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
	}
	return p.openReadOnly(fd)
}

// length is that of a mapping: one of 0 bytes cannot be.
func (p *Published) length() int { return int(max(p.limit, 1)) }

// Share makes File's descriptor one that can be passed to other processes: from now on
// the one way to write is a mapping of this process. It is idempotent.
func (p *Published) Share() error {
	p.sharing.Lock()
	defer p.sharing.Unlock()
	if p.file == nil || p.writable.Load() != nil {
		return nil
	}
	fd := int(p.file.Fd())
	mem, err := unix.Mmap(fd, 0, p.length(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); err != nil {
		return errors.Join(os.NewSyscallError("fcntl(F_ADD_SEALS)", err), os.NewSyscallError("munmap", unix.Munmap(mem)))
	}
	p.writable.Store(&mem)
	return nil
}

// openReadOnly opens and maps it such that the mapping does not count as one that may become writable,
// which would forbid the seal.
func (p *Published) openReadOnly(fd int) (err error) {
	if p.readers, err = os.Open("/proc/self/fd/" + strconv.Itoa(fd)); err != nil {
		return err
	}
	mem, err := unix.Mmap(int(p.readers.Fd()), 0, p.length(), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	mem = mem[:p.limit]
	p.mem.Store(&mem)
	return nil
}

// Adopt takes a memfd that another process made, and that nobody can write,
// shrink or grow any more. On success it has a descriptor of its own; file stays
// the caller's.
func Adopt(file *os.File) (*Published, error) {
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	got, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("memfd: adopt %s, which is no memfd: %w", file.Name(), os.NewSyscallError("fcntl(F_GET_SEALS)", err))
	}
	if got&want != want {
		return nil, fmt.Errorf("memfd: adopt %s: its seals are %#x, which allow changes: F_SEAL_WRITE, F_SEAL_SHRINK and F_SEAL_GROW are needed", file.Name(), got)
	}
	if err := checkPages(file); err != nil {
		return nil, fmt.Errorf("memfd: adopt %s: %w", file.Name(), err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	p := &Published{limit: info.Size(), size: info.Size()}
	if p.limit > 1<<46 {
		return nil, fmt.Errorf("memfd: adopt %s: %d bytes are too many", file.Name(), p.limit)
	}
	if err := p.openReadOnly(int(file.Fd())); err != nil {
		p.Close()
		return nil, fmt.Errorf("memfd: adopt %s: %w", file.Name(), err)
	}
	return p, nil
}

// Limit returns the size up to which it can grow, and for which Bytes has room.
func (p *Published) Limit() int64 { return p.limit }

// Bytes returns the memory, read-only: a store to it is a fault, and so is a
// load from behind what it has grown to. It is valid until Close; what is behind
// that until Freeze.
func (p *Published) Bytes() []byte { return *p.mem.Load() }

// Writable returns the memory for storing to what it has grown to, from Share until
// Freeze or Close; else nil.
func (p *Published) Writable() []byte {
	mem := p.writable.Load()
	if mem == nil {
		return nil
	}
	return (*mem)[:p.limit]
}

// WriteAt stores b at off, within what it has grown to. Without memory it fails, where a
// store would kill the process.
//
// Until it is shared that is a system call rather than a store: pages that are written whole
// are not zeroed first, which takes as long as to copy, and none is mapped.
func (p *Published) WriteAt(b []byte, off int64) (int, error) {
	if mem := p.Writable(); mem != nil {
		return p.store(mem, b, off)
	}
	n, err := p.file.WriteAt(b, off)
	if errors.Is(err, unix.EPERM) { // it is being shared
		p.sharing.Lock()
		mem := p.Writable()
		p.sharing.Unlock()
		if mem != nil {
			return p.store(mem, b, off)
		}
	}
	return n, err
}

func (p *Published) store(mem, b []byte, off int64) (int, error) {
	if err := p.Populate(off, int64(len(b))); err != nil {
		return 0, err
	}
	return Copy(mem[off:off+int64(len(b))], b), nil
}

// File returns a read-only descriptor, for passing to other processes once it is shared
// or frozen. It stays owned by p.
func (p *Published) File() *os.File { return p.readers }

// Grow makes it at least size bytes long. The new ones are zeros, and take no memory.
func (p *Published) Grow(size int64) error {
	if size < 0 || size > p.limit {
		return fmt.Errorf("memfd: grow to %d bytes of at most %d", size, p.limit)
	}
	fd := int(p.file.Fd())
	p.size = max(p.size, size)
	err := ignoringEINTR(func() error { return unix.Ftruncate(fd, size) })
	if errors.Is(err, unix.EPERM) { // it is longer: others can make it so until it is fixed, and nobody shorter
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Size >= size {
			return nil
		}
	}
	return os.NewSyscallError("ftruncate", err)
}

// Fix keeps it from growing further, for everybody.
func (p *Published) Fix() error {
	_, err := unix.FcntlInt(p.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW)
	return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
}

// Populate takes the memory of [off, off+n) of what is shared, rounded to whole pages, from
// the system: a store there does not fault any more. Without memory it fails, where a
// store would kill the process.
func (p *Published) Populate(off, n int64) error {
	if off < 0 || n < 0 || off > p.limit || n > p.limit-off {
		return fmt.Errorf("memfd: populate [%d, +%d) of %d bytes", off, n, p.limit)
	}
	if n == 0 {
		return nil
	}
	start := off &^ int64(os.Getpagesize()-1)
	err := ignoringEINTR(func() error { return unix.Madvise(p.Writable()[start:off+n], unix.MADV_POPULATE_WRITE) })
	if errors.Is(err, unix.EINVAL) { // Linux 5.13
		err = ignoringEINTR(func() error { return unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n) })
	}
	if errors.Is(err, unix.EFAULT) { // what madvise calls a fault for want of memory
		err = unix.ENOMEM
	}
	return os.NewSyscallError("take memory", err)
}

// Freeze ends writing, for ever and for everybody, and growing: what it has grown to
// is its limit, and address space behind that is given back. It is idempotent.
func (p *Published) Freeze() error {
	p.sharing.Lock()
	defer p.sharing.Unlock()
	if p.file == nil {
		return nil
	}
	writable := p.writable.Swap(nil)
	if writable != nil {
		if err := unix.Munmap(*writable); err != nil {
			return os.NewSyscallError("munmap", err)
		}
	}
	if err := p.shrink(); err != nil {
		return err
	}
	fd := p.file.Fd()
	const size = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	_, err := unix.FcntlInt(fd, unix.F_ADD_SEALS, size|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL)
	if err != nil && writable != nil {
		// A reader that keeps pages busy (in a pipe) can forbid this seal. That
		// nobody gets to write anew holds since it was shared, and the one
		// mapping that could is gone: it is frozen all the same.
		_, err = unix.FcntlInt(fd, unix.F_ADD_SEALS, size|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
	}
	file := p.file
	p.file = nil
	return file.Close()
}

// shrink gives back the address space behind what it has grown to. The rest stays in
// its place, and may be read meanwhile.
func (p *Published) shrink() error {
	if p.size == p.limit {
		return nil
	}
	mem := *p.mem.Load()
	mem, err := unix.Mremap(mem[:cap(mem)], int(max(p.size, 1)), 0)
	if err != nil {
		return os.NewSyscallError("mremap", err)
	}
	mem = mem[:p.size]
	p.mem.Store(&mem)
	p.limit = p.size
	return nil
}

// Resident returns how many bytes of the system's memory it holds.
func (p *Published) Resident() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(p.readers.Fd()), &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Blocks * 512, nil
}

// ReadAt copies from the memory without making holes cost any.
func (p *Published) ReadAt(b []byte, off int64) (int, error) { return p.readers.ReadAt(b, off) }

// Close unmaps and closes it. The memory lives on while others map it or have a
// descriptor.
func (p *Published) Close() error {
	var errs []error
	for _, mem := range []*[]byte{p.writable.Swap(nil), p.mem.Swap(nil)} {
		if mem != nil {
			errs = append(errs, os.NewSyscallError("munmap", unix.Munmap((*mem)[:cap(*mem)])))
		}
	}
	for _, f := range []*os.File{p.file, p.readers} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	p.file = nil
	return errors.Join(errs...)
}

// Size returns the length of memory whose descriptor came from another process, in
// bytes.
func Size(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, fmt.Errorf("memfd: size of %s: %w", file.Name(), err)
	}
	return info.Size(), nil
}

// Solid reports whether the first size bytes of a memory, whose descriptor came from another
// process, have all their pages: then reading them where they are mapped makes none.
func Solid(file *os.File, size int64) bool {
	var st unix.Stat_t
	return unix.Fstat(int(file.Fd()), &st) == nil && st.Blocks*512 >= size
}

// A Limits says what the system allows this process, in bytes; 0: no limit.
type Limits struct {
	File         int64 // RLIMIT_FSIZE, of each file: growing beyond it kills the process
	AddressSpace int64 // RLIMIT_AS, of all mappings together
}

// ReadLimits returns what holds now.
func ReadLimits() Limits {
	limit := func(resource int) int64 {
		var l unix.Rlimit
		if unix.Getrlimit(resource, &l) != nil || l.Cur > 1<<62 {
			return 0
		}
		return max(int64(l.Cur), 1)
	}
	return Limits{File: limit(unix.RLIMIT_FSIZE), AddressSpace: limit(unix.RLIMIT_AS)}
}

// Data returns where the data of a file is: ascending ranges {offset, end} of [0,
// size), of which no two touch. What is between them reads as zeros. It returns at
// most limit of them; the last then goes on to the end, holes or not. Where the file
// system knows no holes, and where the file cannot be opened anew, it is all data.
func Data(file *os.File, size int64, limit int) ([][2]int64, error) {
	// Looking for holes moves an offset, and this one is its owner's.
	file, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
	if err != nil {
		return [][2]int64{{0, size}}, nil
	}
	defer file.Close()
	var found [][2]int64
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return found, nil
		case errors.Is(err, unix.EINVAL): // no such operation here
			begin = at
		case err != nil:
			return nil, &os.PathError{Op: "lseek(SEEK_DATA)", Path: file.Name(), Err: err}
		}
		if begin >= size {
			break
		}
		end := size
		if len(found) < limit-1 {
			if e, err := unix.Seek(int(file.Fd()), begin, unix.SEEK_HOLE); err == nil && e > begin {
				end = min(e, size)
			}
		}
		found = append(found, [2]int64{begin, end})
		at = end
	}
	return found, nil
}
