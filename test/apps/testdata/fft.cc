// SPDX-License-Identifier: Apache-2.0
//
// Usage: fft
//
// Transforms made-up numbers with vkFFT, there and back, in one to three
// dimensions, and prints sums of what comes out.

#define VKFFT_BACKEND 0 // Vulkan
#include <vulkan/vulkan.h>
#include <vkFFT.h>

#include "app.h"
#include <initializer_list>

static void transform(App *a, VkFence *fence, std::initializer_list<uint64_t> sizes, int real) {
	uint64_t count = 1;
	VkFFTConfiguration how = {};
	for (uint64_t size : sizes)
		count *= how.size[how.FFTdim++] = size;
	how.physicalDevice = &a->gpu;
	how.device = &a->device;
	how.queue = &a->queue;
	how.commandPool = &a->pool;
	how.fence = fence;
	how.isCompilerInitialized = 1;
	how.performR2C = real;
	how.normalize = 1;
	uint64_t bytes = real ? count / how.size[0] * (how.size[0] / 2 + 1) * 8 : count * 8;
	Buffer b = make_buffer(a, bytes, STORAGE, COHERENT);
	auto x = (float *)map(a, &b);
	for (uint64_t i = 0; i < bytes / 4; i++)
		x[i] = (float)((i * 7919) % 1009) / 1009;
	how.buffer = &b.buffer;
	how.bufferSize = &bytes;
	VkFFTApplication app = {};
	VkFFTResult r = initializeVkFFT(&app, how);
	if (r != VKFFT_SUCCESS)
		FAIL("initializeVkFFT: %d", r);
	for (int direction = -1; direction <= 1; direction += 2) {
		VkCommandBuffer commands = begin(a);
		VkFFTLaunchParams launch = {};
		launch.commandBuffer = &commands;
		launch.buffer = &b.buffer;
		r = VkFFTAppend(&app, direction, &launch);
		if (r != VKFFT_SUCCESS)
			FAIL("VkFFTAppend: %d", r);
		finish(a, commands);
		printf("%u dimensions of %u, direction %d: %016llx\n", (unsigned)how.FFTdim, (unsigned)how.size[0], direction, (unsigned long long)sum(x, bytes));
	}
	deleteVkFFT(&app);
	drop_buffer(a, &b);
}

int main(void) {
	App a = open_app();
	VkFence fence = make_fence(&a);
	glslang_initialize_process();
	transform(&a, &fence, {4096}, 0);
	transform(&a, &fence, {1000}, 0);
	transform(&a, &fence, {10007}, 0); // a prime
	transform(&a, &fence, {256, 128}, 1);
	transform(&a, &fence, {32, 24, 18}, 0);
	transform(&a, &fence, {1 << 20}, 0);
	glslang_finalize_process();
	vkDestroyFence(a.device, fence, NULL);
	close_app(&a);
	return 0;
}
