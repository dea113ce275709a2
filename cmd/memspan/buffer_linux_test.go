// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan/internal/sharedfile"
	"github.com/memspan/memspan/sharedbuf"
)

// A buffer's file that is cut short while it is looked at is an error.
func TestInPieces(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 1 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := sharedfile.Map(f, size, true)
	if err != nil {
		t.Fatal(err)
	}
	defer sharedfile.Unmap(mem)
	same := func(part, want []byte) bool { return string(part) == string(want) }
	zeros := make([]byte, 1000)
	if at, err := inPieces(t.Context(), mem, zeros, same); at != -1 || err != nil {
		t.Errorf("zeros: %d, %v", at, err)
	}
	mem[5500] = 1
	if at, err := inPieces(t.Context(), mem, zeros, same); at != 5000 || err != nil {
		t.Errorf("a byte: %d, %v", at, err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := inPieces(t.Context(), mem, zeros, same); !errors.Is(err, sharedbuf.ErrTruncated) {
		t.Errorf("what is gone: %v", err)
	}
}
