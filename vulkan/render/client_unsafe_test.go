// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"net"
	"runtime"
	"testing"
	"unsafe"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

// A client is a driver in its simplest form: it asks for a reply to every call
// unless told otherwise.
type client struct {
	t       testing.TB
	conn    *stream.Conn
	codec   *codec.Codec
	env     codec.Env
	serial  uint64
	next    uint64 // index of the next handle
	keep    []any  // the application's memory
	signals []stream.Signal
	lost    *stream.Lost
	flags   stream.HelloFlags
	shadows map[uint64][]byte // what the client has of memories that it maps
	changed int               // bytes of OpMemoryChanged
	r       *renderer
	served  chan error
}

// begin starts a renderer and connects to it.
func begin(t testing.TB, cfg Config) *client {
	t.Helper()
	near, far := sockets(t) // which hold what nobody reads yet, as net.Pipe does not
	return beginOn(t, cfg, near, far, 0)
}

// beginLocal connects as an application on the same machine does.
func beginLocal(t testing.TB, cfg Config) *client {
	t.Helper()
	near, far := sockets(t)
	return beginOn(t, cfg, fdpass.New(near.(*net.UnixConn)), fdpass.New(far.(*net.UnixConn)), stream.SameMachine)
}

func beginOn(t testing.TB, cfg Config, near, far net.Conn, flags stream.HelloFlags) *client {
	t.Helper()
	r, err := newRenderer(wire.NewConn(far, wire.Config{}), cfg)
	if err != nil {
		noVulkan(t, err)
	}
	c := newClient(t, near)
	c.r, c.served = r, make(chan error, 1)
	go func() { c.served <- r.serve() }()
	t.Cleanup(func() { c.end() })
	c.flags = flags
	if w := c.hello(); w.Flags != flags {
		t.Fatalf("flags %d, want %d", w.Flags, flags)
	}
	return c
}

func sockets(t testing.TB) (near, far net.Conn) {
	t.Helper()
	near, file, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if far, err = fdpass.UnixConn(file); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func newClient(t testing.TB, conn net.Conn) *client {
	c := &client{t: t, conn: stream.New(wire.NewConn(conn, wire.Config{})), codec: codec.New()}
	c.env.Object = func(_ registry.Index, id uint64) uint64 { return id }
	return c
}

// hello greets the renderer and returns what it says of itself.
func (c *client) hello() stream.Welcome {
	c.t.Helper()
	h := stream.Hello{Fingerprint: registry.Fingerprint, Flags: c.flags, Name: "test"}
	c.send(h.Append(c.conn.Begin(stream.OpHello, stream.FlagReply, c.number())))
	w, err := stream.ParseWelcome(c.receive(c.serial).Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return w
}

// end ends the connection, returns what serve returned, and has everything
// destroyed. Only the first call counts.
func (c *client) end() error {
	if c.served == nil {
		return nil
	}
	c.conn.Close()
	err := <-c.served
	c.served = nil
	c.r.conn.Close()
	if err := c.r.close(); err != nil {
		c.t.Errorf("close: %v", err)
	}
	return err
}

func (c *client) number() uint64 { c.serial++; return c.serial }

func (c *client) send(buf []byte) {
	c.t.Helper()
	if err := c.conn.End(buf); err != nil {
		c.t.Fatal(err)
	}
	if err := c.conn.Flush(); err != nil {
		c.t.Fatal(err)
	}
}

// receive reads messages up to the reply to a call, or, if that is 0, up to the
// first signal or loss.
func (c *client) receive(serial uint64) stream.Message {
	c.t.Helper()
	for {
		m, err := c.conn.Read()
		if err != nil {
			c.t.Fatalf("connection: %v", err)
		}
		switch m.Op {
		case stream.OpSignal:
			for b := m.Body; len(b) > 0; {
				var s stream.Signal
				if s, b, err = stream.NextSignal(b); err != nil {
					c.t.Fatal(err)
				}
				c.signals = append(c.signals, s)
			}
		case stream.OpLost:
			l, err := stream.ParseLost(m.Body)
			if err != nil {
				c.t.Fatal(err)
			}
			c.lost = &l
		case stream.OpMemoryChanged:
			c.apply(m.Body)
			continue
		default:
			if m.Serial != serial {
				c.t.Fatalf("reply to %d, want %d", m.Serial, serial)
			}
		}
		if serial == 0 || m.Has(stream.FlagReply) {
			return m
		}
	}
}

// mem returns the address of words of the application's memory.
func (c *client) mem(words ...uint64) uint64 {
	words = append([]uint64{}, words...)
	if len(words) == 0 {
		return 0
	}
	c.keep = append(c.keep, words)
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(words))))
}

// word reads a word of the application's memory.
func word(at uint64) uint64 { return structure(at).u64(0) }

// handle makes a handle of a type: for a dispatchable one the address of its
// object.
func (c *client) handle(kind registry.Index) uint64 {
	id := 1<<32 | c.next
	c.next++
	if registry.Handles[kind].Dispatchable {
		return c.mem(0x01CDC0DE, id)
	}
	return id
}

func idOf(kind registry.Index, handle uint64) uint64 {
	if registry.Handles[kind].Dispatchable {
		return word(handle + 8)
	}
	return handle
}

// try calls a command and waits for its reply; refused says that it was not
// executed.
func (c *client) try(command registry.Index, args ...uint64) (result int32, refused bool) {
	c.t.Helper()
	a := new(registry.Args)
	copy(a[:], args)
	d := &registry.Commands[command]
	buf, err := c.codec.AppendCall(c.conn.Begin(stream.Op(command), stream.FlagReply, c.number()), d, a, &c.env)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(buf)
	m := c.receive(c.serial)
	if m.Has(stream.FlagFailed) {
		result, _, err := stream.ParseFailed(m.Body)
		if err != nil {
			c.t.Fatal(err)
		}
		return result, true
	}
	v, err := c.codec.ReadReply(m.Body, d, a, &c.env)
	if err != nil {
		c.t.Fatal(err)
	}
	runtime.KeepAlive(c.keep)
	return int32(v), false
}

// do is try for calls that succeed.
func (c *client) do(command registry.Index, args ...uint64) {
	c.t.Helper()
	if r, refused := c.try(command, args...); refused || r < 0 {
		c.t.Fatalf("%s: %v (refused: %v)", registry.Commands[command].Name, vk.Result(r), refused)
	}
}

// post calls a command without asking for a reply.
func (c *client) post(command registry.Index, args ...uint64) {
	c.t.Helper()
	a := new(registry.Args)
	copy(a[:], args)
	buf, err := c.codec.AppendCall(c.conn.Begin(stream.Op(command), 0, 0), &registry.Commands[command], a, &c.env)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(buf)
}

// A recorded is one command for record.
type recorded struct {
	command registry.Index
	args    []uint64 // without the command buffer
}

// record sends recorded commands.
func (c *client) record(commandBuffer uint64, commands ...recorded) {
	c.t.Helper()
	c.send(c.appendRecord(c.conn.Begin(stream.OpRecord, 0, 0), commandBuffer, commands))
}

// recordBody returns the body of a record of fills.
func (c *client) recordBody(w workload, n int) []byte {
	commands := []recorded{{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}}}
	for range n {
		commands = append(commands, recorded{registry.VkCmdFillBuffer, []uint64{w.buffer, 0, w.size, 1}})
	}
	return c.appendRecord(nil, w.commands, append(commands, recorded{registry.VkEndCommandBuffer, nil}))
}

func (c *client) appendRecord(buf []byte, commandBuffer uint64, commands []recorded) []byte {
	c.t.Helper()
	buf = binary.LittleEndian.AppendUint64(buf, idOf(registry.VkCommandBuffer, commandBuffer))
	for _, one := range commands {
		a := new(registry.Args)
		a[0] = commandBuffer
		copy(a[1:], one.args)
		start := len(buf)
		buf = stream.AppendRecord(buf, uint16(one.command))
		var err error
		if buf, err = c.codec.AppendParams(buf, &registry.Commands[one.command], a, &c.env); err != nil {
			c.t.Fatal(err)
		}
		stream.EndRecord(buf, start)
	}
	return buf
}

// made creates one object with a command whose last argument is for its handle.
func (c *client) made(kind, command registry.Index, args ...uint64) uint64 {
	c.t.Helper()
	out := c.mem(c.handle(kind))
	c.do(command, append(args, out)...)
	return word(out)
}

// A setup is an instance and a device with a queue.
type setup struct{ instance, gpu, device, queue uint64 }

// setUp makes them on the first GPU, with timeline semaphores.
func (c *client) setUp() setup {
	c.t.Helper()
	var s setup
	app := c.mem(0, 0, 0, 0, 0, uint64(vk.MakeVersion(1, 2))<<32)
	s.instance = c.made(registry.VkInstance, registry.VkCreateInstance, c.mem(1, 0, 0, app, 0, 0, 0, 0), 0)
	count, out := c.mem(1), c.mem(c.handle(registry.VkPhysicalDevice))
	c.do(registry.VkEnumeratePhysicalDevices, s.instance, count, out)
	s.gpu = word(out)
	queue := c.mem(2, 0, 0, 1, c.mem(0)) // flags, family 0, count 1
	timelines := c.mem(1000207000, 0, 1)
	s.device = c.made(registry.VkDevice, registry.VkCreateDevice, s.gpu, c.mem(3, timelines, 1<<32, queue, 0, 0, 0, 0, 0), 0)
	s.queue = c.made(registry.VkQueue, registry.VkGetDeviceQueue, s.device, 0, 0)
	return s
}
