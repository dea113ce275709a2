// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"errors"
	"fmt"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
)

// stop has the device's queues end their work, and the goroutines that wait for
// it. It fails if that takes too long; then calls may still be in the driver.
func (r *renderer) stop(d *device) error {
	if d == nil {
		return errInUse // it was never made whole
	}
	done := make(chan struct{})
	go func() { // ends with the calls; if it does not, the process does
		d.aside.Wait()
		close(done)
	}()
	if err := settle(done); err != nil {
		return fmt.Errorf("%w: calls do not end: %w", ErrStuck, err)
	}
	for _, q := range d.queues {
		f, err := d.takeFence(&r.caller)
		if err == nil {
			err = r.caller.submitFence(d, q.real, f)
		}
		if err == nil {
			// Through the queue's goroutine: what was submitted before is
			// observed before.
			s := &submission{device: d, fence: f, own: true, idle: true}
			if err = q.submitted(s, 0); err == nil {
				err = settle(s.finished)
			}
			if err == nil && s.failed {
				err = q.why // the deadline: the device works on
			}
		}
		q.close()
		// A lost device is idle, and can be destroyed.
		if err != nil && !errors.Is(err, vk.ErrDeviceLost) {
			return fmt.Errorf("%w: a queue: %w", ErrStuck, err)
		}
	}
	d.close(&r.caller)
	d.queues = nil
	return nil
}

// close destroys what the application left, devices first.
func (r *renderer) close() error {
	destroyers := destroyers()
	for _, o := range r.table.slots {
		if o == nil || o.kind != registry.VkDevice || o.device == nil {
			continue
		}
		if err := r.stop(o.device); err != nil {
			return err
		}
		r.destroyChildren(o, destroyers)
		r.destroy(o, destroyers)
	}
	for _, o := range r.table.slots {
		if o != nil && o.kind == registry.VkInstance {
			r.destroy(o, destroyers)
		}
	}
	r.aside.Wait()
	return r.images.Close()
}

// destroyChildren destroys what a device owns: the youngest first, as what
// depends on others is made after them; memory last.
func (r *renderer) destroyChildren(device *object, destroyers []registry.Index) {
	for _, memory := range []bool{false, true} {
		for o := device.child; o != nil; o = o.older {
			if o.creating != nil {
				<-o.creating
			}
			if o.real != 0 && (o.kind == registry.VkDeviceMemory) == memory {
				r.destroy(o, destroyers)
			}
		}
	}
}

// destroy calls the driver's function that destroys an object, if there is one:
// what pools own goes with the pool.
func (r *renderer) destroy(o *object, destroyers []registry.Index) {
	index := destroyers[o.kind]
	if index == registry.None {
		return
	}
	proc := r.proc(int(index), o)
	switch {
	case proc == 0:
	case o.kind == registry.VkDeviceMemory:
		m := o.state.(*deviceMemory)
		m.close()
		r.caller.call(proc, uint64(o.device.real), o.real, 0)
		m.release()
	case o.kind == registry.VkDevice || o.kind == registry.VkInstance:
		r.caller.call(proc, o.real, 0)
	default:
		r.caller.call(proc, uint64(o.device.real), o.real, 0)
	}
}

// destroyers returns, by handle type, the command that destroys one object of
// it, or None.
func destroyers() []registry.Index {
	list := make([]registry.Index, len(registry.Handles))
	for i := range list {
		list[i] = registry.None
	}
	for i := range registry.Commands {
		c := &registry.Commands[i]
		if d := int(c.Destroys); d >= 0 && c.Alias == registry.None && len(c.Params) == d+2 && c.Params[d].Kind == registry.Handle {
			list[c.Params[d].Type] = registry.Index(i)
		}
	}
	return list
}
