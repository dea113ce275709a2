// SPDX-License-Identifier: Apache-2.0
//
// What every program here needs: a device with one queue, buffers, one command
// buffer at a time. Any failure ends the program with status 1.

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vulkan/vulkan.h>

#define FAIL(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define OK(call) ok((call), #call, __LINE__)
#define CHECK(condition) ((condition) ? (void)0 : FAIL("line %d: not so: %s", __LINE__, #condition))
#define UNUSED __attribute__((unused))

enum {
	VISIBLE = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT,
	COHERENT = VISIBLE | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
	LOCAL = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
	COPY = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT,
	STORAGE = COPY | VK_BUFFER_USAGE_STORAGE_BUFFER_BIT,
};

static void ok(VkResult r, const char *call, int line) {
	if (r != VK_SUCCESS)
		FAIL("line %d: %.60s: VkResult %d", line, call, r);
}

typedef struct {
	VkInstance instance;
	VkPhysicalDevice gpu;
	VkPhysicalDeviceMemoryProperties memory;
	VkPhysicalDeviceProperties properties;
	VkDevice device;
	VkQueue queue;
	VkCommandPool pool;
} App;

typedef struct {
	VkBuffer buffer;
	VkDeviceMemory memory;
	VkDeviceSize size;
	VkMemoryPropertyFlags flags;
} Buffer;

static UNUSED double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static UNUSED void pause_ms(int ms) { usleep(ms * 1000); }

static void open_device(App *a) {
	VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES, .timelineSemaphore = VK_TRUE};
	VkPhysicalDeviceVulkan13Features v13 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES, .pNext = &v12, .synchronization2 = VK_TRUE, .dynamicRendering = VK_TRUE};
	float priority = 1;
	VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
	VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .pNext = &v13, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
	OK(vkCreateDevice(a->gpu, &info, NULL, &a->device));
	vkGetDeviceQueue(a->device, 0, 0, &a->queue);
	VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT};
	OK(vkCreateCommandPool(a->device, &pool, NULL, &a->pool));
}

// The first device; its queue family 0 does everything.
static UNUSED App open_app(void) {
	App a = {0};
	VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_3};
	VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &app};
	OK(vkCreateInstance(&info, NULL, &a.instance));
	uint32_t n = 1;
	VkResult r = vkEnumeratePhysicalDevices(a.instance, &n, &a.gpu);
	if (r < 0 || n == 0)
		FAIL("no device: VkResult %d", r);
	vkGetPhysicalDeviceProperties(a.gpu, &a.properties);
	vkGetPhysicalDeviceMemoryProperties(a.gpu, &a.memory);
	open_device(&a);
	return a;
}

static UNUSED void close_device(App *a) {
	OK(vkDeviceWaitIdle(a->device));
	vkDestroyCommandPool(a->device, a->pool, NULL);
	vkDestroyDevice(a->device, NULL);
}

static UNUSED void close_app(App *a) {
	close_device(a);
	vkDestroyInstance(a->instance, NULL);
}

// The first type that is allowed, has the flags wanted and none of those
// unwanted; -1 if there is none.
static UNUSED int memory_type(App *a, uint32_t allowed, VkMemoryPropertyFlags wanted, VkMemoryPropertyFlags unwanted) {
	for (uint32_t i = 0; i < a->memory.memoryTypeCount; i++) {
		VkMemoryPropertyFlags flags = a->memory.memoryTypes[i].propertyFlags;
		if ((allowed >> i & 1) && (flags & wanted) == wanted && !(flags & unwanted))
			return i;
	}
	return -1;
}

static VkDeviceMemory allocate(App *a, VkMemoryRequirements need, VkMemoryPropertyFlags flags) {
	int type = memory_type(a, need.memoryTypeBits, flags, 0);
	if (type < 0)
		FAIL("no memory type with flags %x among %x", flags, need.memoryTypeBits);
	VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = need.size, .memoryTypeIndex = type};
	VkDeviceMemory memory;
	OK(vkAllocateMemory(a->device, &info, NULL, &memory));
	return memory;
}

static UNUSED Buffer make_buffer(App *a, VkDeviceSize size, VkBufferUsageFlags usage, VkMemoryPropertyFlags flags) {
	Buffer b = {.size = size};
	// For no handle that there is: ffmpeg does so, too.
	VkExternalMemoryBufferCreateInfo none = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO};
	VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .pNext = &none, .size = size, .usage = usage};
	OK(vkCreateBuffer(a->device, &info, NULL, &b.buffer));
	VkMemoryRequirements need;
	vkGetBufferMemoryRequirements(a->device, b.buffer, &need);
	b.memory = allocate(a, need, flags);
	b.flags = a->memory.memoryTypes[memory_type(a, need.memoryTypeBits, flags, 0)].propertyFlags;
	OK(vkBindBufferMemory(a->device, b.buffer, b.memory, 0));
	return b;
}

static UNUSED void drop_buffer(App *a, Buffer *b) {
	vkDestroyBuffer(a->device, b->buffer, NULL);
	vkFreeMemory(a->device, b->memory, NULL);
}

static UNUSED void *map(App *a, Buffer *b) {
	void *at;
	OK(vkMapMemory(a->device, b->memory, 0, VK_WHOLE_SIZE, 0, &at));
	return at;
}

static UNUSED VkCommandBuffer begin(App *a) {
	VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO, .commandPool = a->pool, .commandBufferCount = 1};
	VkCommandBuffer cb;
	OK(vkAllocateCommandBuffers(a->device, &info, &cb));
	VkCommandBufferBeginInfo start = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
	OK(vkBeginCommandBuffer(cb, &start));
	return cb;
}

// Everything that was written is visible to everything after.
static UNUSED void barrier(VkCommandBuffer cb) {
	VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
		.srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT, .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
	vkCmdPipelineBarrier(cb, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &all, 0, NULL, 0, NULL);
}

static UNUSED VkFence make_fence(App *a) {
	VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
	VkFence fence;
	OK(vkCreateFence(a->device, &info, NULL, &fence));
	return fence;
}

static UNUSED void submit(App *a, VkCommandBuffer cb, VkFence fence) {
	VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = cb != NULL, .pCommandBuffers = &cb};
	OK(vkQueueSubmit(a->queue, 1, &info, fence));
}

// Ends recording, runs it and waits for it by a fence.
static UNUSED void finish(App *a, VkCommandBuffer cb) {
	barrier(cb);
	OK(vkEndCommandBuffer(cb));
	VkFence fence = make_fence(a);
	submit(a, cb, fence);
	OK(vkWaitForFences(a->device, 1, &fence, VK_TRUE, UINT64_MAX));
	vkDestroyFence(a->device, fence, NULL);
	vkFreeCommandBuffers(a->device, a->pool, 1, &cb);
}

static UNUSED void copy(App *a, Buffer *from, Buffer *to) {
	VkCommandBuffer cb = begin(a);
	VkBufferCopy all = {.size = from->size < to->size ? from->size : to->size};
	vkCmdCopyBuffer(cb, from->buffer, to->buffer, 1, &all);
	finish(a, cb);
}

// A sum that tells two memories apart (FNV-1a).
static UNUSED uint64_t sum(const void *p, size_t n) {
	uint64_t h = 14695981039346656037u;
	for (const unsigned char *c = (const unsigned char *)p; n--; c++)
		h = (h ^ *c) * 1099511628211u;
	return h;
}

static UNUSED VkShaderModule make_shader(App *a, const uint32_t *code, size_t size) {
	VkShaderModuleCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = size, .pCode = code};
	VkShaderModule shader;
	OK(vkCreateShaderModule(a->device, &info, NULL, &shader));
	return shader;
}

// A compute pipeline on two storage buffers and one push constant.
typedef struct {
	VkDescriptorSetLayout set_layout;
	VkPipelineLayout layout;
	VkPipeline pipeline;
	VkDescriptorPool pool;
	VkDescriptorSet set;
} Compute;

static UNUSED Compute make_compute(App *a, const uint32_t *code, size_t size, VkBuffer first, VkBuffer second) {
	Compute c;
	VkDescriptorSetLayoutBinding bindings[2];
	for (int i = 0; i < 2; i++)
		bindings[i] = (VkDescriptorSetLayoutBinding){.binding = i, .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, .descriptorCount = 1, .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
	VkDescriptorSetLayoutCreateInfo set = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = 2, .pBindings = bindings};
	OK(vkCreateDescriptorSetLayout(a->device, &set, NULL, &c.set_layout));
	VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 4};
	VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .setLayoutCount = 1, .pSetLayouts = &c.set_layout, .pushConstantRangeCount = 1, .pPushConstantRanges = &push};
	OK(vkCreatePipelineLayout(a->device, &layout, NULL, &c.layout));
	VkShaderModule shader = make_shader(a, code, size);
	VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
		.stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO, .stage = VK_SHADER_STAGE_COMPUTE_BIT, .module = shader, .pName = "main"}, .layout = c.layout};
	OK(vkCreateComputePipelines(a->device, VK_NULL_HANDLE, 1, &info, NULL, &c.pipeline));
	vkDestroyShaderModule(a->device, shader, NULL);
	VkDescriptorPoolSize room = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 2};
	VkDescriptorPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = 1, .poolSizeCount = 1, .pPoolSizes = &room};
	OK(vkCreateDescriptorPool(a->device, &pool, NULL, &c.pool));
	VkDescriptorSetAllocateInfo one = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO, .descriptorPool = c.pool, .descriptorSetCount = 1, .pSetLayouts = &c.set_layout};
	OK(vkAllocateDescriptorSets(a->device, &one, &c.set));
	VkDescriptorBufferInfo buffers[2] = {{first, 0, VK_WHOLE_SIZE}, {second, 0, VK_WHOLE_SIZE}};
	VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET, .dstSet = c.set, .descriptorCount = 2, .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, .pBufferInfo = buffers};
	// Two bindings in a row are written as one array.
	vkUpdateDescriptorSets(a->device, 1, &write, 0, NULL);
	return c;
}

static UNUSED void dispatch(VkCommandBuffer cb, Compute *c, uint32_t constant, uint32_t groups) {
	vkCmdBindPipeline(cb, VK_PIPELINE_BIND_POINT_COMPUTE, c->pipeline);
	vkCmdBindDescriptorSets(cb, VK_PIPELINE_BIND_POINT_COMPUTE, c->layout, 0, 1, &c->set, 0, NULL);
	vkCmdPushConstants(cb, c->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, 4, &constant);
	vkCmdDispatch(cb, groups, 1, 1);
}

static UNUSED void drop_compute(App *a, Compute *c) {
	vkDestroyDescriptorPool(a->device, c->pool, NULL);
	vkDestroyPipeline(a->device, c->pipeline, NULL);
	vkDestroyPipelineLayout(a->device, c->layout, NULL);
	vkDestroyDescriptorSetLayout(a->device, c->set_layout, NULL);
}

// A case of a program, which the program's argument names.
typedef struct {
	const char *name;
	void (*run)(App *);
} Case;

static UNUSED int run_case(int argc, char **argv, const Case *cases, size_t n) {
	for (size_t i = 0; i < n; i++)
		if (argc == 2 && !strcmp(argv[1], cases[i].name)) {
			App a = open_app();
			cases[i].run(&a);
			close_app(&a);
			return 0;
		}
	FAIL("no such case");
}
