// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/windows"
)

// Published is memory of the paging file that this process alone writes, and that
// others only read while it grows: nobody can shrink it, nor ever get a writable
// mapping by a handle that was passed to him, unless he may take over what other
// users own. In the end it is frozen, and then this process cannot write it either.
//
// Its methods may be called concurrently, but Grow, Fix, Freeze and Close
// with each other or with uses of the memory.
type Published struct {
	section  *os.File // writable; nil once frozen
	readers  *os.File // read-only
	writable []byte   // nil once frozen
	mem      []byte   // read-only
	limit    int64
	size     atomic.Int64
	fixed    bool
}

// Publish makes memory of 0 bytes that can grow to limit. It takes address space
// for limit, twice, and no memory. The name is for errors.
func Publish(name string, limit int64) (*Published, error) {
	if limit < 0 || limit > maxRegionSize {
		return nil, fmt.Errorf("memfd: publish %q: limit %d is no size of memory", name, limit)
	}
	p := &Published{limit: limit}
	if err := p.publish(name); err != nil {
		p.Close()
		return nil, fmt.Errorf("memfd: publish %q of up to %d bytes: %w", name, limit, err)
	}
	return p, nil
}

func (p *Published) publish(name string) error {
	length := max(p.limit, 1) // a mapping of 0 bytes cannot be
	h, err := newSection(length)
	if err != nil {
		return err
	}
	p.section = os.NewFile(uintptr(h), "memfd:"+name)
	if p.readers, err = reopen(p.section); err != nil {
		return err
	}
	if p.writable, err = mapSection(h, windows.FILE_MAP_READ|windows.FILE_MAP_WRITE, 0, length); err != nil {
		return err
	}
	p.mem, err = mapSection(windows.Handle(p.readers.Fd()), windows.FILE_MAP_READ, 0, length)
	return err
}

// Adopt fails: that nobody can write a section cannot be told from its handle.
func Adopt(file *os.File) (*Published, error) {
	return nil, fmt.Errorf("memfd: adopt %s: who else can write it cannot be told on Windows: %w", file.Name(), errors.ErrUnsupported)
}

// Limit returns the size up to which it can grow, and for which Bytes has room.
func (p *Published) Limit() int64 { return p.limit }

// Bytes returns the memory, read-only: a store to it is a fault, and so is a
// load from behind what it has grown to. It is valid until Close.
func (p *Published) Bytes() []byte { return p.mem[:p.limit] }

// Writable returns the memory for storing to what it has grown to, valid until
// Freeze or Close; nil after them.
func (p *Published) Writable() []byte {
	if p.writable == nil {
		return nil
	}
	return p.writable[:p.limit]
}

// Share does nothing: handles that were made for reading never write.
func (p *Published) Share() error { return nil }

// WriteAt stores b at off, within what it has grown to.
func (p *Published) WriteAt(b []byte, off int64) (int, error) {
	if size := p.size.Load(); off < 0 || off > size || int64(len(b)) > size-off {
		return 0, fmt.Errorf("memfd: write [%d, +%d) of %d bytes", off, len(b), size)
	}
	return Copy(p.writable[off:], b), nil
}

// File returns a read-only handle, for passing to other processes, which can be
// mapped only. It stays owned by p.
func (p *Published) File() *os.File { return p.readers }

// Grow makes it at least size bytes long. The new ones are zeros, and the system
// promises their memory, which it may not have.
func (p *Published) Grow(size int64) error {
	switch {
	case size < 0 || size > p.limit:
		return fmt.Errorf("memfd: grow to %d bytes of at most %d", size, p.limit)
	case size <= p.size.Load():
		return nil
	case p.fixed || p.writable == nil:
		return fmt.Errorf("memfd: grow to %d bytes: it was fixed at %d", size, p.size.Load())
	}
	if err := commit(p.writable, size); err != nil {
		return err
	}
	p.size.Store(size)
	return nil
}

// Fix keeps it from growing further.
func (p *Published) Fix() error {
	p.fixed = true
	return nil
}

// Populate does nothing: what it has grown to has its memory.
func (p *Published) Populate(off, n int64) error {
	if off < 0 || n < 0 || off > p.limit || n > p.limit-off {
		return fmt.Errorf("memfd: populate [%d, +%d) of %d bytes", off, n, p.limit)
	}
	return nil
}

// Freeze ends writing, for ever and for everybody, and growing. It is idempotent.
func (p *Published) Freeze() error {
	if p.section == nil {
		return nil
	}
	writable, section := p.writable, p.section
	p.writable, p.section = nil, nil
	return errors.Join(unmapView(writable), section.Close())
}

// Resident returns how many bytes of the system's memory it holds.
func (p *Published) Resident() (int64, error) { return p.size.Load(), nil }

// ReadAt copies from the memory.
func (p *Published) ReadAt(b []byte, off int64) (int, error) {
	size := p.size.Load()
	if off < 0 {
		return 0, fmt.Errorf("memfd: read at %d", off)
	}
	if off >= size {
		return 0, io.EOF
	}
	n := Copy(b, p.mem[off:size])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Close unmaps and closes it. The memory lives on while others map it or have a
// handle.
func (p *Published) Close() error {
	var errs []error
	for _, mem := range [][]byte{p.writable, p.mem} {
		if mem != nil {
			errs = append(errs, unmapView(mem))
		}
	}
	for _, f := range []*os.File{p.section, p.readers} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	p.writable, p.mem, p.section, p.readers = nil, nil, nil, nil
	return errors.Join(errs...)
}
