// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFileSystemOf(t *testing.T) {
	got, err := FileSystemOf(os.TempDir())
	if err != nil || got.Name == "" || got.Free <= 0 || got.ReadOnly {
		t.Errorf("of a temporary directory: %+v, %v", got, err)
	}
	t.Logf("%+v", got)
	if got, err := FileSystemOf(filepath.Join(os.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %+v, %v", got, err)
	}
}
