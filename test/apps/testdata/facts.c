// SPDX-License-Identifier: Apache-2.0
//
// What is asked before anything is done: formats, enumerations into arrays of
// every size, what images take, and what must be refused.

#include "app.h"

// All that is said of images of a format, as one number.
static uint64_t images(App *a, VkFormat format) {
	static const VkImageCreateFlags flags[] = {0, VK_IMAGE_CREATE_CUBE_COMPATIBLE_BIT,
		VK_IMAGE_CREATE_SPARSE_BINDING_BIT | VK_IMAGE_CREATE_SPARSE_RESIDENCY_BIT, VK_IMAGE_CREATE_MUTABLE_FORMAT_BIT | VK_IMAGE_CREATE_EXTENDED_USAGE_BIT};
	uint64_t all = 0;
	for (uint32_t type = 0; type < 3; type++)
		for (uint32_t tiling = 0; tiling < 2; tiling++)
			for (VkImageUsageFlags usage = 1; usage < 0x100; usage <<= 2)
				for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
					VkImageFormatProperties p;
					memset(&p, 0, sizeof p);
					VkResult r = vkGetPhysicalDeviceImageFormatProperties(a->gpu, format, type, tiling, usage, flags[i], &p);
					all = all * 31 + (r == VK_SUCCESS ? sum(&p, sizeof p) : (uint32_t)r);
				}
	return all;
}

static void formats(App *a) {
	for (VkFormat f = 0; f <= VK_FORMAT_ASTC_12x12_SRGB_BLOCK; f++) {
		VkFormatProperties3 more = {.sType = VK_STRUCTURE_TYPE_FORMAT_PROPERTIES_3};
		VkFormatProperties2 p = {.sType = VK_STRUCTURE_TYPE_FORMAT_PROPERTIES_2, .pNext = &more};
		vkGetPhysicalDeviceFormatProperties2(a->gpu, f, &p);
		printf("%d: %x %x %x, %016llx, %016llx\n", f, p.formatProperties.linearTilingFeatures, p.formatProperties.optimalTilingFeatures,
			p.formatProperties.bufferFeatures, (unsigned long long)sum(&more.linearTilingFeatures, 24), (unsigned long long)images(a, f));
	}
}

static void enumerations(App *a) {
	for (uint32_t room = 0; room < 4; room++) {
		uint32_t n = room;
		VkPhysicalDevice gpus[4];
		VkResult r = vkEnumeratePhysicalDevices(a->instance, &n, gpus);
		printf("%u: devices %d %u", room, r, n);
		VkPhysicalDeviceGroupProperties groups[4];
		for (int i = 0; i < 4; i++)
			groups[i] = (VkPhysicalDeviceGroupProperties){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_GROUP_PROPERTIES};
		n = room;
		r = vkEnumeratePhysicalDeviceGroups(a->instance, &n, groups);
		printf(", groups %d %u of %u", r, n, groups[0].physicalDeviceCount);
		n = room;
		r = vkEnumerateDeviceLayerProperties(a->gpu, &n, NULL);
		printf(", layers %d %u", r, n);
		n = room;
		r = vkGetPhysicalDeviceToolProperties(a->gpu, &n, NULL);
		printf(", tools %d %u\n", r, n);
	}
	VkQueueFamilyProperties families[8];
	uint32_t n = 8;
	vkGetPhysicalDeviceQueueFamilyProperties(a->gpu, &n, NULL);
	printf("%u families:", n);
	CHECK(n <= 8);
	vkGetPhysicalDeviceQueueFamilyProperties(a->gpu, &n, families);
	for (uint32_t i = 0; i < n; i++)
		printf(" %x %u %u %u", families[i].queueFlags, families[i].queueCount, families[i].timestampValidBits, families[i].minImageTransferGranularity.width);
	n = 0;
	VkResult r = vkEnumerateDeviceExtensionProperties(a->gpu, "VK_LAYER_that_is_none", &n, NULL);
	printf("\na layer's extensions: %d %u\n", r, n);
}

static void requirements(App *a) {
	for (VkFormat f = 1; f < VK_FORMAT_D16_UNORM; f += 3)
		for (VkImageTiling tiling = 0; tiling < 2; tiling++) {
			VkImageCreateInfo info = {.sType = VK_STRUCTURE_TYPE_IMAGE_CREATE_INFO, .imageType = VK_IMAGE_TYPE_2D, .format = f, .extent = {100 + f, 60, 1}, .mipLevels = 1,
				.arrayLayers = 1 + 2 * !tiling, .samples = 1, .tiling = tiling, .usage = VK_IMAGE_USAGE_TRANSFER_SRC_BIT | VK_IMAGE_USAGE_TRANSFER_DST_BIT};
			VkImageFormatProperties p;
			if (vkGetPhysicalDeviceImageFormatProperties(a->gpu, f, info.imageType, tiling, info.usage, 0, &p) != VK_SUCCESS)
				continue;
			VkImage image;
			OK(vkCreateImage(a->device, &info, NULL, &image));
			VkMemoryRequirements need;
			vkGetImageMemoryRequirements(a->device, image, &need);
			VkMemoryDedicatedRequirements dedicated = {.sType = VK_STRUCTURE_TYPE_MEMORY_DEDICATED_REQUIREMENTS};
			VkMemoryRequirements2 same = {.sType = VK_STRUCTURE_TYPE_MEMORY_REQUIREMENTS_2, .pNext = &dedicated};
			VkDeviceImageMemoryRequirements ask = {.sType = VK_STRUCTURE_TYPE_DEVICE_IMAGE_MEMORY_REQUIREMENTS, .pCreateInfo = &info};
			vkGetDeviceImageMemoryRequirements(a->device, &ask, &same);
			CHECK(same.memoryRequirements.size == need.size);
			VkSubresourceLayout at = {0};
			VkImageSubresource plane = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0};
			if (tiling == VK_IMAGE_TILING_LINEAR)
				vkGetImageSubresourceLayout(a->device, image, &plane, &at);
			printf("%d/%d: %llu %llu %x %d %d, %llu %llu\n", f, tiling, (unsigned long long)need.size, (unsigned long long)need.alignment, need.memoryTypeBits,
				dedicated.prefersDedicatedAllocation, dedicated.requiresDedicatedAllocation, (unsigned long long)at.rowPitch, (unsigned long long)at.size);
			vkDestroyImage(a->device, image, NULL);
		}
}

// More memory than any machine has is refused, wherever it would have been.
static void refused(App *a) {
	VkDeviceSize sizes[] = {1ull << 45, 1ull << 62, 1ull << 63, ~0ull};
	for (int i = 0; i < 4; i++) {
		VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = sizes[i], .memoryTypeIndex = memory_type(a, ~0u, COHERENT, 0)};
		VkDeviceMemory memory;
		printf("%llx: %d\n", (unsigned long long)sizes[i], vkAllocateMemory(a->device, &info, NULL, &memory));
	}
	const char *none[] = {"VK_EXT_that_is_none"};
	float priority = 1;
	VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
	VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue,
		.enabledExtensionCount = 1, .ppEnabledExtensionNames = none};
	VkDevice device;
	printf("extension: %d\n", vkCreateDevice(a->gpu, &info, NULL, &device));
	VkPhysicalDeviceFeatures all;
	for (size_t i = 0; i < sizeof all / sizeof(VkBool32); i++)
		((VkBool32 *)&all)[i] = VK_TRUE;
	info.enabledExtensionCount = 0;
	info.pEnabledFeatures = &all;
	printf("features: %d\n", vkCreateDevice(a->gpu, &info, NULL, &device));
}

int main(int argc, char **argv) {
	const Case cases[] = {{"formats", formats}, {"enumerations", enumerations}, {"requirements", requirements}, {"refused", refused}};
	return run_case(argc, argv, cases, sizeof cases / sizeof *cases);
}
