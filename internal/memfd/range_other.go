// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package memfd

import "os"

// MapRange fails on this system.
func MapRange(*os.File, int64, int64, bool) ([]byte, error) { return nil, errNeedsLinux }

// CheckSealed fails on this system.
func CheckSealed(*os.File, int64) error { return errNeedsLinux }

// Unmap fails on this system.
func Unmap([]byte) error { return errNeedsLinux }
