// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// peersAreKnown: who connects to a unix socket can be told.
const peersAreKnown = true

// ownGroup keeps what is typed at the terminal from a program that is started.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// passedSignals are passed on to a program that is run.
func passedSignals() []os.Signal {
	return []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2}
}

// nobodyReads reports whether what was written to has been closed at its other end.
func nobodyReads(err error) bool { return errors.Is(err, syscall.EPIPE) }

// ownerOf returns the user whom a file belongs to.
func ownerOf(info fs.FileInfo) (uid int, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(stat.Uid), true
}
