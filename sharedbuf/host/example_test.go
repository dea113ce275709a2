// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// A host with an operation of its own, and a guest that asks for it.
func Example() {
	dir, err := os.MkdirTemp("", "buffers")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	count := host.Operation{Name: "count", Run: func(c *host.Call) (any, error) {
		ones := 0
		err := c.Each(func(_ int64, chunk []byte) error {
			for _, b := range chunk {
				ones += int(b & 1)
			}
			return nil
		})
		return ones, err
	}}
	h, err := host.New(host.Config{Dir: dir, Operations: []host.Operation{count}})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, ln) }()

	guest(ctx, ln.Addr().String(), dir)

	stop()
	fmt.Println("host:", <-served)
	// Output:
	// count 3
	// fill 1048576 bytes, then verify 1048576 bytes
	// host: <nil>
}

func guest(ctx context.Context, address, dir string) {
	c, err := sharedbuf.Dial(ctx, address, sharedbuf.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	b, err := c.Alloc(ctx, 1<<20)
	if err != nil {
		log.Fatal(err)
	}
	copy(b.Bytes(), []byte{1, 3, 5})
	result, err := b.Process(ctx, sharedbuf.Operation("count", nil))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("count", string(result.Value))
	result, err = b.Process(ctx, sharedbuf.Fill(0xC0FFEE), sharedbuf.Verify(0xC0FFEE))
	if err != nil {
		log.Fatal(err)
	}
	for i, step := range result.Steps {
		if i > 0 {
			fmt.Print(", then ")
		}
		fmt.Print(step.Operation, " ", step.Bytes, " bytes")
	}
	fmt.Println()
}

// Several pieces of work at once: each result is there when it is, whatever the
// others take.
func Example_background() {
	release := make(chan struct{})
	slow := host.Operation{Name: "slow", Run: func(c *host.Call) (any, error) {
		select {
		case <-release:
			return nil, nil
		case <-c.Context().Done():
			return nil, context.Cause(c.Context())
		}
	}}
	h, err := host.New(host.Config{Operations: []host.Operation{slow}})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	dir, err := os.MkdirTemp("", "socket")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, ln) }()

	// The buffers have no name: their descriptors go over the unix socket.
	c, err := sharedbuf.Dial(ctx, "unix:"+ln.Addr().String(), sharedbuf.Options{})
	if err != nil {
		log.Fatal(err)
	}
	begin := func(size int64, operation string) *sharedbuf.Job {
		b, err := c.Alloc(ctx, size)
		if err != nil {
			log.Fatal(err)
		}
		job, err := b.Start(ctx, sharedbuf.Operation(operation, nil))
		if err != nil {
			log.Fatal(err)
		}
		return job
	}
	first := begin(4096, "slow")
	second := begin(8192, "checksum") // begun later, done earlier

	result, err := second.Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("second:", result.Operation, result.Bytes, "bytes")
	status, err := first.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("first done:", status.Done)
	close(release)
	if result, err = first.Wait(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("first:", result.Operation)

	if err := c.Close(); err != nil { // it frees the buffers
		log.Fatal(err)
	}
	stop()
	fmt.Println("host:", <-served)
	// Output:
	// second: checksum 8192 bytes
	// first done: false
	// first: slow
	// host: <nil>
}

// Two machines that share nothing: what changed of a buffer is sent, and comes
// back. (Over a network it takes TLS and a token.)
func Example_channel() {
	h, err := host.New(host.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, ln) }()

	c, err := sharedbuf.Dial(ctx, ln.Addr().String(), sharedbuf.Options{})
	if err != nil {
		log.Fatal(err)
	}
	b, err := c.AllocWith(ctx, 1<<20, sharedbuf.AllocOptions{
		Permissions: sharedbuf.Permissions{Operations: []string{"fill", "verify"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := b.Process(ctx, sharedbuf.Fill(7)); err != nil {
		log.Fatal(err)
	}
	fmt.Println(b.Bytes()[:4])
	_, err = b.Process(ctx, sharedbuf.Checksum())
	fmt.Println(errors.Is(err, sharedbuf.ErrDenied))

	if err := c.Close(); err != nil {
		log.Fatal(err)
	}
	stop()
	fmt.Println("host:", <-served)
	// Output:
	// [7 0 0 0]
	// true
	// host: <nil>
}
