// SPDX-License-Identifier: Apache-2.0

package driver

import "github.com/memspan/memspan/vulkan/registry"

// Beyond these a driver may refuse to make what it would else make: for want of
// memory, or because it is above the device's limits. They are below the least
// that Vulkan demands, and what is larger is made so rarely, and takes so long
// to be filled, that its answer is waited for.
const (
	largeBuffer      = 256 << 20 // bytes
	largeTexels      = 64 << 20
	largeExtent      = 4096 // texels of a width or a height
	largeDepth       = 256
	largeLayers      = 256
	largeSamples     = 4
	largeQueries     = 1 << 16
	largeDescriptors = 1 << 20
)

// large says, by the command that creates an object, whether the driver may have
// not enough for it: from its create-info.
var large = map[registry.Index]func(info uint64) bool{
	registry.VkCreateBuffer: func(info uint64) bool { return load64(info+24) > largeBuffer },
	registry.VkCreateImage: func(info uint64) bool {
		// {sType, pNext, flags, imageType, format, extent, mipLevels, arrayLayers,
		// samples, …}
		width, height, depth := load32(info+28), load32(info+32), load32(info+36)
		layers, samples := load32(info+44), load32(info+48)
		return width > largeExtent || height > largeExtent || depth > largeDepth || layers > largeLayers || samples > largeSamples ||
			uint64(width)*uint64(height)*uint64(depth) > largeTexels/max(1, uint64(layers)*uint64(samples))
	},
	registry.VkCreateQueryPool: func(info uint64) bool { return load32(info+24) > largeQueries },
	registry.VkCreateDescriptorPool: func(info uint64) bool {
		// {sType, pNext, flags, maxSets, poolSizeCount, pPoolSizes}
		sum, sizes := uint64(load32(info+20)), load64(info+32)
		for i := range uint64(load32(info + 24)) {
			sum += uint64(load32(sizes + 8*i + 4)) // 2^32 of less than 2^32: no overflow
		}
		return sum > largeDescriptors
	},
}
