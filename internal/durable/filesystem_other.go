// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package durable

import (
	"errors"
	"fmt"
)

// FileSystemOf fails with [errors.ErrUnsupported] on this system.
func FileSystemOf(path string) (FileSystem, error) {
	return FileSystem{}, fmt.Errorf("file system of %s: %w", path, errors.ErrUnsupported)
}
