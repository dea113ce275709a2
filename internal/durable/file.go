// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"fmt"
	"io"
	"os"
)

// A File is open for reading and writing at any place. Its methods may be called
// concurrently; those that run when Close is called end first, later ones fail
// with [os.ErrClosed].
type File struct{ f *os.File }

// Open opens the file at path, without following a link there, and makes it,
// readable to this user only, if create is set and there is none.
func Open(path string, create bool) (*File, error) {
	flags := os.O_RDWR | noFollow
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return &File{f}, nil
}

// Name returns the path the file was opened by.
func (f *File) Name() string { return f.f.Name() }

// Size returns the file's length in bytes, holes included.
func (f *File) Size() (int64, error) {
	info, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Readv fills bufs, one after the other, from byte off on, and returns how many
// bytes it read: fewer than asked only with an error, io.EOF at the file's end.
// It uses bufs as its own.
func (f *File) Readv(bufs [][]byte, off int64) (int, error) {
	return f.vectored(bufs, off, "preadv", preadv, io.EOF)
}

// Writev writes bufs, one after the other, from byte off on, and returns how
// many bytes it wrote: fewer than asked only with an error. It uses bufs as its
// own.
func (f *File) Writev(bufs [][]byte, off int64) (int, error) {
	return f.vectored(bufs, off, "pwritev", pwritev, io.ErrShortWrite)
}

// vectored repeats call until bufs are done. Call returns 0 without an error
// when nothing more can be done.
func (f *File) vectored(bufs [][]byte, off int64, name string, call func(*os.File, [][]byte, int64) (int, error), end error) (int, error) {
	done := 0
	for {
		for len(bufs) > 0 && len(bufs[0]) == 0 {
			bufs = bufs[1:]
		}
		if len(bufs) == 0 {
			return done, nil
		}
		n, err := call(f.f, bufs[:min(len(bufs), maxVectors)], off+int64(done))
		if err != nil {
			return done, fmt.Errorf("%s %s: %d bytes at %d: %w", name, f.Name(), total(bufs), off+int64(done), err)
		}
		if n == 0 {
			return done, end
		}
		done += n
		for n > 0 {
			k := min(n, len(bufs[0]))
			n -= k
			if bufs[0] = bufs[0][k:]; len(bufs[0]) == 0 {
				bufs = bufs[1:]
			}
		}
	}
}

func total(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// Truncate sets the file's length to size bytes. What is added reads as zeros.
func (f *File) Truncate(size int64) error { return f.f.Truncate(size) }

// Close closes the file. It makes nothing durable.
func (f *File) Close() error { return f.f.Close() }
