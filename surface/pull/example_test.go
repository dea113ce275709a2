// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
)

// A surface is exposed once and pulled: mapped where it is, and copied to a file,
// verified, from wherever it can be reached.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "memspan-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	address := "unix:" + filepath.Join(dir, "s")
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		log.Fatal(err)
	}
	srv, err := server.New(ctx, server.Config{HostBudget: 64 << 20, Addresses: []string{address}})
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln) }()

	client, err := memspan.Dial(ctx, address, nil)
	if err != nil {
		log.Fatal(err)
	}
	exposed, err := client.ExposeBytes(ctx, []byte("the same pages for everybody\n"), memspan.ExposeOptions{})
	if err != nil {
		log.Fatal(err)
	}

	s, err := pull.Open(ctx, exposed.Ticket, pull.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if mapped, err := s.Bytes(); err == nil {
		fmt.Printf("mapped: %s", mapped)
	}
	path := filepath.Join(dir, "file")
	if err := s.ToFile(ctx, path, surface.Range{}); err != nil {
		log.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("pulled: %s", text)

	s.Close()
	client.Close()
	srv.Shutdown(ctx)
	<-served
	// Output:
	// mapped: the same pages for everybody
	// pulled: the same pages for everybody
}
