// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// The VkResults that the driver itself returns.
const (
	success            = 0
	notReady           = 1
	timedOut           = 2
	eventSet           = 3
	eventReset         = 4
	incomplete         = 5
	outOfHostMemory    = -1
	initFailed         = -3
	deviceLost         = -4
	mapFailed          = -5
	layerNotPresent    = -6
	extensionNotThere  = -7
	featureNotPresent  = -8
	incompatibleDriver = -9
	outOfPoolMemory    = -1000069000
)

// vkResult is a VkResult as a command returns it.
func vkResult(r int32) uint64 { return uint64(uint32(r)) }

// A fenceState is what is known of a fence. Submissions are counted on both
// sides, so that a signal can be told from that of a submission before a reset.
type fenceState struct {
	submitted atomic.Uint64 // times
	reached   atomic.Uint64 // of those, how many are over
	reset     atomic.Uint64 // of those, how many a reset has forgotten
	made      atomic.Bool   // signalled by its creation, until a reset
}

func (f *fenceState) signalled() bool {
	return f.reached.Load() > f.reset.Load() || f.made.Load()
}

// A semaphoreState is what is known of a timeline semaphore. Of a binary one
// nothing needs to be.
type semaphoreState struct {
	value atomic.Uint64
}

// raise makes a value known.
func raise(to *atomic.Uint64, value uint64) {
	for {
		old := to.Load()
		if value <= old || to.CompareAndSwap(old, value) {
			return
		}
	}
}

// An eventState is what is known of an event: how often the application has
// changed it, times 2, and 1 more if it is set. Both sides count, so that what
// the device did before a change can be told from what it did since.
type eventState struct {
	value atomic.Uint64
}

func (e *eventState) set() bool { return e.value.Load()&1 != 0 }

// change notes a change by the application, before it is sent.
func (e *eventState) change(set uint64) {
	for {
		old := e.value.Load()
		if e.value.CompareAndSwap(old, (old>>1+1)<<1|set) {
			return
		}
	}
}

// told notes a change by the device, unless the application has changed the
// event since.
func (e *eventState) told(value uint64) {
	for {
		old := e.value.Load()
		if old>>1 != value>>1 || e.value.CompareAndSwap(old, value) {
			return
		}
	}
}

// signal applies an OpSignal. What the device wrote before was applied already.
func (l *link) signal(b []byte) error {
	for len(b) > 0 {
		var s stream.Signal
		var err error
		if s, b, err = stream.NextSignal(b); err != nil {
			return err
		}
		o := l.d.objects.get(s.ID)
		if o == nil {
			continue // destroyed meanwhile
		}
		switch state := o.state.(type) {
		case *fenceState:
			raise(&state.reached, s.Value)
		case *semaphoreState:
			raise(&state.value, s.Value)
		case *eventState:
			state.told(s.Value)
		}
	}
	l.rouseWaiters()
	return nil
}

// fenceOf returns the state of a fence, nil if the handle is unknown.
func (d *Driver) fenceOf(handle uint64) *fenceState {
	if o := d.objects.get(handle); o != nil {
		f, _ := o.state.(*fenceState)
		return f
	}
	return nil
}

// getFenceStatus answers vkGetFenceStatus(device, fence): programs call it in
// a loop.
func (d *Driver) getFenceStatus(_ registry.Index, a *registry.Args) uint64 {
	o := d.objects.get(a[1])
	if o == nil {
		return vkResult(deviceLost)
	}
	f, ok := o.state.(*fenceState)
	if !ok {
		return vkResult(deviceLost)
	}
	if f.signalled() {
		return success
	}
	return d.notYet(o.link)
}

// notYet is the answer to a look at something that has not come.
func (d *Driver) notYet(l *link) uint64 {
	if l.lost() != nil {
		return vkResult(deviceLost)
	}
	l.look()
	return notReady
}

// resetFences carries out vkResetFences(device, fenceCount, pFences).
func (d *Driver) resetFences(cmd registry.Index, a *registry.Args) uint64 {
	for i := range uint64(uint32(a[1])) {
		if f := d.fenceOf(load64(a[2] + 8*i)); f != nil {
			f.made.Store(false)
			f.reset.Store(f.submitted.Load())
		}
	}
	return d.sendResult(cmd, a)
}

// waitForFences answers vkWaitForFences(device, fenceCount, pFences, waitAll,
// timeout).
func (d *Driver) waitForFences(_ registry.Index, a *registry.Args) uint64 {
	o := d.objects.dispatchable(a[0])
	if o == nil {
		return vkResult(deviceLost)
	}
	n := int(uint32(a[1]))
	var few [8]*fenceState
	fences := few[:0]
	for i := range n {
		f := d.fenceOf(load64(a[2] + 8*uint64(i)))
		if f == nil {
			return vkResult(deviceLost)
		}
		fences = append(fences, f)
	}
	all := uint32(a[3]) != 0
	return d.waitUntil(o.link, a[4], func() bool {
		for _, f := range fences {
			if f.signalled() != all {
				return !all
			}
		}
		return all
	})
}

// waitUntil waits for ready and returns the VkResult of a wait.
func (d *Driver) waitUntil(l *link, timeout uint64, ready func() bool) uint64 {
	if ready() {
		return success
	}
	if l.flush() != nil {
		return vkResult(deviceLost)
	}
	if timeout == 0 {
		if l.lost() == nil {
			l.look()
			return timedOut
		}
		return vkResult(deviceLost)
	}
	switch {
	case l.wait(ready, timeoutOf(timeout), 0):
		return success
	case l.lost() != nil:
		return vkResult(deviceLost)
	}
	return timedOut
}

// getSemaphoreCounterValue answers vkGetSemaphoreCounterValue(device,
// semaphore, pValue).
func (d *Driver) getSemaphoreCounterValue(_ registry.Index, a *registry.Args) uint64 {
	o := d.objects.get(a[1])
	if o == nil {
		return vkResult(deviceLost)
	}
	s, ok := o.state.(*semaphoreState)
	if !ok || o.link.lost() != nil {
		return vkResult(deviceLost)
	}
	store64(a[2], s.value.Load())
	o.link.look() // nobody but the caller knows what it waits for
	return success
}

// waitSemaphores answers vkWaitSemaphores(device, pWaitInfo, timeout).
func (d *Driver) waitSemaphores(_ registry.Index, a *registry.Args) uint64 {
	o := d.objects.dispatchable(a[0])
	if o == nil {
		return vkResult(deviceLost)
	}
	// {sType, pNext, flags, semaphoreCount, pSemaphores, pValues}
	info := a[1]
	anyOne := load32(info+16)&1 != 0
	type point struct {
		state *semaphoreState
		value uint64
	}
	var few [8]point
	points := few[:0]
	handles, values := load64(info+24), load64(info+32)
	for i := range uint64(load32(info + 20)) {
		semaphore := d.objects.get(load64(handles + 8*i))
		if semaphore == nil {
			return vkResult(deviceLost)
		}
		s, ok := semaphore.state.(*semaphoreState)
		if !ok {
			return vkResult(deviceLost)
		}
		points = append(points, point{s, load64(values + 8*i)})
	}
	return d.waitUntil(o.link, a[2], func() bool {
		for _, p := range points {
			if (p.state.value.Load() >= p.value) == anyOne {
				return anyOne
			}
		}
		return !anyOne
	})
}

// signalSemaphore carries out vkSignalSemaphore(device, pSignalInfo).
func (d *Driver) signalSemaphore(cmd registry.Index, a *registry.Args) uint64 {
	// {sType, pNext, semaphore, value}
	o := d.objects.get(load64(a[1] + 16))
	if o == nil {
		return vkResult(deviceLost)
	}
	if err := d.release(o, cmd, a); err != nil {
		return d.failure(cmd, err)
	}
	if s, ok := o.state.(*semaphoreState); ok {
		raise(&s.value, load64(a[1]+24))
		o.link.rouseAll()
	}
	return success
}

// release makes the application's writes visible to the device and then sends
// a command, at once.
func (d *Driver) release(o *object, cmd registry.Index, a *registry.Args) error {
	if err := d.releaseAll(o.device); err != nil {
		return err
	}
	if err := o.link.sendCall(cmd, a); err != nil {
		return err
	}
	return o.link.flush()
}

// setEvent carries out vkSetEvent(device, event).
func (d *Driver) setEvent(cmd registry.Index, a *registry.Args) uint64 {
	o := d.objects.get(a[1])
	if o == nil {
		return vkResult(deviceLost)
	}
	if e, ok := o.state.(*eventState); ok {
		e.change(1)
	}
	if err := d.release(o, cmd, a); err != nil {
		return d.failure(cmd, err)
	}
	return success
}

// resetEvent carries out vkResetEvent(device, event).
func (d *Driver) resetEvent(cmd registry.Index, a *registry.Args) uint64 {
	if o := d.objects.get(a[1]); o != nil {
		if e, ok := o.state.(*eventState); ok {
			e.change(0)
		}
	}
	return d.sendResult(cmd, a)
}

// getEventStatus answers vkGetEventStatus(device, event).
func (d *Driver) getEventStatus(_ registry.Index, a *registry.Args) uint64 {
	o := d.objects.get(a[1])
	if o == nil || o.link.lost() != nil {
		return vkResult(deviceLost)
	}
	e, ok := o.state.(*eventState)
	if !ok {
		return vkResult(deviceLost)
	}
	o.link.look()
	if e.set() {
		return eventSet
	}
	return eventReset
}

// errDepth is one submission too many under way.
var errDepth = errors.New("driver: too many submissions under way")

// A queueState is what is kept of a VkQueue. Vulkan's rules let one thread at a
// time use it.
type queueState struct {
	sent uint32 // submissions that may be under way: those since the worker was asked, and those of which it knew then
}

// admit counts one more submission, and fails if the worker would refuse it.
// How many are under way it asks only when there may be too many.
func (q *queueState) admit(o *object) error {
	if depth := o.link.depth; depth > 0 && q.sent >= depth {
		reply, err := o.link.request(registry.VkQueueSubmit, stream.OpUnderWay, func(b []byte) []byte {
			return binary.LittleEndian.AppendUint64(b, o.id)
		})
		if err != nil {
			return err
		}
		if len(reply) != 4 {
			return o.link.failed(fmt.Errorf("%w: %d bytes of how many are under way", stream.ErrMalformed, len(reply)))
		}
		if q.sent = binary.LittleEndian.Uint32(reply); q.sent >= depth {
			return fmt.Errorf("%w: %d", errDepth, q.sent)
		}
	}
	q.sent++
	return nil
}

// queueSubmit carries out vkQueueSubmit, vkQueueSubmit2 and vkQueueBindSparse:
// (queue, count, infos, fence).
func (d *Driver) queueSubmit(cmd registry.Index, a *registry.Args) uint64 {
	queue := d.objects.dispatchable(a[0])
	if queue == nil {
		return vkResult(deviceLost)
	}
	if err := queue.link.lost(); err != nil {
		return vkResult(deviceLost)
	}
	state, ok := queue.state.(*queueState)
	if !ok {
		return vkResult(deviceLost)
	}
	if err := state.admit(queue); err != nil {
		return d.failure(cmd, err)
	}
	f := d.fenceOf(a[3])
	if f != nil {
		f.submitted.Add(1)
	}
	if err := d.release(queue, cmd, a); err != nil {
		return d.failure(cmd, err)
	}
	return success
}
