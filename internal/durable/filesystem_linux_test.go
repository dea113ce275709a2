// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestFileSystemOf(t *testing.T) {
	got, err := FileSystemOf(t.TempDir())
	if err != nil || got.Name == "" || got.Free <= 0 || got.ReadOnly {
		t.Errorf("of a temporary directory: %+v, %v", got, err)
	}
	if _, err := os.Stat("/dev/shm"); err == nil {
		if got, err := FileSystemOf("/dev/shm"); err != nil || got.Name != "tmpfs" || !got.Volatile || got.Remote {
			t.Errorf("of shared memory: %+v, %v", got, err)
		}
	}
	if got, err := FileSystemOf("/proc/self"); err != nil || got.Name != "unknown (0x9fa0)" || got.Free != math.MaxInt64 { // which has no blocks
		t.Errorf("of /proc: %+v, %v", got, err)
	}
	if _, err := FileSystemOf(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}
