// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package sharedfile

import (
	"errors"
	"fmt"
	"os"
)

var errNeedsLinux = fmt.Errorf("sharedfile: shared buffers need Linux: %w", errors.ErrUnsupported)

// A Dir cannot be opened on this system.
type Dir struct{}

// OpenDir fails on this system.
func OpenDir(string) (*Dir, error) { return nil, errNeedsLinux }

// Close does nothing.
func (d *Dir) Close() error { return nil }

// Open fails on this system.
func (d *Dir) Open(string, bool) (*os.File, error) { return nil, errNeedsLinux }

// Create fails on this system.
func (d *Dir) Create(string) (*os.File, error) { return nil, errNeedsLinux }

// Remove fails on this system.
func (d *Dir) Remove(string) error { return errNeedsLinux }

// Same fails on this system.
func (d *Dir) Same(string, *os.File) (bool, error) { return false, errNeedsLinux }

// Names fails on this system.
func (d *Dir) Names(string) ([]string, error) { return nil, errNeedsLinux }

// Reserve fails on this system.
func Reserve(*os.File, int64) error { return errNeedsLinux }

// Map fails on this system.
func Map(*os.File, int64, bool, bool) ([]byte, error) { return nil, errNeedsLinux }

// Unmap fails on this system.
func Unmap([]byte) error { return errNeedsLinux }

// Enlarge does nothing.
func Enlarge(*os.File, []byte) {}

// Publish fails on this system.
func Publish([]byte) error { return errNeedsLinux }

// Refresh fails on this system.
func Refresh(*os.File, []byte) error { return errNeedsLinux }

// TryLock fails on this system.
func TryLock(*os.File) (bool, error) { return false, errNeedsLinux }

// Owner fails on this system.
func Owner(*os.File) (int, error) { return 0, errNeedsLinux }

// BootID fails on this system.
func BootID() (string, error) { return "", errNeedsLinux }
