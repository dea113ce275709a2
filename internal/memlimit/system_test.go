// SPDX-License-Identifier: Apache-2.0

package memlimit_test

import (
	"runtime"
	"testing"

	"github.com/memspan/memspan/internal/memlimit"
)

func TestSystem(t *testing.T) {
	m := memlimit.System()
	known := runtime.GOOS == "linux" || runtime.GOOS == "windows"
	if known && m.Available <= 0 || m.Available > 1<<50 || m.Group < 0 {
		t.Errorf("%+v", m)
	}
}
