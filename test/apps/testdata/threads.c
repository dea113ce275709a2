// SPDX-License-Identifier: Apache-2.0
//
// Four threads create, record, submit, verify and destroy on one device, for as
// many seconds as the argument says. Only what Vulkan wants synchronised
// outside, the queue, is under a lock.

#include "app.h"
#include "mix_comp.h"

static App app;
static pthread_mutex_t queue = PTHREAD_MUTEX_INITIALIZER;
static double end;

static void submit_and_wait(VkCommandBuffer cb) {
	barrier(cb);
	OK(vkEndCommandBuffer(cb));
	VkFence fence = make_fence(&app);
	pthread_mutex_lock(&queue);
	submit(&app, cb, fence);
	pthread_mutex_unlock(&queue);
	OK(vkWaitForFences(app.device, 1, &fence, VK_TRUE, UINT64_MAX));
	vkDestroyFence(app.device, fence, NULL);
}

static void *work(void *argument) {
	uint32_t seed = (uintptr_t)argument;
	App mine = app; // with a pool of its own
	VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT};
	OK(vkCreateCommandPool(app.device, &pool, NULL, &mine.pool));
	long rounds = 0;
	do {
		uint32_t n = 64 * (1 + (seed + rounds) % 40);
		Buffer from = make_buffer(&mine, n * 4, STORAGE, COHERENT), to = make_buffer(&mine, n * 4, STORAGE, COHERENT);
		Compute c = make_compute(&mine, mix_comp, sizeof mix_comp, from.buffer, to.buffer);
		uint32_t *in = map(&mine, &from);
		for (uint32_t i = 0; i < n; i++)
			in[i] = seed + i;
		vkUnmapMemory(mine.device, from.memory);
		VkCommandBuffer cb = begin(&mine);
		vkCmdFillBuffer(cb, to.buffer, 0, VK_WHOLE_SIZE, seed);
		barrier(cb);
		if (rounds % 2 == 0)
			dispatch(cb, &c, 0, n / 64);
		submit_and_wait(cb);
		uint32_t *out = map(&mine, &to);
		for (uint32_t i = 0; i < n; i++)
			if (out[i] != seed + (rounds % 2 == 0 ? i : 0))
				FAIL("thread %u, round %ld, element %u: %u", seed, rounds, i, out[i]);
		for (int i = 0; i < 20; i++) {
			VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
			VkSemaphore s;
			OK(vkCreateSemaphore(mine.device, &info, NULL, &s));
			vkDestroySemaphore(mine.device, s, NULL);
		}
		drop_compute(&mine, &c);
		drop_buffer(&mine, &from);
		drop_buffer(&mine, &to);
		vkFreeCommandBuffers(mine.device, mine.pool, 1, &cb);
		if (rounds % 10 == 0)
			OK(vkResetCommandPool(mine.device, mine.pool, VK_COMMAND_POOL_RESET_RELEASE_RESOURCES_BIT));
		rounds++;
	} while (now() < end || rounds < 20);
	vkDestroyCommandPool(app.device, mine.pool, NULL);
	return NULL;
}

int main(int argc, char **argv) {
	pthread_t threads[4];
	app = open_app();
	end = now() + (argc > 1 ? atof(argv[1]) : 1);
	for (uintptr_t i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)(i * 1000)) == 0);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	close_app(&app);
	printf("four threads are done\n");
	return 0;
}
