// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"bytes"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// A workload is a buffer bound to mappable memory, and a command buffer.
type workload struct {
	setup
	buffer, memory, pool, commands uint64
	size                           uint64
}

func (c *client) workload(size uint64) workload {
	c.t.Helper()
	w := workload{setup: c.setUp(), size: size}
	const transferDst = 2
	const visible = 2 | 4
	c.equip(&w, transferDst, visible)
	return w
}

// equip makes the buffer, in memory with some properties, and the command
// buffer.
func (c *client) equip(w *workload, usage, visible uint64) {
	c.t.Helper()
	size := w.size
	w.buffer = c.made(registry.VkBuffer, registry.VkCreateBuffer, w.device, c.mem(12, 0, 0, size, usage, 0, 0), 0)
	needs := c.mem(0, 0, 0)
	c.do(registry.VkGetBufferMemoryRequirements, w.device, w.buffer, needs)
	types := uint32(word(needs + 16))
	properties := c.mem(make([]uint64, 66)...)
	c.do(registry.VkGetPhysicalDeviceMemoryProperties, w.gpu, properties)
	index := uint64(0)
	for ; types&(1<<index) == 0 || word(properties+index*8+4)&visible != visible; index++ {
	}
	w.memory = c.made(registry.VkDeviceMemory, registry.VkAllocateMemory, w.device, c.mem(5, 0, word(needs), index), 0)
	c.do(registry.VkBindBufferMemory, w.device, w.buffer, w.memory, 0)
	w.pool = c.made(registry.VkCommandPool, registry.VkCreateCommandPool, w.device, c.mem(39, 0, 2), 0)
	w.commands = c.made(registry.VkCommandBuffer, registry.VkAllocateCommandBuffers, w.device, c.mem(40, 0, w.pool, 1<<32))
}

// fill records a fill of the whole buffer.
func (w workload) fill(c *client, value uint64) {
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdFillBuffer, []uint64{w.buffer, 0, w.size, value}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
}

// submission returns the arguments of a vkQueueSubmit of the command buffer.
func (w workload) submission(c *client, fence uint64) []uint64 {
	return []uint64{w.queue, 1, c.mem(4, 0, 0, 0, 0, 1, c.mem(w.commands), 0, 0), fence}
}

// contents maps the memory behind the renderer's back, once it serves no more.
func (c *client) contents(memory, n uint64) []byte {
	o := c.r.table.find(memory)
	at := c.mem(0)
	if r := rawCall(o.device.proc("vkMapMemory"), uint64(o.device.real), o.real, 0, n, 0, at); r != 0 {
		c.t.Fatal(r)
	}
	return bytes.Clone(structure(word(at)).bytes(0, int(n)))
}

// stopServing ends the connection and leaves all objects.
func (c *client) stopServing() {
	c.t.Helper()
	c.conn.Close()
	if err := <-c.served; err != nil {
		c.t.Fatal(err)
	}
	c.served <- nil
}

// TestFill runs a program from its instance to the fence of a fill, and looks
// at the memory.
func TestFill(t *testing.T) {
	c := begin(t, Config{})
	w := c.workload(64 << 10)
	w.fill(c, 0x01020304)
	fence := c.made(registry.VkFence, registry.VkCreateFence, w.device, c.mem(8, 0, 0), 0)
	for round := uint64(1); round <= 3; round++ {
		c.post(registry.VkQueueSubmit, w.submission(c, fence)...)
		for uint64(len(c.signals)) < round {
			c.receive(0)
		}
		if want := (stream.Signal{Kind: stream.SignalFence, ID: fence, Value: round}); c.signals[round-1] != want {
			t.Errorf("signal %+v, want %+v", c.signals[round-1], want)
		}
		c.post(registry.VkResetFences, w.device, 1, c.mem(fence))
	}
	c.do(registry.VkDeviceWaitIdle, w.device)
	if c.lost != nil {
		t.Fatalf("lost: %+v", c.lost)
	}
	c.stopServing()
	if got := c.contents(w.memory, w.size); !bytes.Equal(got, bytes.Repeat([]byte{4, 3, 2, 1}, int(w.size/4))) {
		t.Errorf("the buffer holds %x…", got[:16])
	}
	if o := c.r.table.find(idOf(registry.VkCommandBuffer, w.commands)); o.parent.id != w.pool || len(o.state.(*commandBuffer).facts.written) != 1 {
		t.Errorf("command buffer of %#x with %+v", o.parent.id, o.state)
	}
}

// TestDestroy destroys everything in an orderly way and leaves an empty table.
func TestDestroy(t *testing.T) {
	c := begin(t, Config{})
	w := c.workload(4096)
	w.fill(c, 1)
	c.post(registry.VkQueueSubmit, w.submission(c, 0)...)
	c.do(registry.VkQueueWaitIdle, w.queue)
	c.post(registry.VkDestroyBuffer, w.device, w.buffer, 0)
	c.post(registry.VkFreeMemory, w.device, w.memory, 0)
	c.post(registry.VkDestroyCommandPool, w.device, w.pool, 0)
	c.post(registry.VkDestroyDevice, w.device, 0)
	c.post(registry.VkDestroyInstance, w.instance, 0)
	c.send(c.conn.Begin(stream.OpPing, 0, c.number()))
	c.receive(c.serial)
	if c.lost != nil {
		t.Errorf("lost: %+v", c.lost)
	}
	c.stopServing()
	if n := c.r.table.count; n != 0 {
		t.Errorf("%d objects are left", n)
	}
}

// TestRefused sends calls that name what does not exist: with a reply they are
// refused; without, the device is lost, and destroys go on.
func TestRefused(t *testing.T) {
	c := begin(t, Config{Objects: 12})
	w := c.workload(4096)
	if r, refused := c.try(registry.VkCreateBufferView, w.device, c.mem(13, 0, 0, 1<<40|5, 0, 0, 0), 0, c.mem(c.handle(registry.VkBufferView))); !refused || r >= 0 {
		t.Errorf("a view of no buffer: %d, refused: %v", r, refused)
	}
	if r, refused := c.try(registry.VkCreateBufferView, w.device, c.mem(13, 0, 0, w.memory, 0, 0, 0), 0, c.mem(c.handle(registry.VkBufferView))); !refused || r >= 0 {
		t.Errorf("a view of memory: %d, refused: %v", r, refused)
	}
	if c.lost != nil {
		t.Errorf("lost: %+v", c.lost)
	}
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdFillBuffer, []uint64{w.memory, 0, 4, 0}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	c.post(registry.VkQueueSubmit, w.submission(c, 0)...)
	for c.lost == nil {
		c.receive(0)
	}
	if c.lost.Result != -4 || c.lost.Command != uint16(registry.VkQueueSubmit) {
		t.Errorf("lost: %+v", c.lost)
	}
	c.post(registry.VkDestroyBuffer, w.device, w.buffer, 0)
	c.do(registry.VkDeviceWaitIdle, w.device)
}

// TestObjects refuses more handles than the budget has.
func TestObjects(t *testing.T) {
	c := begin(t, Config{Objects: 6})
	s := c.setUp()
	for n := 4; ; n++ {
		r, refused := c.try(registry.VkCreateFence, s.device, c.mem(8, 0, 0), 0, c.mem(c.handle(registry.VkFence)))
		if r < 0 {
			if n != 6 || !refused || r != -1 {
				t.Errorf("refused with %d at %d objects", r, n)
			}
			return
		}
	}
}
