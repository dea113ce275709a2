// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"testing"

	"github.com/memspan/memspan/surface"
)

// Package http answers several ranges from a goroutine that it does not wait for: what
// reads for it must not touch the memory of an opening that is closed.
func TestContentClosed(t *testing.T) {
	store := surface.NewStore(surface.Config{Budget: 1 << 20})
	defer store.Close()
	e, err := store.Create(t.Context(), surface.Spec{Size: 4096, Chunk: 4096, ReadOnce: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Append(t.Context(), make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := openOwn(store, e.Ticket(), here)
	if err != nil {
		t.Fatal(err)
	}
	content := &contentReader{ctx: t.Context(), o: o, size: 4096}
	p := make([]byte, 1000)
	if n, err := content.Read(p); n != len(p) || err != nil {
		t.Fatalf("before: %d, %v", n, err)
	}
	o.Close()
	if n, err := content.Read(p); n != 0 || !errors.Is(err, surface.ErrTaken) {
		t.Errorf("after Close: %d, %v; want 0, %v", n, err, surface.ErrTaken)
	}
}
