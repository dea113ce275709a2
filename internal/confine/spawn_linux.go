// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package confine

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/memspan/memspan/internal/fdpass"
)

// parentFD is the descriptor a worker's socket has.
const parentFD = 3

// Spawn starts cmd as a worker and returns the connection to it; the worker
// gets its end from Parent. The worker leads a session of its own, so that
// signals typed at a terminal reach only the parent, and is killed when the
// thread that called Spawn ends: the caller locks its goroutine to a thread
// until it has waited for cmd.
func Spawn(cmd *exec.Cmd) (*net.UnixConn, error) {
	conn, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	// A mark that this process was started with would keep the worker from
	// confining itself.
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(v string) bool { return strings.HasPrefix(v, mark+"=") })
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Parent returns a worker's connection to the process that started it with
// Spawn. It may be called once.
func Parent() (*net.UnixConn, error) {
	f := os.NewFile(parentFD, "parent")
	defer f.Close()
	conn, err := fdpass.UnixConn(f)
	if err != nil {
		return nil, fmt.Errorf("confine: descriptor %d is no socket: workers are started by their parent, not by hand: %w", parentFD, err)
	}
	return conn, nil
}
