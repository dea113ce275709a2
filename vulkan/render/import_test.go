// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// importMemory asks for an allocation of a region's pages. The memory's type is
// that of w.
func (c *client) importMemory(w workload, region *memfd.Region, size, kind uint64, next uint64) (memory uint64, result int32, imported bool) {
	c.t.Helper()
	out := c.mem(c.handle(registry.VkDeviceMemory))
	a := &registry.Args{w.device, c.mem(5, next, size, kind), 0, out}
	buf := c.conn.Begin(stream.OpMemoryImport, stream.FlagReply, c.number())
	buf = binary.LittleEndian.AppendUint64(buf, uint64(region.Size()))
	buf = binary.LittleEndian.AppendUint32(buf, 0)
	buf, err := c.codec.AppendCall(buf, &registry.Commands[registry.VkAllocateMemory], a, &c.env)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.conn.EndFile(buf, region.File()); err != nil {
		c.t.Fatal(err)
	}
	m := c.receive(c.serial)
	if len(m.Body) != 5 || m.Op != stream.OpMemoryImport {
		c.t.Fatalf("answer %x to an import", m.Body)
	}
	return word(out), int32(binary.LittleEndian.Uint32(m.Body)), m.Body[4] != 0
}

func newRegion(t *testing.T, size int64) *memfd.Region {
	t.Helper()
	region, err := memfd.Create("test", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { region.Close() })
	return region
}

// boundTo makes a buffer of a size in a memory.
func (w *workload) boundTo(c *client, memory, usage uint64) {
	w.buffer = c.made(registry.VkBuffer, registry.VkCreateBuffer, w.device, c.mem(12, 0, 0, w.size, usage, 0, 0), 0)
	w.memory = memory
	c.do(registry.VkBindBufferMemory, w.device, w.buffer, memory, 0)
}

// Imported memory is the client's own pages: the device reads and writes them.
func TestImport(t *testing.T) {
	c := beginLocal(t, Config{})
	w := workload{setup: c.setUp(), size: 1 << 20}
	c.equip(&w, transferDst, coherent)
	region := newRegion(t, int64(w.size))
	memory, result, imported := c.importMemory(w, region, w.size, 0, 0)
	if result != 0 {
		t.Fatalf("import: %d", result)
	}
	if !imported {
		t.Skip("this driver imports no host pages")
	}
	w.boundTo(c, memory, transferSrc|transferDst)
	data := pattern(4096, 1)
	copy(region.Bytes(), data)
	w.copies(c, [][3]uint64{{8192, 4096, 0x04030201}}, [][3]uint64{{0, 4096, 4096}})
	w.play(c, c.fence(w))
	got := region.Bytes()
	if !bytes.Equal(got[4096:8192], data) || !bytes.Equal(got[8192:12288], bytes.Repeat([]byte{1, 2, 3, 4}, 1024)) {
		t.Error("what the device wrote is not there")
	}
	if c.changed != 0 {
		t.Errorf("%d bytes were sent", c.changed)
	}
	c.post(registry.VkFreeMemory, w.device, memory, 0)
	c.do(registry.VkDeviceWaitIdle, w.device)
	c.stopServing()
	if d := c.r.table.find(idOf(registry.VkDevice, w.device)).device; len(d.imports.allowed) == 0 || len(d.visible) != 1 {
		t.Errorf("%+v, %d visible", d.imports, len(d.visible))
	}
	copy(got, data) // the pages are still the client's
}

// Where importing cannot be, a common allocation is made.
func TestImportInstead(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  Config
		size uint64 // of the allocation
		next func(c *client, w workload) uint64
	}{
		"hidden":     {Config{HideImport: true}, 65536, nil},
		"incoherent": {Config{HideHostCoherent: true}, 65536, nil},
		"too small":  {Config{}, 65537, nil},
		"dedicated":  {Config{}, 65536, func(c *client, w workload) uint64 { return c.mem(1000127001, 0, 0, w.buffer) }},
	} {
		t.Run(name, func(t *testing.T) {
			c := beginLocal(t, test.cfg)
			w := workload{setup: c.setUp(), size: 65536}
			c.equip(&w, transferDst, 2)
			next := uint64(0)
			if test.next != nil {
				w.buffer = c.made(registry.VkBuffer, registry.VkCreateBuffer, w.device, c.mem(12, 0, 0, w.size, transferDst, 0, 0), 0)
				next = test.next(c, w)
			}
			region := newRegion(t, 65536)
			memory, result, imported := c.importMemory(w, region, test.size, 0, next)
			if result != 0 || imported {
				t.Fatalf("%d, imported: %v", result, imported)
			}
			if next == 0 {
				w.boundTo(c, memory, transferDst)
			} else {
				w.memory = memory
				c.do(registry.VkBindBufferMemory, w.device, w.buffer, memory, 0)
			}
			c.mapMemory(memory, w.size, false)
			w.copies(c, [][3]uint64{{0, 64, 0x07070707}}, nil)
			w.play(c, c.fence(w))
			if c.shadows[memory][63] != 7 || region.Bytes()[63] != 0 {
				t.Error("the memory is not a common one")
			}
			c.agree(memory)
		})
	}
}

// Files that are not what they should be end the connection.
func TestHostileImport(t *testing.T) {
	plain, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := plain.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	body := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
	for name, test := range map[string]struct {
		file *os.File
		body []byte
	}{
		"no file":   {nil, append(body(4096), 0, 0, 0, 0)},
		"short":     {newRegion(t, 4096).File(), body(4096)},
		"no memfd":  {plain, append(body(4096), 0, 0, 0, 0)},
		"too large": {newRegion(t, 4096).File(), append(body(8192), 0, 0, 0, 0)},
		"wraps":     {newRegion(t, 4096).File(), append(body(1<<63), 0, 0, 0, 0)},
		"no size":   {newRegion(t, 4096).File(), append(body(0), 0, 0, 0, 0)},
		"no call":   {newRegion(t, 4096).File(), append(body(4096), 0, 0, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			c := beginLocal(t, Config{})
			buf := append(c.conn.Begin(stream.OpMemoryImport, stream.FlagReply, c.number()), test.body...)
			if test.file == nil {
				c.send(buf)
			} else if err := c.conn.EndFile(buf, test.file); err != nil {
				t.Fatal(err)
			}
			if err := <-c.served; err == nil {
				t.Error("it goes on")
			}
			c.served <- nil
		})
	}
}

// Properties of memory are hidden in both functions that tell them.
func TestHideHostCoherent(t *testing.T) {
	c := begin(t, Config{HideHostCoherent: true})
	s := c.setUp()
	properties := c.mem(make([]uint64, 66)...)
	c.do(registry.VkGetPhysicalDeviceMemoryProperties, s.gpu, properties)
	properties2 := c.mem(append([]uint64{1000059006, 0}, make([]uint64, 66)...)...)
	c.do(registry.VkGetPhysicalDeviceMemoryProperties2, s.gpu, properties2)
	for _, p := range []structure{structure(properties), structure(properties2) + 16} {
		if p.u32(0) == 0 || p.u32(4)&2 == 0 || p.u32(4)&4 != 0 {
			t.Errorf("%d types, the first with %#x", p.u32(0), p.u32(4))
		}
	}
}
