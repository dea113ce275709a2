// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

var quiet = slog.New(slog.DiscardHandler)

// Messages that no driver sends end the session with an error, and what was
// there is destroyed.
func TestHostileMessages(t *testing.T) {
	raw := func(op stream.Op, body ...byte) func(*client, workload) {
		return func(c *client, _ workload) { c.send(append(c.conn.Begin(op, 0, 0), body...)) }
	}
	for name, send := range map[string]func(*client, workload){
		"no such command":  raw(stream.Op(len(registry.Commands))),
		"no such message":  raw(0x80ff),
		"a second hello":   raw(stream.OpHello),
		"a worker's word":  raw(stream.OpSignal),
		"a short call":     raw(stream.Op(registry.VkDestroyBuffer), 1, 2, 3),
		"a short record":   raw(stream.OpRecord, 1),
		"a long call":      func(c *client, w workload) { c.postRaw(registry.VkDeviceWaitIdle, []uint64{w.device}, 7) },
		"handle in use":    func(c *client, w workload) { c.postNew(w, w.buffer) },
		"no generation":    func(c *client, w workload) { c.postNew(w, 30) },
		"index far away":   func(c *client, w workload) { c.postNew(w, 1<<32|1<<31) },
		"no such recorded": func(c *client, w workload) { c.postRecord(w, uint16(len(registry.Commands))) },
		"results too far apart": func(c *client, w workload) {
			pool := c.made(registry.VkQueryPool, registry.VkCreateQueryPool, w.device, c.mem(11, 0, 2<<32, 3), 0)
			c.post(registry.VkGetQueryPoolResults, w.device, pool, 0, 3, 24, c.mem(make([]uint64, 3)...), 1<<20, 1)
		},
		"create recorded": func(c *client, w workload) { c.postRecord(w, uint16(registry.VkCreateBuffer)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := begin(t, Config{Log: quiet})
			w := c.workload(4096)
			send(c, w)
			err := <-c.served
			c.served <- nil
			if !errors.Is(err, errMalformed) && !errors.Is(err, codec.ErrMalformed) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// postRaw sends a call with a byte too many.
func (c *client) postRaw(command registry.Index, args []uint64, more byte) {
	a := new(registry.Args)
	copy(a[:], args)
	buf, err := c.codec.AppendCall(c.conn.Begin(stream.Op(command), 0, 0), &registry.Commands[command], a, &c.env)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(append(buf, more))
}

// postNew sends the creation of a fence by an id.
func (c *client) postNew(w workload, id uint64) {
	c.post(registry.VkCreateFence, w.device, c.mem(8, 0, 0), 0, c.mem(id))
}

// postRecord records a command without arguments.
func (c *client) postRecord(w workload, command uint16) {
	id := idOf(registry.VkCommandBuffer, w.commands)
	buf := c.conn.Begin(stream.OpRecord, 0, 0)
	for i := range 8 {
		buf = append(buf, byte(id>>(8*i)))
	}
	start := len(buf)
	buf = stream.AppendRecord(buf, command)
	stream.EndRecord(buf, start)
	c.send(buf)
}

// The first message is a hello with our tables.
func TestHostileHello(t *testing.T) {
	for name, send := range map[string]func(*stream.Conn) error{
		"other tables": func(c *stream.Conn) error {
			return c.End(stream.Hello{Fingerprint: registry.Fingerprint + 1}.Append(c.Begin(stream.OpHello, stream.FlagReply, 1)))
		},
		"a ping": func(c *stream.Conn) error { return c.End(c.Begin(stream.OpPing, 0, 1)) },
	} {
		near, far := net.Pipe()
		conn := stream.New(wire.NewConn(near, wire.Config{}))
		served := make(chan error, 1)
		go func() { served <- Serve(t.Context(), wire.NewConn(far, wire.Config{}), Config{}) }()
		if err := errors.Join(send(conn), conn.Flush()); err != nil {
			t.Error(err)
		}
		if m, err := conn.Read(); name == "other tables" {
			if w, e := stream.ParseWelcome(m.Body); err != nil || e != nil || w.Fingerprint != registry.Fingerprint || w.Text == "memspan" {
				t.Errorf("%s: %+v, %v, %v", name, w, err, e)
			}
		} else if err == nil {
			t.Errorf("%s: answered", name)
		}
		if err := <-served; !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
}

// An instance with a device is not destroyed, and the end of the session
// destroys both.
func TestInstanceInUse(t *testing.T) {
	c := begin(t, Config{Log: quiet})
	s := c.setUp()
	if _, refused := c.try(registry.VkDestroyInstance, s.instance, 0); !refused {
		t.Error("it was destroyed")
	}
	c.do(registry.VkDeviceWaitIdle, s.device)
}

// Bytes of every kind at every command, with objects of a driver that has no
// functions: nothing is called, and nothing panics.
func FuzzCommand(f *testing.F) {
	f.Add(uint16(registry.VkCreateFence), true, []byte{0, 0, 0, 0, 1, 0, 0, 0, 1})
	f.Add(uint16(registry.VkQueueSubmit), false, []byte{})
	f.Add(uint16(registry.VkCmdFillBuffer), false, []byte{2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, command uint16, reply bool, body []byte) {
		near, far := net.Pipe()
		defer near.Close()
		go io.Copy(io.Discard, near)
		r, err := newRenderer(wire.NewConn(far, wire.Config{}), Config{Log: quiet, Objects: 64})
		if err != nil {
			noVulkan(t, err)
		}
		defer r.conn.Close()
		d := &device{proc: func(string) uintptr { return 0 }, procs: make([]uintptr, len(registry.Commands))}
		var parent *object
		for i, kind := range []registry.Index{registry.VkDevice, registry.VkBuffer, registry.VkCommandBuffer, registry.VkFence, registry.VkDescriptorPool, registry.VkPipelineLayout} {
			o := &object{id: id(1, uint64(i)), kind: kind, real: 1, device: d, parent: parent}
			switch kind {
			case registry.VkDevice:
				parent = o
			case registry.VkCommandBuffer:
				o.state = new(commandBuffer)
			}
			r.table.add(o)
		}
		if int(command) < len(registry.Commands) && registry.Commands[command].First != registry.None {
			m := stream.Message{Op: stream.Op(command), Body: body}
			if reply {
				m.Flags, m.Serial = stream.FlagReply, 1
			}
			r.command(m)
		}
		r.arena.Reset()
		recorded := append([]byte{2, 0, 0, 0, 1, 0, 0, 0}, stream.AppendRecord(nil, command)...)
		recorded = append(recorded, body...)
		stream.EndRecord(recorded, 8)
		r.record(recorded)
	})
}
