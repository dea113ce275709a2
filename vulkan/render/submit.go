// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// errInUse is the destruction of something that the device uses.
var errInUse = errors.New("render: still in use")

// A fence is the state of a VkFence.
type fence struct {
	submitted uint64      // times, which is what its signal tells
	last      *submission // that signals it, or nil
}

// A timeline is the state of a VkSemaphore with a value.
type timeline struct {
	last *submission // that signals it, or nil
}

// A buffer is the state of a VkBuffer.
type buffer struct {
	place
	size        uint64
	addressable bool // it has an address
}

// submit gives work to a queue and has its end watched.
func (r *renderer) submit(c *call) error {
	q := c.first.state.(*queue)
	s := new(submission)
	poison := ""
	index := registry.Index(c.index)
	if c.Alias != registry.None {
		index = c.Alias
	}
	endsInPoint := false
	batches(c, index, func(waits uint32, commands []uint64, signals []signalOp) {
		q.joins = q.joins || waits > 0
		for _, real := range commands {
			if o := r.find(registry.VkCommandBuffer, real); o != nil {
				b := o.state.(*commandBuffer)
				if b.poison != "" && poison == "" {
					poison = b.poison
				}
				if b.facts != nil {
					s.facts = append(s.facts, b.facts)
				}
			}
		}
		endsInPoint = false
		for _, op := range signals {
			o := r.find(registry.VkSemaphore, op.semaphore)
			if o == nil {
				continue
			}
			if b, ok := o.state.(*binarySemaphore); ok {
				b.last = s
			}
			if t, ok := o.state.(*timeline); ok {
				t.last = s
				s.points = append(s.points, point{op.semaphore, op.value, stream.Signal{Kind: stream.SignalSemaphore, ID: o.id, Value: op.value}})
				endsInPoint = true
			}
		}
	})
	if poison != "" {
		return r.refuse(c, fmt.Errorf("a command buffer could not be recorded: %s", poison))
	}
	if index == registry.VkQueueBindSparse {
		r.bindSparse()
	}
	s.joins = q.joins
	r.plan(q.device, s)
	if q.deadline > 0 {
		s.gate = r.gateOf(c, index, s)
	}
	fenceAt := len(c.Params) - 1
	s.fence = c.args[fenceAt]
	switch {
	case s.fence != 0:
		f := r.find(registry.VkFence, s.fence).state.(*fence)
		f.submitted++
		f.last = s
		s.signal = stream.Signal{Kind: stream.SignalFence, ID: r.find(registry.VkFence, s.fence).id, Value: f.submitted}
	case !endsInPoint && r.watches(s):
		var err error
		if s.fence, err = q.device.takeFence(&r.caller); err != nil {
			return r.refuse(c, err)
		}
		s.own = true
		c.args[fenceAt] = s.fence
	}
	q.device.begin(s)
	result, err := r.invoke(c)
	if err != nil || int32(result) < 0 {
		q.device.end(s)
		s.finished = make(chan struct{})
		close(s.finished)
		if err != nil {
			return r.refuse(c, err)
		}
		return r.answer(c, result)
	}
	spin := r.cfg.Spin
	if r.conn.Buffered() {
		spin = 0
	}
	if s.fence != 0 || len(s.points) > 0 {
		if err := q.submitted(s, spin); err != nil {
			return r.refuse(c, err)
		}
	}
	return r.answer(c, result)
}

// queue returns the state of a VkQueue, of which there is one however often the
// application asks for it.
func (d *device) queue(r *renderer, real uintptr) *queue {
	for _, q := range d.queues {
		if q.real == real {
			return q
		}
	}
	q := &queue{device: d, real: real, depth: r.cfg.QueueDepth, deadline: r.cfg.Deadline, observe: r.observe, events: r.tellEvents}
	q.lost = func(err error) { r.lose(resultOf(err), noCommand, err) }
	q.start()
	d.queues = append(d.queues, q)
	return q
}

const noCommand = 0xffff

// observe tells the client how far a submission has come. It is called by the
// queue's goroutine, or by the stream's.
func (r *renderer) observe(s *submission, signal stream.Signal, last bool) {
	r.compare(s)
	if last {
		s.device.end(s)
		r.tellEvents(s)
	}
	if signal.Kind != 0 {
		if r.conn.End(signal.Append(r.conn.Begin(stream.OpSignal, 0, 0))) != nil {
			return // the stream's goroutine finds out
		}
	}
	r.conn.Flush()
}

// waitIdle answers when all that was submitted to a queue, or to all of a
// device, has ended and been told. The driver's function is not called: it would
// keep other threads of the application from submitting.
func (r *renderer) waitIdle(c *call) error {
	d := c.first.device
	queues := d.queues
	if q, ok := c.first.state.(*queue); ok {
		queues = []*queue{q}
	}
	var ends []*submission
	for _, q := range queues {
		f, err := d.takeFence(&r.caller)
		if err == nil {
			err = r.caller.submitFence(d, q.real, f)
		}
		s := &submission{device: d, joins: q.joins, fence: f, own: true, idle: true}
		if err == nil {
			spin := r.cfg.Spin
			if r.conn.Buffered() {
				spin = 0
			}
			err = q.submitted(s, spin)
		}
		if err != nil {
			return r.refuse(c, err)
		}
		ends = append(ends, s)
	}
	if !c.reply {
		return nil
	}
	finish := func(c *call) error {
		for _, s := range ends {
			<-s.finished
			if s.failed {
				return r.answer(c, uint64(uint32(0xfffffffc))) // VK_ERROR_DEVICE_LOST
			}
		}
		return r.answer(c, 0)
	}
	for _, s := range ends {
		select {
		case <-s.finished:
		default:
			r.goAside(c, finish)
			return nil
		}
	}
	return finish(c)
}

// underWay tells how many submissions of a queue are under way: {u64 queue}.
func (r *renderer) underWay(m stream.Message) error {
	if len(m.Body) != 8 || !m.Has(stream.FlagReply) {
		return fmt.Errorf("%w: %d bytes with flags %#x", errMalformed, len(m.Body), m.Flags)
	}
	o := r.table.get(registry.VkQueue, binary.LittleEndian.Uint64(m.Body))
	if o == nil {
		return fmt.Errorf("%w: %w", errMalformed, errHandle)
	}
	n := o.state.(*queue).underWay()
	return r.conn.End(binary.LittleEndian.AppendUint32(r.conn.Begin(stream.OpUnderWay, stream.FlagReply, m.Serial), uint32(n)))
}

// settleFirst executes a command on fences or semaphores once nothing waits for
// them any more. The application has learned that what it submitted is done,
// perhaps by another way than the queue's goroutine, which then is about to.
func (r *renderer) settleFirst(c *call) error {
	for _, o := range r.named {
		var s *submission
		switch state := o.state.(type) {
		case *fence:
			s, state.last = state.last, nil
		case *timeline:
			s, state.last = state.last, nil
		}
		if s == nil || s.finished == nil {
			continue
		}
		if err := settle(s.finished); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	return r.execute(c)
}

// settle waits for what is about to happen.
func settle(done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	default:
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return errInUse
	}
}

// queryResults asks for the results of queries, aside if they are to be waited
// for.
func (r *renderer) queryResults(c *call) error {
	const (
		wait                = 2
		least               = 4 // bytes of a result
		count, size, stride = 3, 4, 6
	)
	// The driver believes the stride, and would write beyond the room that the
	// size asked for.
	if n := c.args[count]; n > 1 && (c.args[size] < least || c.args[stride] > (c.args[size]-least)/(n-1)) {
		return fmt.Errorf("%w: results of %d queries %d bytes apart in %d bytes", errMalformed, n, c.args[stride], c.args[size])
	}
	if c.args[len(c.Params)-1]&wait != 0 {
		return r.runAside(c)
	}
	return r.execute(c)
}

// runAside executes a call that may take long beside the stream. The objects
// that it creates are there at once; who names them waits.
func (r *renderer) runAside(c *call) error {
	var made []*object
	done := make(chan struct{})
	if c.Creates >= 0 {
		ids, _ := c.arena.Created()
		for _, id := range ids {
			kind := c.Params[c.Creates].Type
			o := &object{id: id, kind: kind, creating: done, device: c.first.device, parent: r.parentOf(kind, c.first)}
			r.table.add(o)
			made = append(made, o)
		}
	}
	proc := r.proc(c.index, c.first)
	if proc == 0 {
		close(done)
		return r.execute(c) // which refuses it
	}
	c.set(proc)
	r.goAside(c, func(c *call) error {
		vk.Raw(&c.raw)
		if c.Creates >= 0 {
			_, reals := c.arena.Created()
			for i, o := range made {
				if i < len(reals) {
					o.real = reals[i]
				}
			}
		}
		close(done)
		return r.answer(c, c.raw.Result)
	})
	return nil
}

// goAside runs f with a copy of the call, whose arena is its own from now on,
// and flushes what it answers.
func (r *renderer) goAside(c *call, f func(c *call) error) {
	own := new(call)
	*own = *c
	r.arena = r.arenas.Get().(*codec.Arena)
	d := c.first.device
	r.slots <- struct{}{}
	d.aside.Add(1)
	r.aside.Go(func() {
		defer func() { <-r.slots }()
		defer d.aside.Done()
		if f(own) == nil {
			r.conn.Flush() // a broken connection ends the stream's goroutine too
		}
		r.arenas.Put(own.arena)
	})
}
