// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// An instanceState is what is kept of a VkInstance.
type instanceState struct {
	cache *queryCache

	mu       sync.Mutex
	physical []*object // stable: nil until they were asked for
	ahead    *listing  // asked with the instance's creation; nil once used
}

// A physicalState is what is kept of a VkPhysicalDevice.
type physicalState struct {
	cache   *queryCache
	version atomic.Uint32 // of Vulkan that it has; 0: nobody asked yet
}

// A deviceState is what is kept of a VkDevice.
type deviceState struct {
	object     *object
	cache      *queryCache
	extensions map[string]bool // enabled
	memory     deviceMemory

	mu     sync.Mutex
	queues map[queueKey]*object
	infos  map[string]*createInfo // by canonical create-info
}

type queueKey struct{ flags, family, index uint32 }

// createInstance carries out vkCreateInstance(pInfo, pAllocator, pInstance).
func (d *Driver) createInstance(cmd registry.Index, a *registry.Args) uint64 {
	l, err := d.connect()
	if err != nil {
		return vkResult(incompatibleDriver) // the loader goes on without us
	}
	o, err := d.objects.create(registry.VkInstance, nil, &instanceState{cache: newQueryCache()})
	if err != nil {
		return d.failure(cmd, err)
	}
	o.link = l
	store64(a[2], o.handle)
	p, err := l.begin(cmd, func(serial uint64) error { return l.encode(cmd, a, stream.FlagReply, serial) })
	var reply []byte
	if err == nil {
		d.askOfInstance(o)
		reply, err = l.finish(cmd, p)
	}
	var result uint64
	if err == nil {
		result, err = l.store(reply, cmd, a)
	}
	if err != nil {
		result = d.failure(cmd, err)
	}
	if int32(uint32(result)) < 0 {
		store64(a[2], 0)
		d.objects.drop(o)
		return result
	}
	d.mu.Lock()
	d.instances++
	d.mu.Unlock()
	return result
}

// destroyInstance carries out vkDestroyInstance(instance, pAllocator).
func (d *Driver) destroyInstance(cmd registry.Index, a *registry.Args) uint64 {
	o := d.objects.of(registry.VkInstance, a[0])
	if o == nil {
		return success
	}
	d.sendResult(cmd, a)
	_ = o.link.flush() // the last chance before the process ends
	d.objects.drop(o)
	d.mu.Lock()
	d.instances--
	last := d.instances == 0
	d.mu.Unlock()
	if last {
		if err := d.WriteTrace(); err != nil {
			d.cfg.Logger.Warn("trace not written", "error", err)
		}
	}
	return success
}

const (
	firstPhysical = 8   // physical devices that are asked for at first
	maxPhysical   = 128 // and at most
)

// enumeratePhysicalDevices answers vkEnumeratePhysicalDevices(instance, pCount,
// pPhysicalDevices): always with the same objects.
func (d *Driver) enumeratePhysicalDevices(cmd registry.Index, a *registry.Args) uint64 {
	o := d.objects.of(registry.VkInstance, a[0])
	if o == nil {
		return vkResult(deviceLost)
	}
	physical, result := d.physicalDevices(cmd, o)
	if result != success {
		return result
	}
	if a[2] == 0 {
		store32(a[1], uint32(len(physical)))
		return success
	}
	n := min(load32(a[1]), uint32(len(physical)))
	for i := range n {
		store64(a[2]+8*uint64(i), physical[i].handle)
	}
	store32(a[1], n)
	if int(n) < len(physical) {
		return incomplete
	}
	return success
}

// physicalDevices returns an instance's physical devices.
func (d *Driver) physicalDevices(cmd registry.Index, instance *object) ([]*object, uint64) {
	s := instance.state.(*instanceState)
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := firstPhysical; s.physical == nil; n *= 2 {
		asked := s.ahead
		if s.ahead = nil; asked == nil {
			var err error
			if asked, err = d.list(instance, n); err != nil {
				for _, o := range asked.all {
					d.objects.drop(o)
				}
				return nil, d.failure(cmd, err)
			}
		}
		all, result := d.got(instance, asked)
		if int32(uint32(result)) < 0 {
			return nil, result
		}
		if result != incomplete || n >= maxPhysical {
			s.physical = slices.Clip(all)
		}
	}
	return s.physical, success
}

// createDevice carries out vkCreateDevice(physicalDevice, pInfo, pAllocator,
// pDevice).
func (d *Driver) createDevice(cmd registry.Index, a *registry.Args) uint64 {
	physical, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	s := &deviceState{
		cache: newQueryCache(), extensions: make(map[string]bool),
		queues: make(map[queueKey]*object), infos: make(map[string]*createInfo),
	}
	// {…, enabledExtensionCount, ppEnabledExtensionNames, pEnabledFeatures}
	for i := range uint64(load32(a[1] + 48)) {
		s.extensions[stringAt(load64(load64(a[1]+56)+8*i))] = true
	}
	o, err := d.objects.create(registry.VkDevice, physical, s)
	if err != nil {
		return d.failure(cmd, err)
	}
	o.device, s.object = s, o
	store64(a[3], o.handle)
	result, err := l.call(cmd, a)
	if err != nil {
		result = d.failure(cmd, err)
	}
	if int32(uint32(result)) < 0 {
		store64(a[3], 0)
		d.objects.drop(o)
	}
	return result
}

// stringAt returns a C string.
func stringAt(p uint64) string {
	n := 0
	for bytesAt(p+uint64(n), 1)[0] != 0 {
		n++
	}
	return string(bytesAt(p, n))
}

// destroyDevice carries out vkDestroyDevice(device, pAllocator).
func (d *Driver) destroyDevice(cmd registry.Index, a *registry.Args) uint64 {
	o := d.objects.of(registry.VkDevice, a[0])
	if o == nil {
		return success
	}
	result := d.sendResult(cmd, a)
	_ = o.link.flush() // what it held should be free soon
	d.objects.drop(o)
	return result
}

// getDeviceProcAddr answers vkGetDeviceProcAddr(device, pName) for commands that
// not every device has: 1 if this one has it, else 0.
func (d *Driver) getDeviceProcAddr(_ registry.Index, a *registry.Args) uint64 {
	o := d.objects.of(registry.VkDevice, a[0])
	i := registry.CommandByName(stringAt(a[1]))
	if o == nil || i == registry.None {
		return 0
	}
	c := &registry.Commands[i]
	if c.Core > 0 {
		if c.Core == 10 || o.parent == nil || d.version(o.parent) >= version(c.Core) {
			return 1
		}
		return 0
	}
	for _, name := range c.Extensions {
		// An instance's are enabled with it.
		if x, ok := registry.ExtensionByName(name); o.device.extensions[name] || ok && x.Instance {
			return 1
		}
	}
	return 0
}

// version is 1.N of Vulkan, as the registry's tables say it (10 + N), in
// Vulkan's form.
func version(core uint8) uint32 { return 1<<22 | uint32(core-10)<<12 }

// version returns which Vulkan a physical device has.
func (d *Driver) version(physical *object) uint32 {
	s, ok := physical.state.(*physicalState)
	if !ok {
		return 0
	}
	if s.version.Load() == 0 {
		properties := make([]uint64, 824/8) // VkPhysicalDeviceProperties, apiVersion first
		cmd := registry.VkGetPhysicalDeviceProperties
		d.getProperties(cmd, &registry.Args{physical.handle, addressOf(properties)})
		runtime.KeepAlive(properties)
	}
	return s.version.Load()
}

// getProperties answers vkGetPhysicalDeviceProperties and
// vkGetPhysicalDeviceProperties2, and remembers the version.
func (d *Driver) getProperties(cmd registry.Index, a *registry.Args) uint64 {
	result := d.askOnce(cmd, a)
	if o := d.objects.of(registry.VkPhysicalDevice, a[0]); o != nil {
		at := a[1]
		if canonical(cmd) == registry.VkGetPhysicalDeviceProperties2 {
			at += 16
		}
		o.state.(*physicalState).version.Store(load32(at))
	}
	return result
}

// getDeviceQueue carries out vkGetDeviceQueue(device, family, index, pQueue).
func (d *Driver) getDeviceQueue(cmd registry.Index, a *registry.Args) uint64 {
	return d.queue(cmd, a, 3, queueKey{0, uint32(a[1]), uint32(a[2])})
}

// getDeviceQueue2 carries out vkGetDeviceQueue2(device, pInfo, pQueue); the
// info is {sType, pNext, flags, queueFamilyIndex, queueIndex}.
func (d *Driver) getDeviceQueue2(cmd registry.Index, a *registry.Args) uint64 {
	return d.queue(cmd, a, 2, queueKey{load32(a[1] + 16), load32(a[1] + 20), load32(a[1] + 24)})
}

// queue stores a queue's handle, always the same, where parameter out wants it.
func (d *Driver) queue(cmd registry.Index, a *registry.Args, out int, key queueKey) uint64 {
	device := d.objects.of(registry.VkDevice, a[0])
	if device == nil {
		return success
	}
	s := device.device
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.queues[key]
	if o == nil {
		var err error
		if o, err = d.objects.create(registry.VkQueue, device, new(queueState)); err != nil {
			store64(a[out], 0)
			return d.failure(cmd, err)
		}
		s.queues[key] = o
		store64(a[out], o.handle)
		return d.sendResult(cmd, a)
	}
	store64(a[out], o.handle)
	return success
}
