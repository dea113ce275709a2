// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"strings"

	"github.com/memspan/memspan/vulkan/registry"
)

// special are the commands that need more than their class does. A command
// that is another name of one of them is carried out in the same way.
var special = map[registry.Index]handler{
	registry.VkCreateInstance:           (*Driver).createInstance,
	registry.VkDestroyInstance:          (*Driver).destroyInstance,
	registry.VkEnumeratePhysicalDevices: (*Driver).enumeratePhysicalDevices,
	registry.VkCreateDevice:             (*Driver).createDevice,
	registry.VkDestroyDevice:            (*Driver).destroyDevice,
	registry.VkGetDeviceQueue:           (*Driver).getDeviceQueue,
	registry.VkGetDeviceQueue2:          (*Driver).getDeviceQueue2,
	registry.VkGetDeviceProcAddr:        (*Driver).getDeviceProcAddr,
	registry.VkGetInstanceProcAddr:      none,

	registry.VkGetPhysicalDeviceQueueFamilyProperties:  (*Driver).enumerateQueueFamilies,
	registry.VkGetPhysicalDeviceProperties:             (*Driver).getProperties,
	registry.VkGetPhysicalDeviceProperties2:            (*Driver).getProperties,
	registry.VkGetPhysicalDeviceImageFormatProperties2: (*Driver).getImageFormat,
	registry.VkEnumerateInstanceVersion:                (*Driver).enumerateInstanceVersion,
	registry.VkEnumerateInstanceExtensionProperties:    (*Driver).enumerateInstanceExtensions,
	registry.VkEnumerateInstanceLayerProperties:        noLayers,
	registry.VkEnumerateDeviceExtensionProperties:      (*Driver).enumerateDeviceExtensions,
	registry.VkEnumerateDeviceLayerProperties:          noDeviceLayers,

	// External handles are of one machine.
	registry.VkGetPhysicalDeviceExternalBufferProperties:    noExternal,
	registry.VkGetPhysicalDeviceExternalFenceProperties:     noExternal,
	registry.VkGetPhysicalDeviceExternalSemaphoreProperties: noExternal,
	// So are the host's clocks.
	registry.VkGetPhysicalDeviceCalibrateableTimeDomainsEXT: deviceTimeDomain,

	registry.VkAllocateMemory:               memory((*Driver).allocateMemory),
	registry.VkFreeMemory:                   memory((*Driver).freeMemory),
	registry.VkMapMemory:                    memory((*Driver).mapMemory),
	registry.VkUnmapMemory:                  memory((*Driver).unmapMemory),
	registry.VkFlushMappedMemoryRanges:      memory((*Driver).flushRanges),
	registry.VkInvalidateMappedMemoryRanges: memory((*Driver).invalidateRanges),

	registry.VkBindBufferMemory:       (*Driver).bindMemory,
	registry.VkBindBufferMemory2:      (*Driver).bindMemory2,
	registry.VkBindImageMemory:        (*Driver).bindMemory,
	registry.VkBindImageMemory2:       (*Driver).bindMemory2,
	registry.VkGetBufferDeviceAddress: (*Driver).getBufferDeviceAddress,
	registry.VkGetQueryPoolResults:    (*Driver).getQueryPoolResults,

	registry.VkGetBufferMemoryRequirements:       (*Driver).askOfResource,
	registry.VkGetBufferMemoryRequirements2:      (*Driver).askOfResourceInfo,
	registry.VkGetImageMemoryRequirements:        (*Driver).askOfResource,
	registry.VkGetImageMemoryRequirements2:       (*Driver).askOfResourceInfo,
	registry.VkGetImageSparseMemoryRequirements:  (*Driver).askOfResource,
	registry.VkGetImageSparseMemoryRequirements2: (*Driver).askOfResourceInfo,
	registry.VkGetImageSubresourceLayout:         (*Driver).askOfResource,

	registry.VkAllocateCommandBuffers: (*Driver).allocateCommandBuffers,
	registry.VkFreeCommandBuffers:     (*Driver).freeCommandBuffers,
	registry.VkBeginCommandBuffer:     (*Driver).beginCommandBuffer,
	registry.VkEndCommandBuffer:       (*Driver).endCommandBuffer,
	registry.VkResetCommandBuffer:     (*Driver).resetCommandBuffer,
	registry.VkResetCommandPool:       (*Driver).resetCommandPool,

	registry.VkAllocateDescriptorSets: (*Driver).allocateDescriptorSets,
	registry.VkFreeDescriptorSets:     (*Driver).freeDescriptorSets,
	registry.VkResetDescriptorPool:    (*Driver).resetDescriptorPool,

	registry.VkQueueSubmit:              (*Driver).queueSubmit,
	registry.VkQueueSubmit2:             (*Driver).queueSubmit,
	registry.VkQueueBindSparse:          (*Driver).queueSubmit,
	registry.VkGetFenceStatus:           (*Driver).getFenceStatus,
	registry.VkResetFences:              (*Driver).resetFences,
	registry.VkWaitForFences:            (*Driver).waitForFences,
	registry.VkGetSemaphoreCounterValue: (*Driver).getSemaphoreCounterValue,
	registry.VkWaitSemaphores:           (*Driver).waitSemaphores,
	registry.VkSignalSemaphore:          (*Driver).signalSemaphore,
	registry.VkSetEvent:                 (*Driver).setEvent,
	registry.VkResetEvent:               (*Driver).resetEvent,
	registry.VkGetEventStatus:           (*Driver).getEventStatus,

	registry.VkCreatePrivateDataSlot:  (*Driver).createPrivateDataSlot,
	registry.VkDestroyPrivateDataSlot: (*Driver).destroyPrivateDataSlot,
	registry.VkSetPrivateData:         (*Driver).setPrivateData,
	registry.VkGetPrivateData:         (*Driver).getPrivateData,

	// Applications act on how these fail.
	registry.VkCreateComputePipelines:  (*Driver).createAndWait,
	registry.VkCreateGraphicsPipelines: (*Driver).createAndWait,
}

// immutable are the queries whose answer never changes: it is asked for once.
// Those about buffers and images are in resource.go, the rest above.
var immutable = []registry.Index{
	registry.VkEnumeratePhysicalDeviceGroups,
	registry.VkGetPhysicalDeviceFeatures,
	registry.VkGetPhysicalDeviceFeatures2,
	registry.VkGetPhysicalDeviceFormatProperties,
	registry.VkGetPhysicalDeviceFormatProperties2,
	registry.VkGetPhysicalDeviceImageFormatProperties,
	registry.VkGetPhysicalDeviceMemoryProperties,
	registry.VkGetPhysicalDeviceQueueFamilyProperties2,
	registry.VkGetPhysicalDeviceSparseImageFormatProperties,
	registry.VkGetPhysicalDeviceSparseImageFormatProperties2,
	registry.VkGetPhysicalDeviceToolProperties,
	registry.VkGetPhysicalDeviceFragmentShadingRatesKHR,
	registry.VkGetPhysicalDeviceMultisamplePropertiesEXT,
	registry.VkGetDescriptorSetLayoutSupport,
	registry.VkGetDeviceBufferMemoryRequirements,
	registry.VkGetDeviceImageMemoryRequirements,
	registry.VkGetDeviceImageSparseMemoryRequirements,
	registry.VkGetDeviceGroupPeerMemoryFeatures,
	registry.VkGetRenderAreaGranularity,
}

// handlers says how each command is carried out.
var handlers = func() []handler {
	list := make([]handler, len(registry.Commands))
	for i := range list {
		list[i] = classify(&registry.Commands[i])
	}
	for _, cmd := range immutable {
		list[cmd] = (*Driver).askOnce
	}
	for cmd, h := range special {
		list[cmd] = h
	}
	for i := range list {
		if alias := registry.Commands[i].Alias; alias != registry.None {
			list[i] = list[alias]
		}
	}
	return list
}()

// classify says how a command is carried out that nothing else is said of.
func classify(c *registry.Command) handler {
	switch {
	case strings.HasPrefix(c.Name, "vkCmd"):
		return (*Driver).record
	case c.Creates >= 0:
		return (*Driver).create
	case c.Destroys >= 0:
		return (*Driver).destroy
	case c.Returns == registry.Word, answers(c):
		return (*Driver).roundTrip
	}
	return (*Driver).sendResult
}

// answers reports whether a command stores something, or takes as long as
// something else does.
func answers(c *registry.Command) bool {
	for i := range c.Params {
		if c.Params[i].Out {
			return true
		}
	}
	return strings.HasSuffix(c.Name, "WaitIdle") || c.Name == "vkAcquireProfilingLockKHR"
}

// memory makes a handler of one that stands for a single command.
func memory(f func(*Driver, *registry.Args) uint64) handler {
	return func(d *Driver, _ registry.Index, a *registry.Args) uint64 { return f(d, a) }
}

func none(*Driver, registry.Index, *registry.Args) uint64 { return 0 }

// noLayers answers vkEnumerateInstanceLayerProperties(pCount, pProperties).
func noLayers(_ *Driver, _ registry.Index, a *registry.Args) uint64 {
	store32(a[0], 0)
	return success
}

// noDeviceLayers answers vkEnumerateDeviceLayerProperties(physicalDevice,
// pCount, pProperties).
func noDeviceLayers(_ *Driver, _ registry.Index, a *registry.Args) uint64 {
	store32(a[1], 0)
	return success
}

// noExternal answers queries (physicalDevice, pInfo, pProperties) with
// properties of three words, for which 0 is: nothing.
func noExternal(_ *Driver, _ registry.Index, a *registry.Args) uint64 {
	for i := range uint64(3) {
		store32(a[2]+16+4*i, 0)
	}
	return success
}

// getImageFormat answers vkGetPhysicalDeviceImageFormatProperties2(
// physicalDevice, pInfo, pProperties). There are no external images.
func (d *Driver) getImageFormat(cmd registry.Index, a *registry.Args) uint64 {
	const externalInfo = 1000071000 // VkPhysicalDeviceExternalImageFormatInfo {sType, pNext, handleType}
	if p := chained(a[1], externalInfo); p != 0 && load32(p+16) != 0 {
		clear(bytesAt(a[2]+16, 32))
		return vkResult(formatNotSupported)
	}
	return d.askOnce(cmd, a)
}

// deviceTimeDomain answers
// vkGetPhysicalDeviceCalibrateableTimeDomainsEXT(physicalDevice, pCount,
// pDomains) with VK_TIME_DOMAIN_DEVICE_EXT, which is 0.
func deviceTimeDomain(_ *Driver, _ registry.Index, a *registry.Args) uint64 {
	if a[2] == 0 {
		store32(a[1], 1)
		return success
	}
	if load32(a[1]) == 0 {
		return incomplete
	}
	store32(a[1], 1)
	store32(a[2], 0)
	return success
}
