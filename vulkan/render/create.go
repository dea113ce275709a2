// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"fmt"
	"slices"
	"strings"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// A handler executes a command that the tables do not say all of.
type handler func(r *renderer, c *call) error

// newHandlers returns the handlers by command.
func newHandlers() []handler {
	list := make([]handler, len(registry.Commands))
	for name, h := range map[string]handler{
		"vkCreateInstance":                          (*renderer).createInstance,
		"vkDestroyInstance":                         (*renderer).destroyInstance,
		"vkEnumerateInstanceVersion":                (*renderer).instanceVersion,
		"vkEnumerateInstanceExtensionProperties":    (*renderer).extensions,
		"vkEnumerateDeviceExtensionProperties":      (*renderer).extensions,
		"vkGetPhysicalDeviceProperties":             (*renderer).properties,
		"vkGetPhysicalDeviceProperties2":            (*renderer).properties,
		"vkGetPhysicalDeviceFeatures2":              (*renderer).features,
		"vkGetPhysicalDeviceQueueFamilyProperties":  (*renderer).queueFamilies,
		"vkGetPhysicalDeviceQueueFamilyProperties2": (*renderer).queueFamilies,
		"vkAcquireProfilingLockKHR":                 (*renderer).runAside,
		"vkCreateDevice":                            (*renderer).createDevice,
		"vkDestroyDevice":                           (*renderer).destroyDevice,
		"vkResetDescriptorPool":                     (*renderer).resetDescriptorPool,
		"vkQueueSubmit":                             (*renderer).submit,
		"vkQueueSubmit2":                            (*renderer).submit,
		"vkQueueBindSparse":                         (*renderer).submit,
		"vkQueueWaitIdle":                           (*renderer).waitIdle,
		"vkDeviceWaitIdle":                          (*renderer).waitIdle,
		"vkResetFences":                             (*renderer).settleFirst,
		"vkDestroyFence":                            (*renderer).settleFirst,
		"vkDestroySemaphore":                        (*renderer).settleFirst,
		"vkGetQueryPoolResults":                     (*renderer).queryResults,
		"vkCreateGraphicsPipelines":                 (*renderer).runAside,
		"vkCreateComputePipelines":                  (*renderer).runAside,
		"vkWaitForFences":                           (*renderer).runAside,
		"vkWaitSemaphores":                          (*renderer).runAside,
		"vkBindBufferMemory":                        (*renderer).bindBuffer,
		"vkBindBufferMemory2":                       (*renderer).bindBuffer,
	} {
		for i := range registry.Commands {
			c := &registry.Commands[i]
			if c.Name == name || c.Alias != registry.None && registry.Commands[c.Alias].Name == name {
				list[i] = h
			}
		}
	}
	addMemoryHandlers(list)
	return list
}

// newMade returns, by handle type, what is to be done with new objects.
func newMade() []func(*renderer, *call, *object) {
	list := make([]func(*renderer, *call, *object), len(registry.Handles))
	list[registry.VkPhysicalDevice] = func(r *renderer, _ *call, o *object) {
		if _, ok := r.physical[o.real]; !ok {
			r.physical[o.real] = o.id
		}
	}
	list[registry.VkQueue] = func(r *renderer, _ *call, o *object) { o.state = o.device.queue(r, uintptr(o.real)) }
	list[registry.VkFence] = func(_ *renderer, _ *call, o *object) { o.state = new(fence) }
	list[registry.VkSemaphore] = func(_ *renderer, c *call, o *object) {
		if isTimeline(c.args[1]) {
			o.state = new(timeline)
		} else {
			o.state = new(binarySemaphore)
		}
	}
	list[registry.VkCommandBuffer] = func(_ *renderer, _ *call, o *object) { o.state = new(commandBuffer) }
	list[registry.VkBuffer] = func(_ *renderer, c *call, o *object) { o.state = newBuffer(c.args[1]) }
	list[registry.VkImage] = func(_ *renderer, c *call, o *object) { o.state = newImage(c.args[1]) }
	list[registry.VkEvent] = func(_ *renderer, c *call, o *object) { o.state = newEvent(c.args[1]) }
	list[registry.VkDeviceMemory] = (*renderer).newMemory
	list[registry.VkDescriptorUpdateTemplate] = func(_ *renderer, c *call, o *object) { o.state = codec.TemplateAt(c.args[1]) }
	return list
}

// templateOf implements codec.Env.
func (r *renderer) templateOf(id uint64) *codec.Template {
	o := r.table.get(registry.VkDescriptorUpdateTemplate, id)
	if o == nil {
		return nil
	}
	t, _ := o.state.(*codec.Template)
	return t
}

// newestAPI is the version of Vulkan that the tables know.
var newestAPI = vk.MakeVersion(1, 3) | registry.RegistryVersion&0xfff

// clamp returns the version to tell, of one that the driver has.
func clamp(v vk.Version) vk.Version { return min(v, newestAPI) }

// createInstance makes an instance without the application's layers, which the
// loader on its side ran, and of a version that has what the renderer uses.
func (r *renderer) createInstance(c *call) error {
	names, keep := adjustInstance(c.args[0])
	defer keep()
	if err := r.allowed(names, true); err != nil {
		return r.refuse(c, err)
	}
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	ids, reals := c.arena.Created()
	if int32(result) >= 0 && len(ids) == 1 && len(reals) == 1 {
		r.bind(c, ids[0], reals[0]).state = &instance{procs: make([]uintptr, len(registry.Commands))}
	}
	return r.answer(c, result)
}

// allowed checks the extensions that are to be enabled.
func (r *renderer) allowed(names []string, instance bool) error {
	for _, name := range names {
		if x, ok := registry.ExtensionByName(name); !ok || x.Instance != instance {
			return fmt.Errorf("%w: %s", errExtension, name)
		}
	}
	return nil
}

// destroyInstance refuses to destroy an instance whose devices exist: their
// queues are in use.
func (r *renderer) destroyInstance(c *call) error {
	if c.first != nil && slices.ContainsFunc(r.table.slots, func(o *object) bool {
		return o != nil && o.kind == registry.VkDevice && o.parent != nil && o.parent.parent == c.first
	}) {
		return r.refuse(c, fmt.Errorf("%w: it has devices", errInUse))
	}
	for real, id := range r.physical {
		if o := r.table.find(id); o == nil || o.parent == c.first {
			delete(r.physical, real)
		}
	}
	return r.execute(c)
}

// createDevice makes a device and finds its functions.
func (r *renderer) createDevice(c *call) error {
	if err := r.allowed(adjustDevice(c.args[1]), false); err != nil {
		return r.refuse(c, err)
	}
	if name := enablesHidden(c.args[1]); name != "" {
		return r.refuse(c, fmt.Errorf("%w: %s", errHidden, name))
	}
	imports := r.local && !r.cfg.HideImport && c.first != nil && r.enableImport(c)
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	ids, reals := c.arena.Created()
	if int32(result) >= 0 && len(ids) == 1 && len(reals) == 1 {
		getProc := r.proc(int(registry.VkGetDeviceProcAddr), c.first.parent)
		real := uintptr(reals[0])
		d, err := newDevice(real, func(name string) uintptr { return vk.DeviceProc(getProc, real, name) })
		if err != nil {
			return r.refuse(c, err)
		}
		d.procs = make([]uintptr, len(registry.Commands))
		r.describeMemory(d, c.first)
		if imports {
			d.imports = r.describeImport(d, c.first)
		}
		o := r.bind(c, ids[0], reals[0])
		o.device, o.state = d, d
	}
	return r.answer(c, result)
}

// destroyDevice ends what waits for the device, then destroys it.
func (r *renderer) destroyDevice(c *call) error {
	if c.first == nil {
		return r.answer(c, 0)
	}
	if err := r.stop(c.first.device); err != nil {
		return err
	}
	return r.execute(c)
}

// resetDescriptorPool forgets the pool's sets.
func (r *renderer) resetDescriptorPool(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	for _, o := range r.named {
		if o.kind == registry.VkDescriptorPool {
			r.table.dropChildren(o)
		}
	}
	return r.answer(c, result)
}

// bindBuffer executes the binding of buffers to memory, and tells the addresses
// of those that have one.
func (r *renderer) bindBuffer(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	if int32(result) >= 0 {
		for _, b := range bindings(c) {
			if o, m := r.find(registry.VkBuffer, b.resource), r.found(b.memory); o != nil && m != nil {
				state := o.state.(*buffer)
				state.bind(m, b.offset, state.size)
			}
		}
		for _, o := range r.named {
			if b, ok := o.state.(*buffer); ok && b.addressable {
				a := stream.Address{Buffer: o.id, Address: r.caller.bufferAddress(r.addressProc(c.first), o)}
				if err := r.conn.End(a.Append(r.conn.Begin(stream.OpAddress, 0, 0))); err != nil {
					return err
				}
			}
		}
	}
	return r.answer(c, result)
}

// addressProc finds the function under any of its names.
func (r *renderer) addressProc(device *object) uintptr {
	for _, name := range []string{"vkGetBufferDeviceAddress", "vkGetBufferDeviceAddressKHR", "vkGetBufferDeviceAddressEXT"} {
		if p := device.device.proc(name); p != 0 {
			return p
		}
	}
	return 0
}

// instanceVersion tells no newer version than the tables'.
func (r *renderer) instanceVersion(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	clampVersion(c.args[0], 0)
	return r.answer(c, result)
}

// properties does so for a physical device.
func (r *renderer) properties(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	if strings.HasSuffix(strings.TrimSuffix(c.Name, "KHR"), "2") {
		clampVersion(c.args[1], 16) // VkPhysicalDeviceProperties2.properties.apiVersion
	} else {
		clampVersion(c.args[1], 0)
	}
	return r.answer(c, result)
}

// features hides those that cannot be carried.
func (r *renderer) features(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	hideFeatures(c.args[1])
	return r.answer(c, result)
}
