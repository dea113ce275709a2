// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"runtime"
	"sync/atomic"

	"github.com/memspan/memspan/vulkan/registry"
)

// maxInfos is how many create-infos a device keeps answers for.
const maxInfos = 4096

// A createInfo is what buffers or images that were created alike have in
// common: the answers to queries about them.
type createInfo struct {
	cache *queryCache
}

// A resource is a buffer or an image.
type resource struct {
	info   *createInfo
	memory atomic.Uint64 // id of what it is bound to, 0 before
	offset atomic.Uint64 // in it, bytes
}

func (r *resource) base() *resource { return r }

// A bufferState is what is kept of a VkBuffer.
type bufferState struct {
	resource
	size    uint64
	usage   uint32
	address atomic.Uint64 // 0: not known yet
}

// An imageState is what is kept of a VkImage.
type imageState struct {
	resource
}

// infoOf returns what is known of objects that were created like this one: by
// a command (device, pInfo, pAllocator, pObject).
func (d *Driver) infoOf(device *deviceState, cmd registry.Index, a *registry.Args) *createInfo {
	request := requests.Get().(*[]byte)
	defer requests.Put(request)
	// Without the new object's id the request is the same for all of them.
	anonymous := *a
	anonymous[3] = 0
	var err error
	*request, err = d.codec.AppendParams(append((*request)[:0], byte(cmd), byte(cmd>>8)), &registry.Commands[cmd], &anonymous, &d.env)
	if err != nil {
		return &createInfo{cache: newQueryCache()} // it will not be sent either
	}
	device.mu.Lock()
	defer device.mu.Unlock()
	info := device.infos[string(*request)]
	if info == nil {
		info = &createInfo{cache: newQueryCache()}
		if len(device.infos) >= maxInfos {
			clear(device.infos)
		}
		device.infos[string(*request)] = info
	}
	return info
}

func (d *Driver) newBuffer(device *object, cmd registry.Index, a *registry.Args) any {
	// {sType, pNext, flags, size, usage, sharingMode, …}
	b := &bufferState{size: load64(a[1] + 24), usage: load32(a[1] + 32)}
	b.info = d.infoOf(device.device, cmd, a)
	return b
}

func (d *Driver) newImage(device *object, cmd registry.Index, a *registry.Args) any {
	i := new(imageState)
	i.info = d.infoOf(device.device, cmd, a)
	return i
}

// resourceOf returns the state of a buffer or image, nil if the handle names
// neither.
func (d *Driver) resourceOf(handle uint64) *resource {
	if o := d.objects.get(handle); o != nil {
		if s, ok := o.state.(interface{ base() *resource }); ok {
			return s.base()
		}
	}
	return nil
}

// bindMemory carries out vkBindBufferMemory and vkBindImageMemory: (device,
// resource, memory, offset).
func (d *Driver) bindMemory(cmd registry.Index, a *registry.Args) uint64 {
	d.bound(a[1], a[2], a[3])
	return d.sendResult(cmd, a)
}

// bindMemory2 carries out vkBindBufferMemory2 and vkBindImageMemory2: (device,
// count, pInfos), an info being {sType, pNext, resource, memory, offset}.
func (d *Driver) bindMemory2(cmd registry.Index, a *registry.Args) uint64 {
	for i := range uint64(uint32(a[1])) {
		info := a[2] + 40*i
		d.bound(load64(info+16), load64(info+24), load64(info+32))
	}
	return d.sendResult(cmd, a)
}

func (d *Driver) bound(handle, memory, offset uint64) {
	if r := d.resourceOf(handle); r != nil {
		r.offset.Store(offset)
		r.memory.Store(memory)
	}
}

// getBufferDeviceAddress answers vkGetBufferDeviceAddress(device, pInfo), an
// info being {sType, pNext, buffer}. The worker tells the address when the
// buffer is bound; to ask takes no longer than to wait for that.
func (d *Driver) getBufferDeviceAddress(cmd registry.Index, a *registry.Args) uint64 {
	o := d.objects.of(registry.VkBuffer, load64(a[1]+16))
	if o == nil {
		return 0
	}
	b := o.state.(*bufferState)
	address := b.address.Load()
	if address == 0 {
		address = d.roundTrip(cmd, a)
		b.address.Store(address)
	}
	return address
}

// askOfResource answers a query (device, resource, …) whose answer depends on
// nothing but the resource's create-info.
func (d *Driver) askOfResource(cmd registry.Index, a *registry.Args) uint64 {
	_, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	r := d.resourceOf(a[1])
	if r == nil {
		return d.roundTrip(cmd, a)
	}
	key := *a
	key[1] = 0
	return d.cached(cmd, &key, a, l, r.info.cache)
}

// askOfResourceInfo is askOfResource for queries (device, pInfo, …), an info
// being {sType, pNext, resource}. One with a chain may name a plane of the
// image, which is then part of the request.
func (d *Driver) askOfResourceInfo(cmd registry.Index, a *registry.Args) uint64 {
	_, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	r := d.resourceOf(load64(a[1] + 16))
	if r == nil {
		return d.roundTrip(cmd, a)
	}
	anonymous := []uint64{load64(a[1]), load64(a[1] + 8), 0}
	key := *a
	key[1] = addressOf(anonymous)
	result := d.cached(cmd, &key, a, l, r.info.cache)
	runtime.KeepAlive(anonymous)
	return result
}
