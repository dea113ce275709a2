// SPDX-License-Identifier: Apache-2.0

//go:build unix

package filelock

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// A Lock is held until Close, or until the process ends.
type Lock struct{ f *os.File }

// Try takes the lock that the file at path stands for, and makes the file if
// there is none. It does not wait: it fails with ErrHeld if the lock is taken.
func Try(path string) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		there, err := lock(f, path)
		if err != nil {
			f.Close()
			return nil, err
		}
		if there {
			return &Lock{f}, nil
		}
		f.Close() // its last holder has removed it: there may be another one
	}
}

// lock locks f and reports whether it is still the file at path.
func lock(f *os.File, path string) (there bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return false, ErrHeld
	case err != nil:
		return false, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, now), err
}

// Close removes the file and gives the lock back. It must be called once.
func (l *Lock) Close() error {
	// Removed while it is locked, it is nobody else's.
	return errors.Join(os.Remove(l.f.Name()), l.f.Close())
}
