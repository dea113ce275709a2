// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package memfd

import "os"

// Size fails on this system.
func Size(*os.File) (int64, error) { return 0, errNeedsLinux }

// Solid has nothing to tell on this system.
func Solid(*os.File, int64) bool { return true }

// MapRange fails on this system.
func MapRange(*os.File, int64, int64, bool) ([]byte, error) { return nil, errNeedsLinux }

// CheckSealed fails on this system.
func CheckSealed(*os.File, int64) error { return errNeedsLinux }

// Unmap fails on this system.
func Unmap([]byte) error { return errNeedsLinux }

// Published is a memfd on Linux; it cannot be made on this system.
type Published struct{}

// Publish fails on this system.
func Publish(string, int64) (*Published, error) { return nil, errNeedsLinux }

// Adopt fails on this system.
func Adopt(*os.File) (*Published, error) { return nil, errNeedsLinux }

// Limit returns 0.
func (p *Published) Limit() int64 { return 0 }

// Bytes returns nil.
func (p *Published) Bytes() []byte { return nil }

// Writable returns nil.
func (p *Published) Writable() []byte { return nil }

// File returns nil.
func (p *Published) File() *os.File { return nil }

// Grow fails on this system.
func (p *Published) Grow(int64) error { return errNeedsLinux }

// Share fails on this system.
func (p *Published) Share() error { return errNeedsLinux }

// WriteAt fails on this system.
func (p *Published) WriteAt([]byte, int64) (int, error) { return 0, errNeedsLinux }

// Fix fails on this system.
func (p *Published) Fix() error { return errNeedsLinux }

// Populate fails on this system.
func (p *Published) Populate(int64, int64) error { return errNeedsLinux }

// Freeze fails on this system.
func (p *Published) Freeze() error { return errNeedsLinux }

// Resident fails on this system.
func (p *Published) Resident() (int64, error) { return 0, errNeedsLinux }

// ReadAt fails on this system.
func (p *Published) ReadAt([]byte, int64) (int, error) { return 0, errNeedsLinux }

// Close does nothing.
func (p *Published) Close() error { return nil }
