// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"maps"
	"sync"

	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
)

// made says what is kept of a new object, by the command that creates it: from
// the arguments, before it is sent.
var made = map[registry.Index]func(d *Driver, device *object, cmd registry.Index, a *registry.Args) any{
	registry.VkCreateFence: func(_ *Driver, _ *object, _ registry.Index, a *registry.Args) any {
		f := new(fenceState)
		f.made.Store(load32(a[1]+16)&1 != 0) // VK_FENCE_CREATE_SIGNALED_BIT
		return f
	},
	registry.VkCreateSemaphore: func(_ *Driver, _ *object, _ registry.Index, a *registry.Args) any {
		const typeCreateInfo = 1000207002 // {sType, pNext, semaphoreType, initialValue}
		s := new(semaphoreState)
		if p := chained(a[1], typeCreateInfo); p != 0 && load32(p+16) == 1 {
			s.value.Store(load64(p + 24))
		}
		return s
	},
	registry.VkCreateEvent: func(*Driver, *object, registry.Index, *registry.Args) any { return new(eventState) },
	registry.VkCreateDescriptorUpdateTemplate: func(_ *Driver, _ *object, _ registry.Index, a *registry.Args) any {
		return codec.TemplateAt(a[1])
	},
	registry.VkCreateDescriptorSetLayout: func(_ *Driver, _ *object, _ registry.Index, a *registry.Args) any {
		return newSetLayout(a[1])
	},
	registry.VkCreateDescriptorPool: func(_ *Driver, _ *object, _ registry.Index, a *registry.Args) any {
		return newDescriptorPool(a[1])
	},
	registry.VkCreateRenderPass: func(_ *Driver, _ *object, _ registry.Index, a *registry.Args) any {
		return newRenderPass(a[1])
	},
	registry.VkCreateRenderPass2: func(_ *Driver, _ *object, _ registry.Index, a *registry.Args) any {
		return newRenderPass2(a[1])
	},
	registry.VkCreateBuffer: (*Driver).newBuffer,
	registry.VkCreateImage:  (*Driver).newImage,
}

// canonical returns the command that cmd is another name of, or cmd.
func canonical(cmd registry.Index) registry.Index {
	if alias := registry.Commands[cmd].Alias; alias != registry.None {
		return alias
	}
	return cmd
}

// template implements codec.Env.
func (d *Driver) template(id uint64) *codec.Template {
	if o := d.objects.get(id); o != nil {
		t, _ := o.state.(*codec.Template)
		return t
	}
	return nil
}

// create carries out a command that creates one object, without waiting for
// it: nothing that applications act on can go wrong, unless it is large.
func (d *Driver) create(cmd registry.Index, a *registry.Args) uint64 {
	parent, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	if l.lost() != nil {
		return vkResult(deviceLost)
	}
	c := &registry.Commands[cmd]
	var state any
	if f := made[canonical(cmd)]; f != nil {
		state = f(d, parent, cmd, a)
	}
	o, err := d.objects.create(c.Params[c.Creates].Type, parent, state)
	if err != nil {
		return d.failure(cmd, err)
	}
	store64(a[c.Creates], o.handle)
	result := uint64(success)
	if f := large[canonical(cmd)]; f != nil && f(a[1]) {
		result, err = l.call(cmd, a)
	} else {
		err = l.sendCall(cmd, a)
	}
	if err != nil {
		result = d.failure(cmd, err)
	}
	if int32(uint32(result)) < 0 {
		store64(a[c.Creates], 0)
		d.objects.drop(o)
	}
	return result
}

// allocate carries out a command that takes count objects from a pool, without
// waiting for it.
func (d *Driver) allocate(cmd registry.Index, a *registry.Args, pool *object, count uint32, state func(i int) any) uint64 {
	if pool == nil || pool.link.lost() != nil {
		return vkResult(deviceLost)
	}
	objects, err := d.createAll(cmd, a, pool, count, state)
	if err == nil {
		if err = pool.link.sendCall(cmd, a); err == nil {
			return success
		}
	}
	d.undo(cmd, a, objects)
	return d.failure(cmd, err)
}

// allocateAndWait is allocate for what may go wrong.
func (d *Driver) allocateAndWait(cmd registry.Index, a *registry.Args, pool *object, count uint32, state func(i int) any) uint64 {
	objects, err := d.createAll(cmd, a, pool, count, state)
	var result uint64
	if err == nil {
		result, err = pool.link.call(cmd, a)
	}
	if err != nil {
		result = d.failure(cmd, err)
	}
	if int32(uint32(result)) < 0 {
		d.undo(cmd, a, objects)
	}
	return result
}

// createAll makes count objects and stores their handles where the command
// wants them.
func (d *Driver) createAll(cmd registry.Index, a *registry.Args, parent *object, count uint32, state func(i int) any) ([]*object, error) {
	c := &registry.Commands[cmd]
	all := make([]*object, count)
	for i := range all {
		var s any
		if state != nil {
			s = state(i)
		}
		o, err := d.objects.create(c.Params[c.Creates].Type, parent, s)
		if err != nil {
			return all, err
		}
		all[i] = o
		store64(a[c.Creates]+8*uint64(i), o.handle)
	}
	return all, nil
}

// undo drops what createAll made.
func (d *Driver) undo(cmd registry.Index, a *registry.Args, objects []*object) {
	for i, o := range objects {
		store64(a[registry.Commands[cmd].Creates]+8*uint64(i), 0)
		d.objects.drop(o)
	}
}

// createAndWait carries out a command (parent, …) that creates objects and
// waits for it. Pipelines, whose number is parameter 2, may be created in part.
func (d *Driver) createAndWait(cmd registry.Index, a *registry.Args) uint64 {
	parent, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	c := &registry.Commands[cmd]
	count := uint32(1)
	if c.Params[c.Creates].Type == registry.VkPipeline {
		count = uint32(a[2])
	}
	objects, err := d.createAll(cmd, a, parent, count, nil)
	var result uint64
	if err == nil {
		result, err = l.call(cmd, a)
	}
	if err != nil {
		d.undo(cmd, a, objects)
		return d.failure(cmd, err)
	}
	for i, o := range objects {
		if load64(a[c.Creates]+8*uint64(i)) == 0 {
			d.objects.drop(o)
		}
	}
	return result
}

// destroy carries out a command that ends one object, and all made of it.
func (d *Driver) destroy(cmd registry.Index, a *registry.Args) uint64 {
	c := &registry.Commands[cmd]
	p := c.Destroys
	o := d.objects.of(c.Params[p].Type, a[p])
	if o == nil {
		return success // VK_NULL_HANDLE
	}
	result := d.sendResult(cmd, a)
	d.objects.drop(o)
	return result
}

// A privateSlot is a VkPrivateDataSlot. It is of this side only.
type privateSlot struct {
	mu   sync.Mutex
	data map[privateKey]uint64
	full int // how many there are when those of destroyed objects are looked for
}

const fewData = 1024

type privateKey struct {
	kind   uint32 // VkObjectType
	object uint64 // id
}

// keyOf returns the key of an object: its id, as the memory of a dispatchable
// handle is used again.
func keyOf(kind, handle uint64) privateKey {
	switch uint32(kind) {
	case 1, 2, 3, 4, 6: // instance, physical device, device, queue, command buffer
		handle = idAt(handle)
	}
	return privateKey{uint32(kind), handle}
}

// createPrivateDataSlot carries out vkCreatePrivateDataSlot(device, pInfo,
// pAllocator, pSlot).
func (d *Driver) createPrivateDataSlot(cmd registry.Index, a *registry.Args) uint64 {
	device := d.objects.dispatchable(a[0])
	o, err := d.objects.create(registry.VkPrivateDataSlot, device, &privateSlot{data: make(map[privateKey]uint64)})
	if err != nil {
		return d.failure(cmd, err)
	}
	store64(a[3], o.handle)
	return success
}

// destroyPrivateDataSlot carries out vkDestroyPrivateDataSlot(device, slot,
// pAllocator).
func (d *Driver) destroyPrivateDataSlot(_ registry.Index, a *registry.Args) uint64 {
	d.objects.drop(d.objects.of(registry.VkPrivateDataSlot, a[1]))
	return success
}

// setPrivateData carries out vkSetPrivateData(device, objectType,
// objectHandle, slot, data).
func (d *Driver) setPrivateData(_ registry.Index, a *registry.Args) uint64 {
	o := d.objects.of(registry.VkPrivateDataSlot, a[3])
	if o == nil {
		return vkResult(outOfHostMemory)
	}
	s := o.state.(*privateSlot)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.data) >= max(s.full, fewData) {
		maps.DeleteFunc(s.data, func(k privateKey, _ uint64) bool { return d.objects.get(k.object) == nil })
		s.full = 2 * len(s.data)
	}
	s.data[keyOf(a[1], a[2])] = a[4]
	return success
}

// getPrivateData answers vkGetPrivateData(device, objectType, objectHandle,
// slot, pData).
func (d *Driver) getPrivateData(_ registry.Index, a *registry.Args) uint64 {
	var data uint64
	if o := d.objects.of(registry.VkPrivateDataSlot, a[3]); o != nil {
		s := o.state.(*privateSlot)
		s.mu.Lock()
		data = s.data[keyOf(a[1], a[2])]
		s.mu.Unlock()
	}
	store64(a[4], data)
	return success
}

// A renderPass says of each subpass what it has.
type renderPass []struct{ color, depth bool }

const unusedAttachment = ^uint32(0)

// newRenderPass reads a VkRenderPassCreateInfo: {sType, pNext, flags,
// attachmentCount, pAttachments, subpassCount, pSubpasses}, a subpass {flags,
// bindPoint, inputCount, pInput, colorCount, pColor, pResolve, pDepthStencil,
// preserveCount, pPreserve}.
func newRenderPass(info uint64) renderPass {
	pass := make(renderPass, load32(info+32))
	for i := range pass {
		s := load64(info+40) + 72*uint64(i)
		pass[i].color = load32(s+24) > 0
		depth := load64(s + 48)
		pass[i].depth = depth != 0 && load32(depth) != unusedAttachment
	}
	return pass
}

// newRenderPass2 reads a VkRenderPassCreateInfo2, which begins alike; a subpass
// is {sType, pNext, flags, bindPoint, viewMask, inputCount, pInput, colorCount,
// pColor, pResolve, pDepthStencil, preserveCount, pPreserve}.
func newRenderPass2(info uint64) renderPass {
	pass := make(renderPass, load32(info+32))
	for i := range pass {
		s := load64(info+40) + 88*uint64(i)
		pass[i].color = load32(s+40) > 0
		depth := load64(s + 64)
		pass[i].depth = depth != 0 && load32(depth+16) != unusedAttachment
	}
	return pass
}

// attachments implements codec.Env.
func (d *Driver) attachments(id uint64, subpass uint32) (color, depthStencil bool) {
	if o := d.objects.get(id); o != nil {
		if pass, ok := o.state.(renderPass); ok && int(subpass) < len(pass) {
			return pass[subpass].color, pass[subpass].depth
		}
	}
	return true, true
}
