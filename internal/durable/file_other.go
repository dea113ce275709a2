// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package durable

import (
	"errors"
	"io"
	"os"
)

const (
	noFollow   = 0
	maxVectors = 1
)

func preadv(f *os.File, bufs [][]byte, off int64) (int, error) {
	n, err := f.ReadAt(bufs[0], off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func pwritev(f *os.File, bufs [][]byte, off int64) (int, error) { return f.WriteAt(bufs[0], off) }

// Sync makes durable what was written before it was called.
func (f *File) Sync() error { return f.f.Sync() }

// StartWriteback does nothing on this system.
func (f *File) StartWriteback(off, n int64) error { return nil }

// Allocate lengthens the file to hold bytes [off, off+n).
func (f *File) Allocate(off, n int64) error {
	size, err := f.Size()
	if err != nil || size >= off+n {
		return err
	}
	return f.Truncate(off + n)
}

// Punch fails with [errors.ErrUnsupported] on this system.
func (f *File) Punch(off, n int64) error { return errors.ErrUnsupported }

// WillNeed does nothing on this system.
func (f *File) WillNeed(off, n int64) error { return nil }
