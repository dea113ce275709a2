// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package sockopt

import (
	"errors"
	"syscall"
)

// SetReceiveLowWater fails on this system.
func SetReceiveLowWater(syscall.RawConn, int) error { return errors.ErrUnsupported }

// SetCongestion fails on this system.
func SetCongestion(syscall.RawConn, string) error { return errors.ErrUnsupported }

// SendQueue fails on this system.
func SendQueue(syscall.RawConn) (int, error) { return 0, errors.ErrUnsupported }
