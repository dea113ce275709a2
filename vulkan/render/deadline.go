// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"slices"
	"time"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
)

// A binarySemaphore is the state of a VkSemaphore without a value.
type binarySemaphore struct {
	last *submission // that signals it, or nil
}

// A gate is what a submission waits for before the device works on it. It may
// wait as long as it likes for the application, which signals timelines and
// sets events; its deadline does not run meanwhile.
type gate struct {
	points []point       // of timelines; their signals mean nothing
	after  []*submission // of other queues, by binary semaphores
	events []*object     // that it does not set itself
}

// gateOf returns the gate of a vkQueueSubmit, vkQueueSubmit2 or
// vkQueueBindSparse.
func (r *renderer) gateOf(c *call, command registry.Index, s *submission) gate {
	var g gate
	for _, f := range s.facts {
		for o := range f.awaited {
			if !slices.Contains(s.events, o) {
				g.events = append(g.events, o)
			}
		}
	}
	waits(c, command, func(op signalOp) {
		o := r.find(registry.VkSemaphore, op.semaphore)
		if o == nil {
			return
		}
		switch state := o.state.(type) {
		case *timeline:
			g.points = append(g.points, point{semaphore: op.semaphore, value: op.value})
		case *binarySemaphore:
			if s := state.last; s != nil && s.finished != nil {
				g.after = append(g.after, s)
			}
		}
	})
	return g
}

// closed reports whether the submission still waits. The caller is a queue's
// goroutine. What has opened stays open, and is not looked at again.
func (g *gate) closed(d *device, c *caller) bool {
	for len(g.points) > 0 {
		if v, r := c.semaphoreValue(d, g.points[0].semaphore); r == vk.Success && v < g.points[0].value {
			return true
		}
		g.points = g.points[1:]
	}
	for len(g.after) > 0 {
		select {
		case <-g.after[0].finished:
		default:
			return true
		}
		g.after = g.after[1:]
	}
	for len(g.events) > 0 {
		if g.events[0].isReset(c) {
			return true
		}
		g.events = g.events[1:]
	}
	return false
}

// isReset reports whether an event is reset, as far as that can be known.
func (o *object) isReset(c *caller) bool {
	e := o.state.(*event)
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.over && c.call(o.device.host.eventStatus, uint64(o.device.real), o.real) == eventReset
}

// A clock is the time that a submission has had at the head of its queue.
type clock struct {
	begin time.Time
	gate  *gate
}

// over reports whether the time is over.
func (t *clock) over(q *queue) bool {
	if q.deadline <= 0 {
		return false
	}
	if t.gate.closed(q.device, q.caller) {
		t.begin = time.Now()
	}
	return time.Since(t.begin) > q.deadline
}
