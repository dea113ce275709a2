// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"

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
