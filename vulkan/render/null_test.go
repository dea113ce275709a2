// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/ebitengine/purego"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

// Arrays that are null though there are elements, and structures that are not
// there, are refused: neither the renderer nor the driver follows them.
func TestNull(t *testing.T) {
	const many = 1 << 20 // elements: the last lie far from address 0
	timeline := func(c *client, n uint64) uint64 { return c.mem(1000207003, 0, n, 0, n, 0) }
	for name, call := range map[string]func(c *client, w workload) (registry.Index, []uint64){
		"submits": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit, []uint64{w.queue, many, 0, 0}
		},
		"submits 2": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit2, []uint64{w.queue, many, 0, 0}
		},
		"sparse binds": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueBindSparse, []uint64{w.queue, many, 0, 0}
		},
		"waits": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit, []uint64{w.queue, 1, c.mem(4, timeline(c, many), many, 0, 0, 0, 0, 0, 0), 0}
		},
		"command buffers": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit, []uint64{w.queue, 1, c.mem(4, 0, 0, 0, 0, many, 0, 0, 0), 0}
		},
		"signals": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit, []uint64{w.queue, 1, c.mem(4, timeline(c, many), 0, 0, 0, 0, 0, many, 0), 0}
		},
		"waits 2": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit2, []uint64{w.queue, 1, c.mem(1000314004, 0, many<<32, 0, 0, 0, 0, 0), 0}
		},
		"command buffers 2": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit2, []uint64{w.queue, 1, c.mem(1000314004, 0, 0, 0, many, 0, 0, 0), 0}
		},
		"signals 2": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueSubmit2, []uint64{w.queue, 1, c.mem(1000314004, 0, 0, 0, 0, 0, many, 0), 0}
		},
		"sparse signals": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkQueueBindSparse, []uint64{w.queue, 1, c.mem(7, 0, 0, 0, 0, 0, 0, 0, 0, 0, many, 0), 0}
		},
		"buffer bindings": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkBindBufferMemory2, []uint64{w.device, many, 0}
		},
		"image bindings": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkBindImageMemory2, []uint64{w.device, many, 0}
		},
		"a buffer": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkGetBufferMemoryRequirements, []uint64{w.device, 0, c.mem(0, 0, 0)}
		},
		"no instance": func(c *client, _ workload) (registry.Index, []uint64) {
			return registry.VkCreateInstance, []uint64{0, 0, c.mem(c.handle(registry.VkInstance))}
		},
		"instance extensions": func(c *client, _ workload) (registry.Index, []uint64) {
			return registry.VkCreateInstance, []uint64{c.mem(1, 0, 0, 0, 0, 0, many, 0), 0, c.mem(c.handle(registry.VkInstance))}
		},
		"an instance extension": func(c *client, _ workload) (registry.Index, []uint64) {
			return registry.VkCreateInstance, []uint64{c.mem(1, 0, 0, 0, 0, 0, 1, c.mem(0)), 0, c.mem(c.handle(registry.VkInstance))}
		},
		"no device": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkCreateDevice, []uint64{w.gpu, 0, 0, c.mem(c.handle(registry.VkDevice))}
		},
		"device extensions": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkCreateDevice, []uint64{w.gpu, c.mem(3, 0, 0, 0, 0, 0, many, 0, 0), 0, c.mem(c.handle(registry.VkDevice))}
		},
		"no allocation": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkAllocateMemory, []uint64{w.device, 0, 0, c.mem(c.handle(registry.VkDeviceMemory))}
		},
		"no buffer": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkCreateBuffer, []uint64{w.device, 0, 0, c.mem(c.handle(registry.VkBuffer))}
		},
		"no semaphore": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkCreateSemaphore, []uint64{w.device, 0, 0, c.mem(c.handle(registry.VkSemaphore))}
		},
		"no event": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkCreateEvent, []uint64{w.device, 0, 0, c.mem(c.handle(registry.VkEvent))}
		},
		"no requirements": func(c *client, w workload) (registry.Index, []uint64) {
			return registry.VkGetDeviceBufferMemoryRequirements, []uint64{w.device, c.mem(1000413002, 0, 0), c.mem(1000146003, 0, 0, 0, 0)}
		},
		"no features": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkGetPhysicalDeviceFeatures2, []uint64{w.gpu, 0}
		},
		"no properties": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkGetPhysicalDeviceProperties, []uint64{w.gpu, 0}
		},
		"no memory types": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkGetPhysicalDeviceMemoryProperties, []uint64{w.gpu, 0}
		},
		"no version": func(*client, workload) (registry.Index, []uint64) {
			return registry.VkEnumerateInstanceVersion, []uint64{0}
		},
		"no extension count": func(*client, workload) (registry.Index, []uint64) {
			return registry.VkEnumerateInstanceExtensionProperties, []uint64{0, 0, 0}
		},
		"no device count": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkEnumeratePhysicalDevices, []uint64{w.instance, 0, 0}
		},
		"no family count": func(_ *client, w workload) (registry.Index, []uint64) {
			return registry.VkGetPhysicalDeviceQueueFamilyProperties, []uint64{w.gpu, 0, 0}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := begin(t, Config{Log: quiet, Device: "0"})
			w := c.workload(4096)
			command, args := call(c, w)
			if r, refused := c.try(command, args...); !refused || r >= 0 {
				t.Errorf("%d, refused: %v", r, refused)
			}
			c.do(registry.VkDeviceWaitIdle, w.device) // nothing else happened
			if c.lost != nil {
				t.Errorf("lost: %+v", c.lost)
			}
		})
	}
}

// A recorded command without its array poisons the command buffer.
func TestNullRecorded(t *testing.T) {
	for name, one := range map[string]func(c *client, w workload) recorded{
		"regions": func(_ *client, w workload) recorded {
			return recorded{registry.VkCmdCopyBuffer, []uint64{w.buffer, w.buffer, 1 << 20, 0}}
		},
		"buffer": func(_ *client, w workload) recorded {
			return recorded{registry.VkCmdFillBuffer, []uint64{0, 0, w.size, 1}}
		},
		"info": func(*client, workload) recorded { return recorded{registry.VkCmdCopyBuffer2, []uint64{0}} },
		"regions 2": func(c *client, w workload) recorded {
			return recorded{registry.VkCmdCopyBuffer2, []uint64{c.mem(1000337000, 0, w.buffer, w.buffer, 1<<20, 0)}}
		},
		"executed": func(*client, workload) recorded {
			return recorded{registry.VkCmdExecuteCommands, []uint64{1 << 20, 0}}
		},
		"waited for": func(*client, workload) recorded {
			return recorded{registry.VkCmdWaitEvents, []uint64{1 << 20, 0, 1, 1, 0, 0, 0, 0, 0, 0}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := begin(t, Config{Log: quiet})
			w := c.workload(4096)
			c.record(w.commands, recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}}, one(c, w), recorded{registry.VkEndCommandBuffer, nil})
			if r, refused := c.try(registry.VkQueueSubmit, w.submission(c, 0)...); !refused || r >= 0 {
				t.Errorf("%d, refused: %v", r, refused)
			}
		})
	}
}

// Bytes of every kind at every command, with objects of all the types that the
// renderer keeps something of, and a driver all of whose functions succeed and
// do nothing: whatever the renderer does beside calling the driver is done.
func FuzzCalls(f *testing.F) {
	f.Add(uint16(registry.VkQueueSubmit), false, binary.LittleEndian.AppendUint64(nil, 2))
	f.Add(uint16(registry.VkQueueSubmit2), true, []byte{7, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0})
	f.Add(uint16(registry.VkBindBufferMemory2), true, []byte{0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0})
	f.Add(uint16(registry.VkCmdCopyBuffer2), true, []byte{1})
	f.Fuzz(func(t *testing.T, command uint16, reply bool, body []byte) {
		if int(command) >= len(registry.Commands) {
			return
		}
		r, id := idleRenderer(t)
		c := &registry.Commands[command]
		// The first argument is taken for granted: it would rarely be right.
		body = append(binary.LittleEndian.AppendUint64(nil, id(c.First)), body...)
		m := stream.Message{Op: stream.Op(command), Body: body}
		if reply {
			m.Flags, m.Serial = stream.FlagReply, 1
		}
		if c.First == registry.None {
			m.Body = body[8:]
		}
		_ = r.command(m) // refused or malformed: all but a panic is right
		if !r.effects[command].command {
			return
		}
		recorded := binary.LittleEndian.AppendUint64(nil, id(registry.VkCommandBuffer))
		recorded = append(stream.AppendRecord(recorded, command), body[8:]...)
		stream.EndRecord(recorded, 8)
		_ = r.record(recorded)
	})
}

// idleRenderer returns a renderer with an object of each type that it keeps
// something of, and their ids, over a driver that does nothing.
func idleRenderer(t *testing.T) (*renderer, func(kind registry.Index) uint64) {
	t.Helper()
	libc, err := purego.Dlopen("libc.so.6", purego.RTLD_NOW)
	if err != nil {
		t.Fatal(err)
	}
	nothing, err := purego.Dlsym(libc, "sched_yield") // which looks at no argument, and returns 0
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	go io.Copy(io.Discard, near)
	r, err := newRenderer(wire.NewConn(far, wire.Config{}), Config{Log: quiet, Objects: 64, Device: "0", HideHostCoherent: true, Deadline: time.Minute})
	if err != nil {
		near.Close()
		noVulkan(t, err)
	}
	procs := slices.Repeat([]uintptr{nothing}, len(registry.Commands))
	r.global = procs
	d, err := newDevice(1, func(string) uintptr { return nothing })
	if err != nil {
		t.Fatal(err)
	}
	d.procs = procs
	objects := make(map[registry.Index]*object)
	add := func(kind, parent registry.Index, device *device, state any) {
		o := &object{id: id(1, uint64(len(r.table.slots))), kind: kind, real: uint64(len(r.table.slots) + 1), device: device, parent: objects[parent], state: state}
		objects[kind] = o
		r.table.add(o)
	}
	held := int64(1 << 20)
	m := &deviceMemory{id: 1<<32 | 3, real: 4, device: d, size: 1 << 20, visible: true, held: &held}
	add(registry.VkInstance, registry.None, nil, &instance{procs: procs})
	add(registry.VkPhysicalDevice, registry.VkInstance, nil, nil)
	add(registry.VkDevice, registry.VkPhysicalDevice, d, d)
	add(registry.VkDeviceMemory, registry.VkDevice, d, m)
	d.remember(m)
	buffers, images := &buffer{size: 4096}, new(image)
	buffers.bind(m, 0, 4096)
	images.bind(m, 4096, 4096)
	for _, one := range []struct {
		kind  registry.Index
		state any
	}{
		{registry.VkBuffer, buffers}, {registry.VkImage, images}, {registry.VkFence, new(fence)}, {registry.VkSemaphore, new(timeline)},
		{registry.VkEvent, new(event)}, {registry.VkCommandBuffer, new(commandBuffer)}, {registry.VkDescriptorPool, nil},
		{registry.VkCommandPool, nil}, {registry.VkPipelineLayout, nil}, {registry.VkQueryPool, nil}, {registry.VkQueue, d.queue(r, 9)},
	} {
		add(one.kind, registry.VkDevice, d, one.state)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
		r.conn.Close()
		near.Close()
	})
	return r, func(kind registry.Index) uint64 {
		if o := objects[kind]; o != nil {
			return o.id
		}
		return 0
	}
}
