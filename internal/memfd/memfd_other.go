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

// Alias fails on this system.
func (r *Region) Alias(int64) ([]byte, error) { return nil, errNeedsLinux }

// Resident fails on this system.
func (r *Region) Resident() (int64, error) { return 0, errNeedsLinux }

// NextData fails on this system.
func (r *Region) NextData(int64, int64) (int64, error) { return 0, errNeedsLinux }

// MapRange fails on this system.
func MapRange(*os.File, int64, int64, bool) ([]byte, error) { return nil, errNeedsLinux }

// CheckSealed fails on this system.
func CheckSealed(*os.File, int64) error { return errNeedsLinux }

// Unmap fails on this system.
func Unmap([]byte) error { return errNeedsLinux }

// Close does nothing.
func (r *Region) Close() error { return nil }

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

// A Limits says what the system allows this process, in bytes; 0: no limit.
type Limits struct{ File, AddressSpace int64 }

// ReadLimits returns no limits.
func ReadLimits() Limits { return Limits{} }

// Data returns all of the file: what is no hole is not known on this system.
func Data(_ *os.File, size int64, _ int) ([][2]int64, error) {
	if size == 0 {
		return nil, nil
	}
	return [][2]int64{{0, size}}, nil
}

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
