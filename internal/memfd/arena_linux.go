// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxArena is how large an arena's memfd is, in bytes: no piece is ever where
// another was, so it lasts for longer than anybody can go on taking pieces.
const maxArena = 1 << 62

// An Arena is memory of this process alone, from which pieces are taken. However
// many there are, they take one descriptor; one more for each RLIMIT_FSIZE bytes
// that were taken, if there is such a limit. Its methods may be called
// concurrently.
type Arena struct {
	name string

	mu     sync.Mutex
	file   *arenaFile // where the next piece is; nil before the first
	closed bool
}

// An arenaFile is a memfd of fixed size, of which pages cost memory once they
// are touched. What follows its descriptor is protected by the arena's mu.
type arenaFile struct {
	*os.File
	size, taken int64 // bytes; what was taken is not taken again
	users       int   // pieces, and the arena
}

// NewArena returns an arena that has no memory yet. The name appears in
// /proc/PID/maps only, clipped to what the kernel takes.
func NewArena(name string) *Arena { return &Arena{name: name[:min(len(name), maxName)]} }

// Take returns a piece of size bytes, rounded up to whole pages, that reads as
// zeros. Its pages are taken from the system as they are first written.
func (a *Arena) Take(size int64) (*Piece, error) {
	fail := func(err error) (*Piece, error) {
		return nil, fmt.Errorf("memfd: take %d bytes of %q: %w", size, a.name, err)
	}
	if size <= 0 || size > maxArena || int64(int(size)) != size {
		return fail(errors.New("not a size of memory"))
	}
	page := int64(os.Getpagesize())
	size = (size + page - 1) / page * page
	file, off, err := a.reserve(size)
	if err != nil {
		return fail(err)
	}
	p := &Piece{arena: a, file: file, off: off}
	if p.mem, err = p.mapped(size); err != nil {
		return fail(errors.Join(err, a.leave(file)))
	}
	return p, nil
}

// reserve finds room for a piece and counts it.
func (a *Arena) reserve(size int64) (*arenaFile, int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, 0, os.ErrClosed
	}
	if a.file == nil || size > a.file.size-a.file.taken {
		file, err := newArenaFile(a.name, size)
		if err != nil {
			return nil, 0, err
		}
		if err := a.dropLocked(a.file); err != nil {
			return nil, 0, errors.Join(err, file.Close())
		}
		a.file = file
	}
	off := a.file.taken
	a.file.taken += size
	a.file.users++
	return a.file, off, nil
}

func newArenaFile(name string, least int64) (*arenaFile, error) {
	size := int64(maxArena)
	if limit := ReadLimits().File; limit > 0 { // to grow beyond it would kill the process
		size = min(size, limit&^int64(os.Getpagesize()-1))
	}
	if size < least {
		return nil, fmt.Errorf("RLIMIT_FSIZE allows %d (ulimit -f): %w", size, unix.EFBIG)
	}
	fd, err := create(name)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "memfd:"+name)
	if err := file.Truncate(size); err != nil {
		file.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		file.Close()
		return nil, os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
	}
	return &arenaFile{File: file, size: size, users: 1}, nil
}

// leave takes note that a piece is no more.
func (a *Arena) leave(file *arenaFile) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dropLocked(file)
}

// dropLocked closes a file that nobody uses any more.
func (a *Arena) dropLocked(file *arenaFile) error {
	if file == nil {
		return nil
	}
	if file.users--; file.users > 0 {
		return nil
	}
	return file.Close()
}

// Close has no more pieces taken. Those that are stay usable; with the last the
// descriptor goes. Close is idempotent.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	file := a.file
	a.file, a.closed = nil, true
	return a.dropLocked(file)
}

// A Piece is memory of an arena, mapped shared and writable. Its methods may be
// called concurrently, save that Alias and Close are for one goroutine at a
// time; Close must come last.
type Piece struct {
	arena   *Arena
	file    *arenaFile
	off     int64 // in file
	mem     []byte
	aliases [][]byte
	closed  bool
}

func (p *Piece) mapped(n int64) ([]byte, error) {
	mem, err := unix.Mmap(int(p.file.Fd()), p.off, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if errors.Is(err, unix.ENOMEM) {
		return nil, fmt.Errorf("no address space, or more mappings than vm.max_map_count allows: %w", os.NewSyscallError("mmap", err))
	}
	return mem, os.NewSyscallError("mmap", err)
}

// Bytes returns the piece's memory. It is valid until Close.
func (p *Piece) Bytes() []byte { return p.mem }

// Size returns the piece's length in bytes, a multiple of the page size.
func (p *Piece) Size() int64 { return int64(len(p.mem)) }

// Alias maps the first n bytes, rounded up to whole pages, once more and
// returns that mapping. It shows the same bytes and is valid until Close.
func (p *Piece) Alias(n int64) ([]byte, error) {
	if n <= 0 || n > p.Size() {
		return nil, fmt.Errorf("memfd: alias %d of %d bytes", n, p.Size())
	}
	mem, err := p.mapped(n)
	if err != nil {
		return nil, fmt.Errorf("memfd: alias %d bytes: %w", n, err)
	}
	p.aliases = append(p.aliases, mem)
	return mem, nil
}

// NextData returns the offset of the first byte of [off, end) whose page
// exists, or end. Bytes before it read as zeros, and finding that out here does
// not make them cost memory.
func (p *Piece) NextData(off, end int64) (int64, error) {
	if off < 0 || end > p.Size() || off > end {
		return 0, fmt.Errorf("memfd: data of [%d, %d) in %d bytes", off, end, p.Size())
	}
	return p.seek(off, end, unix.SEEK_DATA)
}

// seek returns the first byte of [off, end) that is data, or a hole, or end.
func (p *Piece) seek(off, end int64, what int) (int64, error) {
	if off == end {
		return end, nil
	}
	at, err := unix.Seek(int(p.file.Fd()), p.off+off, what)
	if errors.Is(err, unix.ENXIO) {
		return end, nil
	}
	if err != nil {
		return 0, os.NewSyscallError("lseek", err)
	}
	return min(at-p.off, end), nil
}

// Resident returns how many bytes of the system's memory the piece holds. Pages
// that nobody has touched cost nothing.
func (p *Piece) Resident() (int64, error) {
	resident := int64(0)
	for at := int64(0); ; {
		from, err := p.seek(at, p.Size(), unix.SEEK_DATA)
		if err != nil {
			return 0, err
		}
		if at, err = p.seek(from, p.Size(), unix.SEEK_HOLE); err != nil {
			return 0, err
		}
		if at == from {
			return resident, nil
		}
		resident += at - from
	}
}

// Close unmaps the memory, aliases too, and gives its pages back to the system.
// Close is idempotent.
func (p *Piece) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	var errs []error
	for _, mem := range append(p.aliases, p.mem) {
		errs = append(errs, os.NewSyscallError("munmap", unix.Munmap(mem)))
	}
	errs = append(errs, os.NewSyscallError("fallocate(PUNCH_HOLE)", ignoringEINTR(func() error {
		return unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, p.off, p.Size())
	})))
	return errors.Join(append(errs, p.arena.leave(p.file))...)
}
