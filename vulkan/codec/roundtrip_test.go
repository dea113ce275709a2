// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/vulkan/registry"
)

// Whatever an application passes to whatever command, the worker sees it.
func TestWorkerSeesTheCall(t *testing.T) {
	x, memory := New(), make([]byte, worldSize)
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		for i := range registry.Commands {
			c := &registry.Commands[i]
			if x.Supported(c) != nil {
				continue
			}
			if err := roundTrip(x, c, seed, memory); err != nil {
				t.Fatalf("%s: %v", c.Name, err)
			}
		}
	})
}

func roundTrip(x *Codec, c *registry.Command, seed uint64, memory []byte) error {
	w := newWorld(seed, memory)
	w.call(c)
	before := slices.Clone(w.memory[:w.used])
	sent, err := x.AppendCall([]byte{1, 2, 3}, c, &w.args, &w.env)
	if err != nil {
		return fmt.Errorf("append: %w", err)
	}
	if !bytes.Equal(before, w.memory[:w.used]) {
		return fmt.Errorf("the application's memory changed")
	}
	var got registry.Args
	arena := NewArena()
	defer runtime.KeepAlive(arena) // got points into it
	rest, err := x.ReadCall(append(sent[3:], 7), c, &got, arena, &w.env)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if len(rest) != 1 {
		return fmt.Errorf("%d bytes left", len(rest)-1)
	}
	o := observer{world: w}
	o.arguments(c, &w.args, &got)
	return o.fault
}
