// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"slices"
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// What the device sets is told while the submission is under way, with what it
// wrote before, and after how many changes of the host's; these are told to
// nobody.
func TestEvents(t *testing.T) {
	c := begin(t, Config{Deadline: time.Minute})
	w, fence := c.shadowed(4096, coherent)
	newEvent := func() uint64 {
		return c.made(registry.VkEvent, registry.VkCreateEvent, w.device, c.mem(10, 0, 0), 0)
	}
	device, host := newEvent(), newEvent()
	const transfer = 0x1000
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdFillBuffer, []uint64{w.buffer, 0, 64, 5}},
		recorded{registry.VkCmdSetEvent, []uint64{device, transfer}},
		recorded{registry.VkCmdWaitEvents, []uint64{1, c.mem(host), 0x4000, transfer, 0, 0, 0, 0, 0, 0}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	for round := range 3 {
		c.signals = nil
		c.post(registry.VkQueueSubmit, w.submission(c, fence)...)
		for len(c.signals) == 0 {
			c.receive(0)
		}
		if want := (stream.Signal{Kind: stream.SignalEvent, ID: device, Value: uint64(round)<<1 | 1}); c.signals[0] != want || c.shadows[w.memory][0] != 5 {
			t.Fatalf("%+v, with %d; want %+v", c.signals, c.shadows[w.memory][0], want)
		}
		c.post(registry.VkSetEvent, w.device, host)
		for !slices.ContainsFunc(c.signals, func(s stream.Signal) bool { return s.Kind == stream.SignalFence }) {
			c.receive(0)
		}
		c.post(registry.VkResetEvent, w.device, host)
		c.post(registry.VkResetEvent, w.device, device)
		c.post(registry.VkResetFences, w.device, 1, c.mem(fence))
		c.do(registry.VkDeviceWaitIdle, w.device)
		if len(c.signals) != 2 {
			t.Fatalf("round %d: %+v", round, c.signals)
		}
	}
	// Set at the end of a submission that nobody waits for.
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdSetEvent, []uint64{device, transfer}},
		recorded{registry.VkCmdResetEvent, []uint64{host, transfer}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	c.signals = nil
	c.post(registry.VkQueueSubmit, w.submission(c, 0)...)
	for len(c.signals) == 0 {
		c.receive(0)
	}
	c.post(registry.VkDestroyEvent, w.device, device, 0)
	c.post(registry.VkDestroyEvent, w.device, host, 0)
	c.do(registry.VkDeviceWaitIdle, w.device)
	if len(c.signals) != 1 || c.lost != nil {
		t.Errorf("%+v, lost: %+v", c.signals, c.lost)
	}
}

// A submission that waits for an event of the application's waits at its own
// leisure; one that waits for its own event does not.
func TestEventGate(t *testing.T) {
	c := begin(t, Config{})
	w := c.workload(4096)
	newEvent := func() uint64 {
		return c.made(registry.VkEvent, registry.VkCreateEvent, w.device, c.mem(10, 0, 0), 0)
	}
	own, host := newEvent(), newEvent()
	const transfer = 0x1000
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdSetEvent, []uint64{own, transfer}},
		recorded{registry.VkCmdWaitEvents, []uint64{2, c.mem(own, host), transfer | 0x4000, transfer, 0, 0, 0, 0, 0, 0}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	c.do(registry.VkDeviceWaitIdle, w.device)
	c.stopServing()
	b := c.r.table.find(idOf(registry.VkCommandBuffer, w.commands)).state.(*commandBuffer)
	o := c.r.table.find(host)
	if len(b.facts.awaited) != 1 || !b.facts.awaited[o] {
		t.Fatalf("it waits for %v, not for %p alone", b.facts.awaited, o)
	}
	caller := new(caller)
	g := gate{events: []*object{o}}
	if !g.closed(o.device, caller) {
		t.Error("the event is not set, and the gate open")
	}
	caller.call(c.r.proc(int(registry.VkSetEvent), o), uint64(o.device.real), o.real)
	if g.closed(o.device, caller) {
		t.Error("the event is set, and the gate closed")
	}
}
