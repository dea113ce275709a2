// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	noFollow   = unix.O_NOFOLLOW
	maxVectors = 1024
)

func preadv(f *os.File, bufs [][]byte, off int64) (n int, err error) {
	err = with(f, func(fd int) error {
		n, err = unix.Preadv(fd, bufs, off)
		return err
	})
	return n, err
}

func pwritev(f *os.File, bufs [][]byte, off int64) (n int, err error) {
	err = with(f, func(fd int) error {
		n, err = unix.Pwritev(fd, bufs, off)
		return err
	})
	return n, err
}

// Sync makes durable what was written before it was called (fdatasync: the
// length too, but not the time of the change).
func (f *File) Sync() error {
	return f.call("fdatasync", unix.Fdatasync)
}

// StartWriteback asks the kernel to begin writing bytes [off, off+n) to the
// device, so that a later Sync finds less to do. It makes nothing durable.
func (f *File) StartWriteback(off, n int64) error {
	return f.call("sync_file_range", func(fd int) error {
		return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// Allocate takes room for bytes [off, off+n) from the file system, so that
// writing them needs no more, and lengthens the file to hold them. New bytes
// read as zeros.
func (f *File) Allocate(off, n int64) error {
	return f.call("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
}

// Punch gives the room of bytes [off, off+n) back to the file system; they read
// as zeros. The file's length stays. File systems that cannot fail with
// [errors.ErrUnsupported].
func (f *File) Punch(off, n int64) error {
	return f.call("fallocate(PUNCH_HOLE)", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// WillNeed says that bytes [off, off+n) will be read soon.
func (f *File) WillNeed(off, n int64) error {
	return f.call("fadvise", func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_WILLNEED) })
}

func (f *File) call(name string, do func(fd int) error) error {
	err := with(f.f, do)
	switch {
	case err == nil || errors.Is(err, os.ErrClosed):
		return err
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
		err = errors.Join(errors.ErrUnsupported, err)
	}
	return &os.PathError{Op: name, Path: f.Name(), Err: err}
}

// with calls do, again as long as a signal interrupts it, with f's descriptor,
// which is not closed meanwhile.
func with(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		for {
			if err = do(int(fd)); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if cerr != nil { // it has no other reason, and an error of its own for it
		return os.ErrClosed
	}
	return err
}
