// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A pipe that nobody writes to can be given up.
func TestOpenUntil(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := openUntil(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("opened: %v", err)
	}
	writer, err := os.OpenFile(path, os.O_RDWR, 0) // lets the open go that is under way
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	f, err := openUntil(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
