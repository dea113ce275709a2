// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// Pair fails on this system.
func Pair() (*net.UnixConn, *os.File, error) {
	return nil, nil, fmt.Errorf("fdpass: socket pairs: %w", errors.ErrUnsupported)
}
