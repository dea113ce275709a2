// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package sharedfile

import (
	"errors"
	"fmt"
	"os"
)

var errSystem = fmt.Errorf("sharedfile: shared buffers need Linux or Windows: %w", errors.ErrUnsupported)

// A Dir cannot be opened on this system.
type Dir struct{}

// OpenDir fails on this system.
func OpenDir(string) (*Dir, error) { return nil, errSystem }

// Close does nothing.
func (d *Dir) Close() error { return nil }

// Open fails on this system.
func (d *Dir) Open(string, bool) (*os.File, error) { return nil, errSystem }

// Create fails on this system.
func (d *Dir) Create(string) (*os.File, error) { return nil, errSystem }

// Remove fails on this system.
func (d *Dir) Remove(string) error { return errSystem }

// Same fails on this system.
func (d *Dir) Same(string, *os.File) (bool, error) { return false, errSystem }

// Names fails on this system.
func (d *Dir) Names(string) ([]string, error) { return nil, errSystem }

// Reserve fails on this system.
func Reserve(*os.File, int64, int64) error { return errSystem }

// Map fails on this system.
func Map(*os.File, int64, bool) ([]byte, error) { return nil, errSystem }

// Populate does nothing.
func Populate([]byte) {}

// Unmap fails on this system.
func Unmap([]byte) error { return errSystem }

// Enlarge does nothing.
func Enlarge(*os.File, int64, []byte) {}

// Publish fails on this system.
func Publish(*os.File, []byte) error { return errSystem }

// Refresh fails on this system.
func Refresh(*os.File, []byte) error { return errSystem }

// TryLock fails on this system.
func TryLock(*os.File) (bool, error) { return false, errSystem }

// Owner fails on this system.
func Owner(*os.File) (int, error) { return 0, errSystem }

// InMemory returns false.
func InMemory(*os.File) bool { return false }

// BootID fails on this system.
func BootID() (string, error) { return "", errSystem }
