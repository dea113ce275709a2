// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

// Messages that name what is not there, or go beyond it, end nothing but this
// application.
func TestHostileMemory(t *testing.T) {
	const size = 4096
	u64 := func(words ...uint64) (b []byte) {
		for _, x := range words {
			b = binary.LittleEndian.AppendUint64(b, x)
		}
		return b
	}
	run := func(memory, off uint64, n uint32, data int) []byte {
		return append(stream.AppendRuns(nil, memory, []stream.Run{{Offset: off, Length: n}}), make([]byte, data)...)
	}
	for name, test := range map[string]struct {
		op   stream.Op
		body func(memory uint64) []byte
		ends bool // else the device is lost
	}{
		"short map":         {stream.OpMemoryMap, func(m uint64) []byte { return u64(m)[:7] }, true},
		"map of nothing":    {stream.OpMemoryMap, func(m uint64) []byte { return u64(m + 1<<32) }, false},
		"short write":       {stream.OpMemoryWrite, func(m uint64) []byte { return u64(m, 0)[:15] }, true},
		"write to nothing":  {stream.OpMemoryWrite, func(m uint64) []byte { return u64(0, 0, 1) }, false},
		"write beyond":      {stream.OpMemoryWrite, func(m uint64) []byte { return u64(m, size-7, 1) }, true},
		"write wraps":       {stream.OpMemoryWrite, func(m uint64) []byte { return u64(m, ^uint64(3), 1) }, true},
		"runs of nothing":   {stream.OpMemoryRuns, func(m uint64) []byte { return run(99, 0, 1, 1) }, false},
		"short runs":        {stream.OpMemoryRuns, func(m uint64) []byte { return run(m, 0, 2, 1) }, true},
		"runs beyond":       {stream.OpMemoryRuns, func(m uint64) []byte { return run(m, size-1, 2, 2) }, true},
		"runs wrap":         {stream.OpMemoryRuns, func(m uint64) []byte { return run(m, 1<<62, 8, 8) }, true},
		"command of memory": {stream.Op(registry.VkUnmapMemory), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := begin(t, Config{})
			w, _ := c.shadowed(size, coherent)
			if test.body == nil {
				c.post(registry.VkUnmapMemory, w.device, w.memory)
			} else {
				c.send(append(c.conn.Begin(test.op, 0, 0), test.body(w.memory)...))
			}
			if test.ends {
				if err := <-c.served; err == nil {
					t.Error("it goes on")
				}
				c.served <- nil
				return
			}
			for c.lost == nil {
				c.receive(0)
			}
			c.send(c.conn.Begin(stream.OpPing, 0, c.number()))
			c.receive(c.serial)
		})
	}
}

// Writing before mapping loses the device; a budget refuses an allocation.
func TestMemoryRefused(t *testing.T) {
	c := begin(t, Config{Memory: 1 << 20})
	w := workload{setup: c.setUp(), size: 512 << 10}
	c.equip(&w, transferDst, coherent)
	if r, refused := c.try(registry.VkAllocateMemory, w.device, c.mem(5, 0, 1<<20, 0), 0, c.mem(c.handle(registry.VkDeviceMemory))); r != -2 || !refused {
		t.Errorf("beyond the budget: %d, refused: %v", r, refused)
	}
	c.post(registry.VkFreeMemory, w.device, w.memory, 0)
	again := c.made(registry.VkDeviceMemory, registry.VkAllocateMemory, w.device, c.mem(5, 0, 1<<20, 0), 0)
	c.shadows = map[uint64][]byte{again: make([]byte, 8)}
	c.write(again, 0, []byte{1})
	for c.lost == nil {
		c.receive(0)
	}
}

// FuzzMemory gives messages about memory to a renderer that has one.
func FuzzMemory(f *testing.F) {
	const memory, size = 1 << 32, 3 * chunkSize
	f.Add(uint16(stream.OpMemoryWrite), writeBody(nil, memory, size-8, make([]byte, 8)))
	f.Add(uint16(stream.OpMemoryWrite), writeBody(nil, memory, ^uint64(0), make([]byte, 8)))
	f.Add(uint16(stream.OpMemoryRuns), append(stream.AppendRuns(nil, memory, []stream.Run{{Offset: 1, Length: 2}, {Offset: chunkSize - 1, Length: 3}}), 1, 2, 3, 4, 5))
	f.Add(uint16(stream.OpMemoryMap), binary.LittleEndian.AppendUint64(nil, memory))
	f.Add(uint16(stream.OpMemoryImport), make([]byte, 12))
	f.Fuzz(func(t *testing.T, op uint16, body []byte) {
		near, far := net.Pipe()
		defer near.Close()
		go io.Copy(io.Discard, near)
		r, err := newRenderer(wire.NewConn(far, wire.Config{}), Config{Log: quiet, Objects: 64})
		if err != nil {
			noVulkan(t, err)
		}
		defer r.conn.Close()
		images := memfd.NewArena("fuzz")
		defer images.Close()
		image, err := images.Take(size)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		m := &deviceMemory{id: memory, size: size, visible: true, coherent: true, bytes: make([]byte, size), image: image}
		m.chunks = []chunkState{zeroed, expected, imaged}
		r.table.add(&object{id: memory, kind: registry.VkDeviceMemory, real: 1, device: new(device), state: m})
		if op < uint16(stream.OpMemoryWrite) || op > uint16(stream.OpMemoryImport) || op == uint16(stream.OpMemoryChanged) {
			return
		}
		r.memory(stream.Message{Op: stream.Op(op), Flags: stream.FlagReply, Serial: 1, Body: body})
		r.compareMemory(m, []span{{chunkSize, size}})
		if string(image.Bytes()[2*chunkSize:size]) != string(m.bytes[2*chunkSize:]) {
			t.Error("the image is not what the client wrote")
		}
	})
}
