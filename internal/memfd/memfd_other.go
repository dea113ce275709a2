// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package memfd

import (
	"errors"
	"fmt"
	"os"
)

var errNeedsLinux = fmt.Errorf("memfd: shared memory needs Linux: %w", errors.ErrUnsupported)

// A Region is a memfd on Linux; it cannot be made on this system.
type Region struct{}

// CheckFixed fails on this system.
func CheckFixed(*os.File) error { return errNeedsLinux }

// Create fails on this system.
func Create(string, int64) (*Region, error) { return nil, errNeedsLinux }

// Open fails on this system.
func Open(*os.File, int64) (*Region, error) { return nil, errNeedsLinux }

// Bytes returns nil.
func (r *Region) Bytes() []byte { return nil }

// Size returns 0.
func (r *Region) Size() int64 { return 0 }

// File returns nil.
func (r *Region) File() *os.File { return nil }

// Reopen fails on this system.
func (r *Region) Reopen(bool) (*os.File, error) { return nil, errNeedsLinux }

// MaxRegions returns 0.
func MaxRegions() int { return 0 }

// Allocate fails on this system.
func (r *Region) Allocate(int64, int64) error { return errNeedsLinux }

// Punch fails on this system.
func (r *Region) Punch(int64, int64) error { return errNeedsLinux }

// Populate does nothing.
func (r *Region) Populate(int64, int64) {}

// Duplicate fails on this system.
func Duplicate(*os.File) (*os.File, error) { return nil, errNeedsLinux }

// Close does nothing.
func (r *Region) Close() error { return nil }

// Blank fails on this system.
func Blank(string) (*os.File, error) { return nil, errNeedsLinux }

// Freeze fails on this system.
func Freeze(*os.File) error { return errNeedsLinux }

// Frozen returns false.
func Frozen(*os.File) bool { return false }

// A Draft is memory that is written and then frozen, on Linux.
type Draft struct{}

// NewDraft fails on this system.
func NewDraft(string, int64) (*Draft, error) { return nil, errNeedsLinux }

// Bytes returns nil.
func (d *Draft) Bytes() []byte { return nil }

// File returns nil.
func (d *Draft) File() *os.File { return nil }

// Freeze fails on this system.
func (d *Draft) Freeze() error { return errNeedsLinux }

// Close does nothing.
func (d *Draft) Close() error { return nil }
