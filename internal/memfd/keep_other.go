// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package memfd

// Populate fails on this system.
func Populate([]byte) error { return errNeedsLinux }

// Lock fails on this system.
func Lock([]byte) error { return errNeedsLinux }
