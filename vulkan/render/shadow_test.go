// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

const (
	transferSrc = 1
	transferDst = 2
	storage     = 0x20
	coherent    = 2 | 4
)

// mapMemory maps a memory, which is zeros on this side at first.
func (c *client) mapMemory(memory, size uint64, ask bool) {
	c.t.Helper()
	if c.shadows == nil {
		c.shadows = make(map[uint64][]byte)
	}
	c.shadows[memory] = make([]byte, size)
	flags, serial := stream.Flags(0), uint64(0)
	if ask {
		flags, serial = stream.FlagReply, c.number()
	}
	c.send(binary.LittleEndian.AppendUint64(c.conn.Begin(stream.OpMemoryMap, flags, serial), memory))
	if ask {
		if m := c.receive(serial); len(m.Body) != 4 || binary.LittleEndian.Uint32(m.Body) != 0 {
			c.t.Fatalf("map: %x", m.Body)
		}
	}
}

// apply applies what the device changed.
func (c *client) apply(body []byte) {
	c.t.Helper()
	runs, err := stream.ParseRuns(body)
	if err != nil {
		c.t.Fatal(err)
	}
	shadow := c.shadows[runs.Memory]
	for i := range runs.Len() {
		r := runs.At(i)
		part := shadow[r.Offset : r.Offset+uint64(r.Length)]
		subtle.XORBytes(part, part, runs.Data)
		runs.Data = runs.Data[r.Length:]
		c.changed += int(r.Length)
	}
}

// write stores to a memory on this side and sends it.
func (c *client) write(memory, offset uint64, data []byte) {
	c.t.Helper()
	copy(c.shadows[memory][offset:], data)
	c.send(writeBody(c.conn.Begin(stream.OpMemoryWrite, 0, 0), memory, offset, data))
}

func writeBody(buf []byte, memory, offset uint64, data []byte) []byte {
	buf = binary.LittleEndian.AppendUint64(buf, memory)
	return append(binary.LittleEndian.AppendUint64(buf, offset), data...)
}

// writeRuns does so with some bytes at several places.
func (c *client) writeRuns(memory uint64, offsets []uint64, data []byte) {
	c.t.Helper()
	var runs []stream.Run
	n := len(data) / len(offsets)
	for i, off := range offsets {
		runs = append(runs, stream.Run{Offset: off, Length: uint32(n)})
		copy(c.shadows[memory][off:], data[i*n:(i+1)*n])
	}
	buf := stream.AppendRuns(c.conn.Begin(stream.OpMemoryRuns, 0, 0), memory, runs)
	c.send(append(buf, data...))
}

// copies records copies within the buffer, each {from, to, size}, and begins
// with fills, each {offset, size, value}.
func (w workload) copies(c *client, fills, copies [][3]uint64) {
	commands := []recorded{{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}}}
	for _, f := range fills {
		commands = append(commands, recorded{registry.VkCmdFillBuffer, []uint64{w.buffer, f[0], f[1], f[2]}})
	}
	for _, k := range copies {
		commands = append(commands, recorded{registry.VkCmdCopyBuffer, []uint64{w.buffer, w.buffer, 1, c.mem(k[:]...)}})
	}
	c.record(w.commands, append(commands, recorded{registry.VkEndCommandBuffer, nil})...)
}

// play submits the command buffer with the fence and waits for its signal.
func (w workload) play(c *client, fence uint64) {
	c.t.Helper()
	seen := len(c.signals)
	c.post(registry.VkQueueSubmit, w.submission(c, fence)...)
	for len(c.signals) == seen {
		if m := c.receive(0); m.Op == stream.OpLost {
			c.t.Fatalf("lost: %+v", c.lost)
		}
	}
	c.post(registry.VkResetFences, w.device, 1, c.mem(fence))
}

func (c *client) fence(w workload) uint64 {
	return c.made(registry.VkFence, registry.VkCreateFence, w.device, c.mem(8, 0, 0), 0)
}

// shadowed makes a mapped buffer that can be copied within, and a fence.
func (c *client) shadowed(size uint64, properties uint64) (w workload, fence uint64) {
	c.t.Helper()
	w = workload{setup: c.setUp(), size: size}
	c.equip(&w, transferSrc|transferDst, properties)
	c.mapMemory(w.memory, size, false)
	return w, c.fence(w)
}

// state returns what the renderer knows of a memory, once it serves no more.
func (c *client) state(memory uint64) *deviceMemory {
	return c.r.table.find(memory).state.(*deviceMemory)
}

// agree fails unless the memory holds what the client has of it. It stops the
// renderer.
func (c *client) agree(memory uint64) {
	c.t.Helper()
	c.send(c.conn.Begin(stream.OpPing, 0, c.number()))
	c.receive(c.serial)
	if c.lost != nil {
		c.t.Fatalf("lost: %+v", c.lost)
	}
	c.stopServing()
	shadow := c.shadows[memory]
	if got := c.contents(memory, uint64(len(shadow))); !bytes.Equal(got, shadow) {
		for i := range got {
			if got[i] != shadow[i] {
				c.t.Fatalf("byte %d is %#x, and the client has %#x", i, got[i], shadow[i])
			}
		}
	}
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// What the client writes is copied by the device, and comes back before the
// fence's signal; only that does.
func TestWriteAndCopyBack(t *testing.T) {
	c := begin(t, Config{})
	const half = 1 << 20
	w, fence := c.shadowed(2*half, coherent)
	data := pattern(half, 1)
	c.write(w.memory, 0, data)
	w.copies(c, nil, [][3]uint64{{0, half, half}})
	w.play(c, fence)
	if got := c.shadows[w.memory][half:]; !bytes.Equal(got, data) {
		t.Error("the copy did not come back")
	}
	if c.changed < half-half/64 || c.changed > half {
		t.Errorf("%d bytes changed", c.changed)
	}
	// The same once more changes nothing.
	c.changed = 0
	w.play(c, fence)
	if c.changed != 0 {
		t.Errorf("%d bytes changed by nothing", c.changed)
	}
	// Bytes here and there.
	c.writeRuns(w.memory, []uint64{3, 70_001, half - 2}, []byte{1, 2, 3, 4, 5, 6})
	w.play(c, fence)
	if got := c.shadows[w.memory]; !bytes.Equal(got[:half], got[half:]) {
		t.Error("the second copy did not come back")
	}
	if c.changed > 3*16 {
		t.Errorf("%d bytes changed by 6", c.changed)
	}
	c.agree(w.memory)
}

// Both sides write bytes of one page: no one's are lost.
func TestBothWriteOnePage(t *testing.T) {
	c := begin(t, Config{})
	w, fence := c.shadowed(8192, coherent)
	for round := range 20 {
		b := byte(round + 1)
		w.copies(c, [][3]uint64{{4, 4, uint64(b) * 0x01010101}, {4100, 8, uint64(b)}}, nil)
		seen := len(c.signals)
		c.post(registry.VkQueueSubmit, w.submission(c, fence)...)
		// While it may be running, and not yet told.
		c.write(w.memory, 0, []byte{b, b, b, b})
		c.writeRuns(w.memory, []uint64{8, 4096, 8191}, []byte{b, b + 1, b + 2})
		for len(c.signals) == seen {
			c.receive(0)
		}
		c.post(registry.VkResetFences, w.device, 1, c.mem(fence))
		got := c.shadows[w.memory]
		if !bytes.Equal(got[:9], bytes.Repeat([]byte{b}, 9)) || got[4096] != b+1 || got[8191] != b+2 || got[4100] != b || got[4104] != b {
			t.Fatalf("round %d: % x, % x", round, got[:16], got[4096:4112])
		}
	}
	c.agree(w.memory)
}

// A large mapping costs what is touched of it, and has no other rule than a
// small one.
func TestLargeMapping(t *testing.T) {
	if testing.Short() {
		t.Skip("takes memory")
	}
	c := begin(t, Config{})
	const size = 512 << 20
	w, fence := c.shadowed(size, coherent)
	data := pattern(8, 2)
	offsets := []uint64{0, 16<<20 + 4096, size/2 - 1, size - 2}
	c.writeRuns(w.memory, offsets, data)
	w.copies(c, [][3]uint64{{300 << 20, 8, 0xffffffff}, {size - 4096, 4, 7}}, [][3]uint64{{16<<20 + 4096, 400 << 20, 2}, {size/2 - 1, 17 << 20, 2}})
	w.play(c, fence)
	got := c.shadows[w.memory]
	if !bytes.Equal(got[400<<20:400<<20+2], data[2:4]) || !bytes.Equal(got[17<<20:17<<20+2], data[4:6]) || got[300<<20+7] != 0xff || got[300<<20+8] != 0 || got[size-4096] != 7 {
		t.Error("what the device wrote did not come back")
	}
	c.stopServing()
	m := c.state(w.memory)
	if n, err := m.image.Resident(); err != nil || n > 8*chunkSize {
		t.Errorf("the image takes %d bytes, %v", n, err)
	}
	for i, off := range offsets {
		if !bytes.Equal(m.bytes[off:off+2], data[2*i:2*i+2]) {
			t.Errorf("% x at %d", m.bytes[off:off+2], off)
		}
	}
}

// What the client alone writes has no image.
func TestUploadHasNoImage(t *testing.T) {
	c := begin(t, Config{})
	w, fence := c.shadowed(4<<20, coherent)
	c.write(w.memory, 1<<20, pattern(2<<20, 3))
	w.copies(c, nil, [][3]uint64{{1 << 20, 0, 4096}})
	w.play(c, fence)
	if !bytes.Equal(c.shadows[w.memory][:4096], c.shadows[w.memory][1<<20:1<<20+4096]) {
		t.Error("the copy did not come back")
	}
	c.agree(w.memory)
	if n, err := c.state(w.memory).image.Resident(); err != nil || n > chunkSize {
		t.Errorf("the image takes %d bytes, %v", n, err)
	}
}

// What the device wrote before the first mapping is there.
func TestMapAfterWrite(t *testing.T) {
	c := begin(t, Config{})
	w := workload{setup: c.setUp(), size: 1 << 20}
	c.equip(&w, transferDst, coherent)
	w.copies(c, [][3]uint64{{4096, 8192, 0x01020304}}, nil)
	c.post(registry.VkQueueSubmit, w.submission(c, 0)...)
	c.do(registry.VkQueueWaitIdle, w.queue)
	c.mapMemory(w.memory, w.size, true)
	want := append(make([]byte, 4096), bytes.Repeat([]byte{4, 3, 2, 1}, 2048)...)
	if got := c.shadows[w.memory]; !bytes.Equal(got[:len(want)], want) {
		t.Errorf("% x…", got[4096:4112])
	}
	c.mapMemory(w.memory, 0, true) // once more is no mistake
	c.shadows[w.memory] = append(want, make([]byte, int(w.size)-len(want))...)
	c.agree(w.memory)
}

// Memory that was another's before holds zeros, as the client has it.
func TestMapUsedMemory(t *testing.T) {
	c := begin(t, Config{})
	w := workload{setup: c.setUp(), size: 96 << 10}
	c.equip(&w, transferSrc|transferDst, coherent)
	w.fill(c, 0xffffffff)
	c.post(registry.VkQueueSubmit, w.submission(c, 0)...)
	c.do(registry.VkQueueWaitIdle, w.queue)
	c.post(registry.VkDestroyBuffer, w.device, w.buffer, 0)
	c.post(registry.VkFreeMemory, w.device, w.memory, 0)
	again := workload{setup: w.setup, size: w.size}
	c.equip(&again, transferSrc|transferDst, coherent)
	c.mapMemory(again.memory, again.size, false)
	again.copies(c, nil, [][3]uint64{{0, 64 << 10, 4096}})
	again.play(c, c.fence(again))
	c.agree(again.memory)
}

// Memory that is not coherent: hidden, as drivers' usually is not.
func TestNonCoherent(t *testing.T) {
	c := begin(t, Config{HideHostCoherent: true})
	w, fence := c.shadowed(256<<10, 2)
	for i := range uint64(5) {
		c.writeRuns(w.memory, []uint64{i, 1000 + i, 128<<10 - 1}, pattern(3, i))
		w.copies(c, nil, [][3]uint64{{0, 128 << 10, 128 << 10}})
		w.play(c, fence)
		if got := c.shadows[w.memory]; !bytes.Equal(got[:128<<10], got[128<<10:]) {
			t.Fatal("the copy did not come back")
		}
	}
	c.agree(w.memory)
	if m := c.state(w.memory); m.coherent {
		t.Error("it is coherent")
	}
}

// A submission without a fence, then an idle queue: the changes come before the
// answer.
func TestIdleTellsChanges(t *testing.T) {
	c := begin(t, Config{})
	w, _ := c.shadowed(1<<20, coherent)
	for i := range uint64(10) {
		w.copies(c, [][3]uint64{{i * 4096, 4096, i + 1}}, nil)
		c.post(registry.VkQueueSubmit, w.submission(c, 0)...)
		c.do([]registry.Index{registry.VkQueueWaitIdle, registry.VkDeviceWaitIdle}[i%2], []uint64{w.queue, w.device}[i%2])
		if got := c.shadows[w.memory][i*4096]; got != byte(i+1) {
			t.Fatalf("%d after wait %d", got, i)
		}
	}
	c.agree(w.memory)
}

// Shaders may write storage buffers, wherever these are bound, and nothing
// else.
func TestPlanOfShaders(t *testing.T) {
	c := begin(t, Config{})
	w := workload{setup: c.setUp(), size: 64 << 10}
	c.equip(&w, storage, coherent)
	uniform := c.made(registry.VkBuffer, registry.VkCreateBuffer, w.device, c.mem(12, 0, 0, 4096, 0x10, 0, 0), 0)
	memory := c.made(registry.VkDeviceMemory, registry.VkAllocateMemory, w.device, c.mem(5, 0, 16384, 0), 0)
	c.do(registry.VkBindBufferMemory, w.device, uniform, memory, 0)
	second := c.made(registry.VkBuffer, registry.VkCreateBuffer, w.device, c.mem(12, 0, 0, 4096, storage, 0, 0), 0)
	c.do(registry.VkBindBufferMemory2, w.device, 1, c.mem(1000157000, 0, second, memory, 8192))
	third := c.made(registry.VkBuffer, registry.VkCreateBuffer, w.device, c.mem(12, 0, 0, 4096, storage, 0, 0), 0)
	c.do(registry.VkBindBufferMemory, w.device, third, memory, 12288)
	c.post(registry.VkDestroyBuffer, w.device, third, 0)
	c.do(registry.VkDeviceWaitIdle, w.device)
	c.stopServing()
	d := c.r.table.find(w.memory).device
	s := &submission{facts: []*facts{{shaders: true}}}
	c.r.plan(d, s)
	if len(s.writes) != 2 || s.writes[0].memory != c.state(w.memory) || len(s.writes[1].spans) != 1 || s.writes[1].spans[0] != (span{8192, 12288}) {
		t.Errorf("%+v", s.writes)
	}
	s = &submission{facts: []*facts{{}}}
	if c.r.plan(d, s); len(s.writes) != 0 || c.r.watches(s) {
		t.Errorf("%+v by nothing", s.writes)
	}
}

// A submission that waited tells what others wrote before it.
func TestBeforeOtherQueues(t *testing.T) {
	d := new(device)
	older := &submission{writes: []write{{}}}
	s := &submission{writes: []write{{}, {}}}
	younger := &submission{writes: []write{{}}}
	for _, o := range []*submission{older, s, younger} {
		d.begin(o)
	}
	if n := len(d.before(s)); n != 2 {
		t.Errorf("%d writes alone", n)
	}
	s.joins = true
	if n := len(d.before(s)); n != 3 {
		t.Errorf("%d writes with what is older", n)
	}
	d.end(older)
	if n := len(d.before(s)); n != 2 || len(d.open) != 2 {
		t.Errorf("%d writes, %d open", n, len(d.open))
	}
}

// The client's writes and the comparisons of submissions under way meet.
func TestWritesMeetComparisons(t *testing.T) {
	c := begin(t, Config{Spin: -1})
	const size = 4 << 20
	w, fence := c.shadowed(size, coherent)
	w.copies(c, [][3]uint64{{size / 2, size / 2, 0x55aa55aa}, {size / 2, size / 4, 0}}, nil)
	data := pattern(64<<10, 7)
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		seen := len(c.signals)
		c.post(registry.VkQueueSubmit, w.submission(c, fence)...)
		// A client that sends much reads meanwhile, or nothing moves.
		var sending sync.WaitGroup
		sending.Go(func() {
			data[0]++
			for at := uint64(0); at < size/2; at += 128 << 10 {
				c.write(w.memory, at, data)
			}
		})
		for len(c.signals) == seen {
			c.receive(0)
		}
		sending.Wait()
		c.post(registry.VkResetFences, w.device, 1, c.mem(fence))
	}
	c.agree(w.memory)
}

// Images whose layout the host knows are compared, others are not.
func TestImages(t *testing.T) {
	for tiling, name := range []string{"optimal", "linear"} {
		t.Run(name, func(t *testing.T) {
			c := begin(t, Config{})
			w := workload{setup: c.setUp(), size: 4096}
			c.equip(&w, transferDst, coherent)
			const r8, general = 9, 1
			image := c.made(registry.VkImage, registry.VkCreateImage, w.device,
				c.mem(14, 0, 1<<32, r8|64<<32, 64|1<<32, 1|1<<32, 1|uint64(tiling)<<32, transferDst, 0, 0, 0), 0)
			needs := c.mem(0, 0, 0)
			c.do(registry.VkGetImageMemoryRequirements, w.device, image, needs)
			size := word(needs)
			memory := c.made(registry.VkDeviceMemory, registry.VkAllocateMemory, w.device, c.mem(5, 0, size+4096, 0), 0)
			c.do(registry.VkBindImageMemory2, w.device, 1, c.mem(1000157001, 0, image, memory, 4096))
			c.mapMemory(memory, size+4096, false)
			c.record(w.commands,
				recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
				recorded{registry.VkCmdClearColorImage, []uint64{image, general, c.mem(0x3f8000003f800000, 0x3f8000003f800000), 1, c.mem(1|0<<32, 1|0<<32, 1)}},
				recorded{registry.VkEndCommandBuffer, nil},
			)
			w.play(c, c.fence(w))
			got := c.shadows[memory]
			if tiling == 0 {
				if c.changed != 0 {
					t.Errorf("%d bytes of an opaque image were sent", c.changed)
				}
			} else if got[4095] != 0 || got[4096] != 0xff || got[4096+63] != 0xff {
				t.Errorf("% x", got[4090:4170])
			}
			c.post(registry.VkDestroyImage, w.device, image, 0)
			c.do(registry.VkDeviceWaitIdle, w.device)
			c.stopServing()
			if n := len(c.state(memory).places); n != 0 {
				t.Errorf("%d places are left", n)
			}
		})
	}
}
