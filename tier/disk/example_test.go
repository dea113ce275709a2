// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"context"
	"fmt"
	"os"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

// A span is made and written, and is there when the directory is opened again.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	memory, err := memfd.Create("example", tier.BlockSize)
	if err != nil {
		panic(err)
	}
	defer memory.Close()
	greeting := tier.Memory{Region: memory, Len: 5}
	ctx := context.Background()

	d, err := disk.Open(ctx, disk.Config{Dir: dir})
	if err != nil {
		panic(err)
	}
	rec := disk.Record{ID: disk.ID{1}, Name: "greeting", Size: 1 << 20, Published: true}
	s, err := d.Durable(rec)
	if err != nil {
		panic(err)
	}
	copy(greeting.Bytes(), "hello")
	staged, err := s.Stage(ctx, 0, []disk.Run{{Offset: 100, Length: 5}}, greeting)
	if err != nil {
		panic(err)
	}
	tx := d.Begin()
	tx.Set(rec)
	tx.Put(staged, 1)
	if err := tx.Commit(ctx); err != nil { // durable from here on
		panic(err)
	}
	if err := d.Close(); err != nil {
		panic(err)
	}

	d, err = disk.Open(ctx, disk.Config{Dir: dir})
	if err != nil {
		panic(err)
	}
	defer d.Close()
	for _, rec := range d.Recovered() {
		s, err := d.Durable(rec)
		if err != nil {
			panic(err)
		}
		clear(greeting.Bytes())
		if err := s.Read(ctx, 0, 100, greeting); err != nil {
			panic(err)
		}
		fmt.Printf("%s: %s\n", rec.Name, greeting.Bytes())
	}
	// Output: greeting: hello
}
