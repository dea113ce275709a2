// SPDX-License-Identifier: Apache-2.0

//go:build !linux || !(amd64 || arm64)

package confine

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
)

var errNeedsLinux = fmt.Errorf("confine: workers need Linux on amd64 or arm64: %w", errors.ErrUnsupported)

// Confine fails on this system.
func Confine(string) (State, error) { return State{}, errNeedsLinux }

// Spawn fails on this system.
func Spawn(*exec.Cmd) (*net.UnixConn, error) { return nil, errNeedsLinux }

// Parent fails on this system.
func Parent() (*net.UnixConn, error) { return nil, errNeedsLinux }
