// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package sparsevec_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/sparsevec"
	"github.com/memspan/memspan/tier/vram"
)

// TestMain is a worker's main function too: the example's server starts this
// program to run the GPU's driver.
func TestMain(m *testing.M) {
	if os.Getenv("MEMSPAN_WORKER") == "1" {
		if err := vram.Worker(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	m.Run()
}

// serve starts a server with device memory in this process.
func serve(ctx context.Context) (address string, stop func()) {
	dir, err := os.MkdirTemp("", "sparsevec")
	if err != nil {
		log.Fatal(err)
	}
	srv, err := server.New(ctx, server.Config{VRAM: &vram.Config{}})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(ctx, ln) }()
	return ln.Addr().String(), func() {
		if err := errors.Join(srv.Shutdown(ctx), <-served, os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

// The example of the coherency document (seeds/002): a vector is uploaded to
// the device, changed there, and brought back.
func Example_device() {
	ctx := context.Background()
	address, stop := serve(ctx)
	defer stop()
	c, err := memspan.Dial(ctx, address, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	data, err := sparsevec.Vec{Pos: []uint64{1, 5, 10, 100}, Neg: []uint64{2, 7, 50}}.MarshalBinary()
	if err != nil {
		log.Fatal(err)
	}
	s, err := c.Alloc(ctx, memspan.SpanConfig{Size: int64(len(data))})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Free(ctx)
	state := func(did string) {
		st, err := s.State(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %v\n", did, st)
	}
	if _, err := s.WriteAt(ctx, data, 0); err != nil {
		log.Fatal(err)
	}
	state("written")
	if _, err := s.Upload(ctx); err != nil {
		log.Fatal(err)
	}
	state("uploaded")

	// The device's own span: what is written to it is written on the device.
	d, err := c.Alloc(ctx, memspan.SpanConfig{Size: s.Size(), Tier: memspan.On(memspan.VRAM), Home: memspan.On(memspan.Host)})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Free(ctx)
	if _, err := d.Copy(ctx, 0, s, 0, s.Size()); err != nil {
		log.Fatal(err)
	}
	if _, err := d.Download(ctx); err != nil {
		log.Fatal(err)
	}
	if _, err := d.Fill(ctx, 8, 4, 3); err != nil { // the first positive dimension
		log.Fatal(err)
	}
	s = d // the document's engram, whose tier changes with the call, is two spans here
	state("changed on the device")
	if _, err := s.Sync(ctx); err != nil {
		log.Fatal(err)
	}
	state("synced")

	if _, err := s.ReadAt(ctx, data, 0); err != nil {
		log.Fatal(err)
	}
	var v sparsevec.Vec
	if err := v.UnmarshalBinary(data); err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.Pos, v.Neg)

	// Output:
	// written: host-only
	// uploaded: synced
	// changed on the device: device-dirty
	// synced: synced
	// [3 5 10 100] [2 7 50]
}
