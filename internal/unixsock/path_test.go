// SPDX-License-Identifier: Apache-2.0

package unixsock_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/memspan/memspan/internal/unixsock"
)

// CheckPath refuses what the system refuses, and nothing else.
func TestCheckPath(t *testing.T) {
	t.Chdir(t.TempDir()) // whose own path may be too long
	for _, length := range []int{1, 90, 103, 104, 107, 108, 109, 200} {
		path := strings.Repeat("s", length)
		ln, err := net.Listen("unix", path)
		if err == nil {
			ln.Close()
		}
		checked := unixsock.CheckPath(path)
		var long *unixsock.PathError
		if errors.As(checked, &long) != (err != nil) || long != nil && (long.Path != path || long.Max >= length) {
			t.Errorf("%d bytes: %v, and listening there: %v", length, checked, err)
		}
	}
}
