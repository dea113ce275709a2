// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package fdpass

import (
	"errors"
	"fmt"
	"os"
)

func controlSpace() int { return 0 }

func parseFiles([]byte, int) ([]*os.File, error) { return nil, nil }

func writeFirst(Socket, []byte, []int) (int, error) {
	return 0, fmt.Errorf("files cannot travel over sockets on this system: %w", errors.ErrUnsupported)
}
