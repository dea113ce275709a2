// SPDX-License-Identifier: Apache-2.0

package unixsock

import (
	"fmt"
	"syscall"
)

// maxPath is how long the path of a socket may be, in bytes: a zero follows it.
const maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// A PathError says that no socket can be at a path, for its length. The system says no
// more than that an argument is invalid.
type PathError struct {
	Path string
	Max  int // in bytes
}

func (e *PathError) Error() string {
	return fmt.Sprintf("%s has %d bytes, and this system's unix sockets have paths of %d at most: choose a shorter one, for a path made by itself with TMPDIR or XDG_RUNTIME_DIR",
		e.Path, len(e.Path), e.Max)
}

// CheckPath returns a *PathError if path is longer than that of a socket may be.
func CheckPath(path string) error {
	if len(path) > maxPath {
		return &PathError{Path: path, Max: maxPath}
	}
	return nil
}
