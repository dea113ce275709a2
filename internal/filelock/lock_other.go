// SPDX-License-Identifier: Apache-2.0

//go:build !unix && !windows

package filelock

import (
	"errors"
	"fmt"
)

// A Lock is held until Close, or until the process ends.
type Lock struct{}

// Try fails: this system has no such locks.
func Try(path string) (*Lock, error) {
	return nil, fmt.Errorf("lock %s: %w", path, errors.ErrUnsupported)
}

// Close does nothing.
func (l *Lock) Close() error { return nil }
