// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/windows"
)

// A Lock is held until Close, or until the process ends.
type Lock struct{ h windows.Handle }

// Try takes the lock that the file at path stands for, and makes the file if
// there is none. It does not wait: it fails with ErrHeld if the lock is taken.
func Try(path string) (*Lock, error) {
	failed := func(err error) (*Lock, error) { return nil, &fs.PathError{Op: "lock", Path: path, Err: err} }
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return failed(err)
	}
	// Nobody else may open it, and it goes with the handle, however that goes.
	const flags = windows.FILE_ATTRIBUTE_NORMAL | windows.FILE_FLAG_DELETE_ON_CLOSE | windows.FILE_FLAG_OPEN_REPARSE_POINT
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE|windows.DELETE, 0, nil, windows.OPEN_ALWAYS, flags, 0)
	if errors.Is(err, windows.ERROR_SHARING_VIOLATION) || errors.Is(err, windows.ERROR_DELETE_PENDING) {
		return nil, ErrHeld
	}
	if err != nil && !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return failed(err)
	}
	return &Lock{h}, nil
}

// Close removes the file and gives the lock back. It must be called once.
func (l *Lock) Close() error { return windows.CloseHandle(l.h) }
