// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Draft is memory that is written, and then frozen for ever. It is for one
// goroutine.
type Draft struct {
	file *os.File
	mem  []byte // nil once it is frozen
}

// reserveStep is how many bytes a draft takes from the system at a time: a call
// that a signal interrupts begins again.
const reserveStep = 64 << 20

// NewDraft returns size bytes, at least one, that read as zeros. They are taken from
// the system now: a store never fails for want of memory.
func NewDraft(name string, size int64) (*Draft, error) {
	if size <= 0 || size > 1<<46 {
		return nil, fmt.Errorf("memfd: draft of %d bytes: no size of memory", size)
	}
	file, err := Blank(name)
	if err != nil {
		return nil, err
	}
	d := &Draft{file: file}
	err = file.Truncate(size)
	for off := int64(0); err == nil && off < size; off += reserveStep {
		err = os.NewSyscallError("fallocate", ignoringEINTR(func() error {
			return unix.Fallocate(int(file.Fd()), 0, off, min(reserveStep, size-off))
		}))
	}
	if err == nil {
		d.mem, err = unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("memfd: draft of %d bytes: %w", size, err)
	}
	return d, nil
}

// Bytes returns the memory, until Freeze or Close.
func (d *Draft) Bytes() []byte { return d.mem }

// File returns the memfd. It is the draft's.
func (d *Draft) File() *os.File { return d.file }

// Freeze unmaps the memory and seals it: nobody can change its bytes or its size any
// more.
func (d *Draft) Freeze() error {
	if err := d.unmap(); err != nil {
		return err
	}
	return Freeze(d.file)
}

func (d *Draft) unmap() error {
	if d.mem == nil {
		return nil
	}
	mem := d.mem
	d.mem = nil
	return os.NewSyscallError("munmap", unix.Munmap(mem))
}

// Close gives back the memory, unless somebody else has it.
func (d *Draft) Close() error { return errors.Join(d.unmap(), d.file.Close()) }
