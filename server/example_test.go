// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// A server within a program, whose guests turn shared buffers into spans. It has
// an operation of its own, which gets what it needs by closure.
func Example_sharedBuffers() {
	dir, err := os.MkdirTemp("", "memspan")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	inbox := make(chan string, 1)
	announce := host.Operation{Name: "announce", Run: func(c *host.Call) (any, error) {
		var text string
		if err := c.Arguments(&text); err != nil {
			return nil, err
		}
		inbox <- text
		return nil, nil
	}}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	srv, err := server.New(ctx, server.Config{
		HostBudget: 64 << 20,
		Buffers:    &server.BufferConfig{Host: host.Config{Operations: []host.Operation{announce}}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	listen := func(name string, serve func(context.Context, net.Listener) error) string {
		ln, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			log.Fatal(err)
		}
		go serve(ctx, ln) // until Shutdown, which waits for it
		return ln.Addr().String()
	}
	sessions, guests := listen("memspan.sock", srv.Serve), listen("guests.sock", srv.ServeBuffers)

	guest, err := sharedbuf.Dial(ctx, guests, sharedbuf.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer guest.Close()
	buffer, err := guest.Alloc(ctx, 1<<20)
	if err != nil {
		log.Fatal(err)
	}
	copy(buffer.Bytes(), "from a guest")
	_, err = buffer.Process(ctx,
		sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "greeting", Move: true}),
		sharedbuf.Operation("announce", "greeting"))
	if err != nil {
		log.Fatal(err)
	}

	client, err := memspan.Dial(ctx, sessions, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	span, err := client.Open(ctx, <-inbox)
	if err != nil {
		log.Fatal(err)
	}
	text := make([]byte, 12)
	if _, err := span.ReadAt(ctx, text, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, %d bytes: %s\n", span.Name(), span.Size(), text)
	// Output: greeting, 1048576 bytes: from a guest
}
