// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// peersAreKnown: Windows has unix sockets, and does not tell who connects to one.
const peersAreKnown = false

// ownGroup keeps what is typed at the terminal from a program that is started.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// passedSignals: Windows has none to pass on, and the console tells all that run in it.
func passedSignals() []os.Signal { return []os.Signal{os.Interrupt} }

// nobodyReads reports whether what was written to has been closed at its other end.
func nobodyReads(err error) bool {
	const closing, notConnected = syscall.Errno(232), syscall.Errno(233) // ERROR_NO_DATA, ERROR_PIPE_NOT_CONNECTED
	return errors.Is(err, syscall.ERROR_BROKEN_PIPE) || errors.Is(err, closing) || errors.Is(err, notConnected)
}

// ownerOf: a directory of the user's profile is the user's.
func ownerOf(fs.FileInfo) (uid int, ok bool) { return 0, false }
