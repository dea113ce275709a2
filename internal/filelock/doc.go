// SPDX-License-Identifier: Apache-2.0

// Package filelock makes one process the owner of a place in the file system
// for as long as it lives: however it ends, the kernel gives the lock back.
package filelock

import "errors"

// ErrHeld: another process, or another Lock of this one, has the lock.
var ErrHeld = errors.New("filelock: held by another process")
