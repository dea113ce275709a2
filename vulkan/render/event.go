// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"sync"
	"time"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

const (
	eventSet   vk.Result = 3
	eventReset vk.Result = 4
	// eventSlice is how long a queue's goroutine stays in the driver before it
	// looks at the events that the submission sets: their only sign is their
	// state, which an application may poll.
	eventSlice = time.Millisecond
)

// An event is the state of a VkEvent.
type event struct {
	mu  sync.Mutex // held from a look at the event until what it showed is on its way
	set bool       // what the client knows
	// changes counts the client's: what is told says after how many of them it was
	// so, as another change may be on its way.
	changes uint64
	over    bool // it must not be looked at any more, or never
}

// newEvent keeps what matters of a VkEventCreateInfo.
func newEvent(info uint64) *event {
	const deviceOnly = 1
	return &event{over: structure(info).u32(16)&deviceOnly != 0}
}

// slice returns for how long to wait in the driver for a submission, and looks
// at its events before.
func (q *queue) slice(s *submission) time.Duration {
	if len(s.events) == 0 {
		return waitSlice
	}
	q.events(s)
	return eventSlice
}

// tellEvents tells which of the events that a submission sets or resets have
// changed since they were told, after what it wrote by then.
func (r *renderer) tellEvents(s *submission) {
	compared := false
	for _, o := range s.events {
		e := o.state.(*event)
		e.mu.Lock()
		if e.over {
			e.mu.Unlock()
			continue
		}
		result := new(caller).call(o.device.host.eventStatus, uint64(o.device.real), o.real)
		set := result == eventSet
		if set != e.set && (set || result == eventReset) {
			if !compared {
				r.compare(s)
				compared = true
			}
			e.set = set
			signal := stream.Signal{Kind: stream.SignalEvent, ID: o.id, Value: e.changes << 1}
			if set {
				signal.Value |= 1
			}
			r.conn.End(signal.Append(r.conn.Begin(stream.OpSignal, 0, 0)))
		}
		e.mu.Unlock()
	}
	if compared {
		r.conn.Flush() // a broken connection ends serve
	}
}

// changeEvent sets or resets an event for the application, which knows.
func (r *renderer) changeEvent(c *call) error {
	o := r.find(registry.VkEvent, c.args[1])
	if o == nil {
		return r.execute(c)
	}
	e := o.state.(*event)
	e.mu.Lock()
	e.set = registry.Index(c.index) == registry.VkSetEvent
	e.changes++
	result, err := r.invoke(c)
	e.mu.Unlock()
	if err != nil {
		return r.refuse(c, err)
	}
	return r.answer(c, result)
}

// destroyEvent destroys an event that nobody looks at any more.
func (r *renderer) destroyEvent(c *call) error {
	if o := r.find(registry.VkEvent, c.args[1]); o != nil {
		e := o.state.(*event)
		e.mu.Lock()
		e.over = true
		e.mu.Unlock()
	}
	return r.execute(c)
}
