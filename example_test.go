// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
)

// embedded starts a server in this process and returns its address. Programs
// that use the daemon of their user dial "" instead.
func embedded(ctx context.Context) (address string, stop func()) {
	dir, err := os.MkdirTemp("", "memspan")
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		log.Fatal(err)
	}
	srv, err := server.New(ctx, server.Config{HostBudget: 64 << 20})
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(ctx, ln) }()
	return "unix:" + ln.Addr().String(), func() {
		if err := errors.Join(srv.Shutdown(ctx), <-served, os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

// newSpan starts such a server, and makes a span of size bytes on it.
func newSpan(ctx context.Context, size int64) (c *memspan.Client, s *memspan.Span, done func()) {
	address, stop := embedded(ctx)
	c, err := memspan.Dial(ctx, address, nil)
	if err != nil {
		log.Fatal(err)
	}
	if s, err = c.Alloc(ctx, memspan.SpanConfig{Size: size}); err != nil {
		log.Fatal(err)
	}
	return c, s, func() {
		c.Close()
		stop()
	}
}

func Example() {
	ctx := context.Background()
	address, stop := embedded(ctx)
	defer stop()

	c, err := memspan.Dial(ctx, address, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := c.Alloc(ctx, memspan.SpanConfig{Name: "greeting", Size: 4096})
	if err != nil {
		log.Fatal(err)
	}
	m, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite)
	if err != nil {
		log.Fatal(err)
	}
	copy(m.Bytes(), "hello, span")
	if err := m.Unmap(ctx); err != nil {
		log.Fatal(err)
	}

	b := make([]byte, 11)
	if _, err := s.ReadAt(ctx, b, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", b)
	if err := s.Free(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: hello, span
}

// A flush makes what was stored visible to others, and says where it is held.
func ExampleMapping_Flush() {
	ctx := context.Background()
	c, s, done := newSpan(ctx, 16<<20)
	defer done()
	// A shadow buffer, as it would be over a network.
	m, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite|memspan.Shadow)
	if err != nil {
		log.Fatal(err)
	}
	m.Bytes()[5000] = 1
	m.Bytes()[9<<20] = 2
	commit, err := m.Flush(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("version %d is held by: %v\n", commit.Version, commit.Holders)
	fmt.Println("blocks sent:", c.Traffic().Sent.Frames[wire.KindFlush])
	if err := m.Unmap(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// version 1 is held by: host
	// blocks sent: 2
}

// Two mappings stored to the same byte. The one that flushes second takes in
// the other's bytes, keeps its own on top, and flushes again.
func ExampleMapping_Invalidate() {
	ctx := context.Background()
	_, s, done := newSpan(ctx, 4096)
	defer done()
	mine, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite|memspan.Shadow)
	if err != nil {
		log.Fatal(err)
	}
	theirs, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite|memspan.Shadow)
	if err != nil {
		log.Fatal(err)
	}
	copy(theirs.Bytes(), "theirs, both")
	if err := theirs.Unmap(ctx); err != nil {
		log.Fatal(err)
	}
	copy(mine.Bytes(), "mine")

	_, err = mine.Flush(ctx)
	for errors.Is(err, memspan.ErrConflict) {
		fmt.Println("conflict")
		if err := mine.Invalidate(ctx); err != nil {
			log.Fatal(err)
		}
		_, err = mine.Flush(ctx)
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", mine.Bytes()[:12])
	if err := mine.Unmap(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// conflict
	// miners, both
}

// A lock keeps others out while a value is changed.
func ExampleSpan_Lock() {
	ctx := context.Background()
	_, s, done := newSpan(ctx, 8)
	defer done()
	l, err := s.Lock(ctx, 0, 8, memspan.Exclusive)
	if err != nil {
		log.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := s.ReadAt(ctx, b, 0); err != nil {
		log.Fatal(err)
	}
	b[0]++
	if _, err := s.WriteAt(ctx, b, 0); err != nil {
		log.Fatal(err)
	}
	if err := l.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("abandoned by another holder:", l.Abandoned())
	// Output: abandoned by another holder: false
}
