// SPDX-License-Identifier: Apache-2.0
//
// Fences, semaphores, events, devices, processes. The argument names the case.

#include "app.h"
#include "mix_comp.h"
#include <sys/wait.h>

enum { N = 4096 };

// A job that takes the device long enough to be seen running.
typedef struct {
	Buffer from, to;
	Compute compute;
	VkCommandBuffer cb;
} Job;

static Job make_job(App *a, uint32_t rounds) {
	Job j = {.from = make_buffer(a, N * 4, STORAGE, COHERENT), .to = make_buffer(a, N * 4, STORAGE, COHERENT)};
	j.compute = make_compute(a, mix_comp, sizeof mix_comp, j.from.buffer, j.to.buffer);
	uint32_t *in = map(a, &j.from);
	for (int i = 0; i < N; i++)
		in[i] = i + 1;
	memset(map(a, &j.to), 0, N * 4);
	vkUnmapMemory(a->device, j.from.memory);
	vkUnmapMemory(a->device, j.to.memory);
	j.cb = begin(a);
	dispatch(j.cb, &j.compute, rounds, N / 64);
	barrier(j.cb);
	OK(vkEndCommandBuffer(j.cb));
	return j;
}

static void show(App *a, const char *what, Job *j) {
	printf("%s: %016llx\n", what, (unsigned long long)sum(map(a, &j->to), N * 4));
	vkUnmapMemory(a->device, j->to.memory);
}

static void drop_job(App *a, Job *j) {
	vkFreeCommandBuffers(a->device, a->pool, 1, &j->cb);
	drop_compute(a, &j->compute);
	drop_buffer(a, &j->from);
	drop_buffer(a, &j->to);
}

static VkSemaphore make_timeline(App *a, uint64_t value) {
	VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO, .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE, .initialValue = value};
	VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
	VkSemaphore s;
	OK(vkCreateSemaphore(a->device, &info, NULL, &s));
	return s;
}

// Submits cb, which waits for wait's value and signals signal's.
static void submit_timeline(App *a, VkCommandBuffer cb, VkSemaphore wait, uint64_t waited, VkSemaphore signal, uint64_t signalled, VkFence fence) {
	VkPipelineStageFlags all = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
	VkTimelineSemaphoreSubmitInfo values = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
		.waitSemaphoreValueCount = wait != 0, .pWaitSemaphoreValues = &waited, .signalSemaphoreValueCount = signal != 0, .pSignalSemaphoreValues = &signalled};
	VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .pNext = &values, .waitSemaphoreCount = wait != 0, .pWaitSemaphores = &wait, .pWaitDstStageMask = &all,
		.commandBufferCount = cb != NULL, .pCommandBuffers = &cb, .signalSemaphoreCount = signal != 0, .pSignalSemaphores = &signal};
	OK(vkQueueSubmit(a->queue, 1, &info, fence));
}

static VkResult wait_value(App *a, VkSemaphore s, uint64_t value, uint64_t timeout) {
	VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO, .semaphoreCount = 1, .pSemaphores = &s, .pValues = &value};
	return vkWaitSemaphores(a->device, &info, timeout);
}

static void signal_value(App *a, VkSemaphore s, uint64_t value) {
	VkSemaphoreSignalInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_SIGNAL_INFO, .semaphore = s, .value = value};
	OK(vkSignalSemaphore(a->device, &info));
}

static void fences(App *a) {
	Job j = make_job(a, 20000);
	VkFence f[3] = {make_fence(a), make_fence(a), make_fence(a)};
	CHECK(vkGetFenceStatus(a->device, f[0]) == VK_NOT_READY);
	CHECK(vkWaitForFences(a->device, 1, f, VK_TRUE, 1000000) == VK_TIMEOUT);
	submit(a, NULL, f[1]);
	OK(vkWaitForFences(a->device, 3, f, VK_FALSE, UINT64_MAX)); // any
	CHECK(vkWaitForFences(a->device, 3, f, VK_TRUE, 0) == VK_TIMEOUT);
	submit(a, j.cb, f[0]);
	submit(a, NULL, f[2]);
	OK(vkWaitForFences(a->device, 3, f, VK_TRUE, UINT64_MAX)); // all
	show(a, "all", &j);
	for (int i = 0; i < 20; i++) {
		OK(vkResetFences(a->device, 3, f));
		CHECK(vkGetFenceStatus(a->device, f[0]) == VK_NOT_READY);
		submit(a, NULL, f[0]);
		OK(vkWaitForFences(a->device, 1, f, VK_TRUE, UINT64_MAX));
		CHECK(vkGetFenceStatus(a->device, f[0]) == VK_SUCCESS);
	}
	VkQueue again;
	vkGetDeviceQueue(a->device, 0, 0, &again);
	CHECK(again == a->queue);
	for (int i = 0; i < 3; i++)
		vkDestroyFence(a->device, f[i], NULL);
	drop_job(a, &j);
}

// Polls without waiting: what the device wrote is there when the fence is.
static void polling(App *a) {
	for (int i = 0; i < 5; i++) {
		Job j = make_job(a, 5000 + i);
		uint32_t *out = map(a, &j.to);
		VkFence fence = make_fence(a);
		submit(a, j.cb, fence);
		VkResult r;
		while ((r = vkGetFenceStatus(a->device, fence)) == VK_NOT_READY)
			;
		CHECK(r == VK_SUCCESS);
		printf("polled: %016llx\n", (unsigned long long)sum(out, N * 4));
		vkDestroyFence(a->device, fence, NULL);
		drop_job(a, &j);
	}
}

static void timeline(App *a) {
	Job j = make_job(a, 50000);
	VkSemaphore host = make_timeline(a, 3), device = make_timeline(a, 0);
	uint64_t value, last = 0;
	OK(vkGetSemaphoreCounterValue(a->device, host, &value));
	CHECK(value == 3);
	submit_timeline(a, j.cb, host, 5, device, 1, VK_NULL_HANDLE);
	submit_timeline(a, NULL, device, 1, device, 7, VK_NULL_HANDLE);
	CHECK(wait_value(a, device, 1, 20000000) == VK_TIMEOUT); // nobody has signalled
	OK(vkGetSemaphoreCounterValue(a->device, device, &value));
	CHECK(value == 0);
	signal_value(a, host, 4);
	CHECK(wait_value(a, device, 1, 20000000) == VK_TIMEOUT); // not enough
	signal_value(a, host, 5);
	OK(wait_value(a, device, 1, UINT64_MAX));
	show(a, "after the first", &j);
	while (last < 7) { // it only grows, and gets there by itself
		OK(vkGetSemaphoreCounterValue(a->device, device, &value));
		CHECK(value >= last);
		last = value;
	}
	CHECK(last == 7);
	OK(vkGetSemaphoreCounterValue(a->device, host, &value));
	CHECK(value == 5);
	OK(vkQueueWaitIdle(a->queue));
	// Memory is there when the value is polled, too.
	uint32_t *out = map(a, &j.to);
	for (uint64_t i = 8; i < 12; i++) {
		memset(out, 0, N * 4);
		submit_timeline(a, j.cb, VK_NULL_HANDLE, 0, device, i, VK_NULL_HANDLE);
		do
			OK(vkGetSemaphoreCounterValue(a->device, device, &value));
		while (value < i);
		printf("polled: %016llx\n", (unsigned long long)sum(out, N * 4));
		OK(vkQueueWaitIdle(a->queue));
	}
	vkDestroySemaphore(a->device, host, NULL);
	vkDestroySemaphore(a->device, device, NULL);
	drop_job(a, &j);
}

// Host and device take turns on one coherent memory, all submissions having been
// queued before: what the host wrote before it signals is there for the device,
// what the device wrote is there when its value is, waited for or polled.
static void turns(App *a) {
	enum { ROUNDS = 64 };
	Buffer b = make_buffer(a, 1 << 16, COPY, COHERENT);
	uint32_t *at = map(a, &b);
	VkSemaphore host = make_timeline(a, 0), device = make_timeline(a, 0);
	VkCommandBuffer cb[ROUNDS];
	uint64_t value;
	for (uint32_t i = 0; i < ROUNDS; i++) {
		cb[i] = begin(a);
		VkBufferCopy word = {0, 4096, 4};
		vkCmdCopyBuffer(cb[i], b.buffer, b.buffer, 1, &word);
		vkCmdFillBuffer(cb[i], b.buffer, 8192, 4, i);
		barrier(cb[i]);
		OK(vkEndCommandBuffer(cb[i]));
		submit_timeline(a, cb[i], host, i + 1, device, i + 1, VK_NULL_HANDLE);
	}
	for (uint32_t i = 0; i < ROUNDS; i++) {
		OK(vkGetSemaphoreCounterValue(a->device, device, &value));
		CHECK(value == i);
		at[0] = i * 7 + 1;
		at[2000] = i; // in a page that the device writes
		signal_value(a, host, i + 1);
		if (i % 2)
			OK(wait_value(a, device, i + 1, UINT64_MAX));
		else
			do
				OK(vkGetSemaphoreCounterValue(a->device, device, &value));
			while (value <= i);
		CHECK(at[1024] == i * 7 + 1 && at[2048] == i && at[2000] == i);
	}
	OK(vkQueueWaitIdle(a->queue));
	printf("%d turns\n", ROUNDS);
	vkFreeCommandBuffers(a->device, a->pool, ROUNDS, cb);
	vkDestroySemaphore(a->device, host, NULL);
	vkDestroySemaphore(a->device, device, NULL);
	drop_buffer(a, &b);
}

// Binary semaphores chain submissions that are queued at once.
static void semaphores(App *a) {
	Buffer b = make_buffer(a, N * 4, COPY, COHERENT);
	VkSemaphore s[8];
	VkCommandBuffer cb[9];
	VkPipelineStageFlags all = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
	VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
	VkSubmitInfo list[9];
	for (int i = 0; i < 9; i++) {
		if (i < 8)
			OK(vkCreateSemaphore(a->device, &info, NULL, &s[i]));
		cb[i] = begin(a);
		vkCmdFillBuffer(cb[i], b.buffer, i * 16, N * 4 - i * 32, i + 1);
		barrier(cb[i]);
		OK(vkEndCommandBuffer(cb[i]));
		list[i] = (VkSubmitInfo){.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .waitSemaphoreCount = i > 0, .pWaitSemaphores = &s[i - (i > 0)], .pWaitDstStageMask = &all,
			.commandBufferCount = 1, .pCommandBuffers = &cb[i], .signalSemaphoreCount = i < 8, .pSignalSemaphores = &s[i % 8]};
	}
	VkFence fence = make_fence(a);
	OK(vkQueueSubmit(a->queue, 9, list, fence));
	OK(vkWaitForFences(a->device, 1, &fence, VK_TRUE, UINT64_MAX));
	printf("chained: %016llx\n", (unsigned long long)sum(map(a, &b), N * 4));
	for (int i = 0; i < 8; i++)
		vkDestroySemaphore(a->device, s[i], NULL);
	vkFreeCommandBuffers(a->device, a->pool, 9, cb);
	vkDestroyFence(a->device, fence, NULL);
	drop_buffer(a, &b);
}

static void events(App *a) {
	VkEventCreateInfo info = {.sType = VK_STRUCTURE_TYPE_EVENT_CREATE_INFO};
	VkEvent set_by_device, set_by_host;
	OK(vkCreateEvent(a->device, &info, NULL, &set_by_device));
	OK(vkCreateEvent(a->device, &info, NULL, &set_by_host));
	CHECK(vkGetEventStatus(a->device, set_by_device) == VK_EVENT_RESET);
	Buffer b = make_buffer(a, N * 4, COPY, COHERENT);
	uint32_t *at = map(a, &b);
	memset(at, 0, N * 4);
	VkCommandBuffer cb = begin(a);
	vkCmdFillBuffer(cb, b.buffer, 0, 64, 7);
	barrier(cb);
	vkCmdSetEvent(cb, set_by_device, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT);
	OK(vkEndCommandBuffer(cb));
	VkFence fence = make_fence(a);
	submit(a, cb, fence);
	VkResult r;
	while ((r = vkGetEventStatus(a->device, set_by_device)) == VK_EVENT_RESET)
		;
	CHECK(r == VK_EVENT_SET);
	printf("the device's event is set, %u\n", at[0]);
	OK(vkWaitForFences(a->device, 1, &fence, VK_TRUE, UINT64_MAX));
	vkFreeCommandBuffers(a->device, a->pool, 1, &cb);

	// The device waits for the host's event; what the host wrote before it set
	// the event is there, whenever it was submitted.
	Buffer copied = make_buffer(a, N * 4, COPY, COHERENT);
	cb = begin(a);
	VkMemoryBarrier host = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_HOST_WRITE_BIT, .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT};
	vkCmdWaitEvents(cb, 1, &set_by_host, VK_PIPELINE_STAGE_HOST_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT, 1, &host, 0, NULL, 0, NULL);
	VkBufferCopy all = {.size = N * 4};
	vkCmdCopyBuffer(cb, b.buffer, copied.buffer, 1, &all);
	barrier(cb);
	OK(vkEndCommandBuffer(cb));
	OK(vkResetFences(a->device, 1, &fence));
	submit(a, cb, fence);
	CHECK(vkWaitForFences(a->device, 1, &fence, VK_TRUE, 20000000) == VK_TIMEOUT);
	for (int i = 0; i < N; i++)
		at[i] = i * 3;
	OK(vkSetEvent(a->device, set_by_host));
	CHECK(vkGetEventStatus(a->device, set_by_host) == VK_EVENT_SET);
	OK(vkWaitForFences(a->device, 1, &fence, VK_TRUE, UINT64_MAX));
	printf("after the host's event: %016llx\n", (unsigned long long)sum(map(a, &copied), N * 4));
	OK(vkResetEvent(a->device, set_by_host));
	CHECK(vkGetEventStatus(a->device, set_by_host) == VK_EVENT_RESET);
	vkFreeCommandBuffers(a->device, a->pool, 1, &cb);
	vkDestroyFence(a->device, fence, NULL);
	vkDestroyEvent(a->device, set_by_device, NULL);
	vkDestroyEvent(a->device, set_by_host, NULL);
	drop_buffer(a, &b);
	drop_buffer(a, &copied);
}

// Three devices of two instances, used in turns.
static void devices(App *a) {
	App list[3] = {*a, open_app(), *a};
	open_device(&list[2]);
	CHECK(list[2].device != a->device && list[1].instance != a->instance);
	Job jobs[3];
	for (int i = 0; i < 3; i++)
		jobs[i] = make_job(&list[i], 100 + i);
	for (int i = 0; i < 3; i++)
		submit(&list[i], jobs[i].cb, VK_NULL_HANDLE);
	for (int i = 2; i >= 0; i--) {
		OK(vkQueueWaitIdle(list[i].queue));
		show(&list[i], "device", &jobs[i]);
		drop_job(&list[i], &jobs[i]);
	}
	close_device(&list[2]);
	close_app(&list[1]);
}

// Other programs are started between, and during, the work of this one.
static void forks(App *a) {
	Job j = make_job(a, 1000);
	for (int i = 0; i < 5; i++) {
		submit(a, j.cb, VK_NULL_HANDLE);
		fflush(stdout);
		pid_t child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			execlp("echo", "echo", "another program", NULL);
			_exit(127);
		}
		int status;
		CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
		OK(vkQueueWaitIdle(a->queue));
		show(a, "after it", &j);
	}
	CHECK(system("true") == 0);
	drop_job(a, &j);
}

// What a job of so many rounds computes.
static uint64_t computed(App *a, uint32_t rounds) {
	Job j = make_job(a, rounds);
	submit(a, j.cb, VK_NULL_HANDLE);
	OK(vkQueueWaitIdle(a->queue));
	uint64_t all = sum(map(a, &j.to), N * 4);
	drop_job(a, &j);
	return all;
}

// Waits for a child, which must have succeeded.
static void reap(pid_t child) {
	int status;
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// Children that execute no other program open a GPU of their own, and so do
// theirs; what their parent has goes on. (Mesa's software driver hangs here.)
static void children(App *a) {
	uint64_t mine = computed(a, 100), yours = computed(a, 7);
	Job j = make_job(a, 1000);
	for (int i = 0; i < 2; i++) {
		submit(a, j.cb, VK_NULL_HANDLE);
		pid_t child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			CHECK(vkQueueWaitIdle(a->queue) == VK_ERROR_DEVICE_LOST); // it is the parent's
			App own = open_app();
			CHECK(computed(&own, 100) == mine);
			pid_t grandchild = fork();
			CHECK(grandchild >= 0);
			if (grandchild == 0) {
				App third = open_app();
				CHECK(computed(&third, 7) == yours);
				close_app(&third);
				exit(0);
			}
			reap(grandchild);
			CHECK(computed(&own, 7) == yours);
			if (i == 0) // in no good order
				exit(0);
			vkDestroyDevice(a->device, NULL); // none of its business, and nothing comes of it
			CHECK(computed(&own, 100) == mine);
			close_app(&own);
			exit(0);
		}
		reap(child);
		OK(vkQueueWaitIdle(a->queue));
		CHECK(computed(a, 7) == yours);
	}
	drop_job(a, &j);
	printf("three generations\n");
}

// Says how waiting for a fence ended that is not signalled in time.
static void wait_in_vain(App *a, VkFence fence) {
	printf("waiting\n");
	fflush(stdout);
	printf("VkResult %d\n", vkWaitForFences(a->device, 1, &fence, VK_TRUE, UINT64_MAX));
	printf("then %d\n", vkQueueWaitIdle(a->queue));
	fflush(stdout);
}

// The device waits for a semaphore that this program does not signal.
static void lost(App *a) {
	VkSemaphore never = make_timeline(a, 0);
	VkFence fence = make_fence(a);
	Buffer b = make_buffer(a, 64 << 20, COPY, COHERENT);
	uint8_t *at = map(a, &b);
	memset(at, 1, b.size);
	copy(a, &b, &b); // the worker has the memory
	submit_timeline(a, NULL, never, 1, VK_NULL_HANDLE, 0, fence);
	wait_in_vain(a, fence);
	memset(at, 2, b.size); // no access is a crash
	vkDestroyDevice(a->device, NULL);
	vkDestroyInstance(a->instance, NULL);
	exit(0);
}

// Nothing is waited for, or asked.
static void submissions(App *a) {
	Buffer b = make_buffer(a, 4096, COPY, COHERENT);
	uint8_t *at = map(a, &b);
	copy(a, &b, &b); // the worker has the memory
	printf("waiting\n");
	fflush(stdout);
	VkResult r;
	do {
		at[100]++;
		pause_ms(1);
	} while ((r = vkQueueSubmit(a->queue, 0, NULL, VK_NULL_HANDLE)) == VK_SUCCESS);
	printf("VkResult %d\n", r);
	printf("then %d\n", vkQueueWaitIdle(a->queue));
	fflush(stdout);
	vkDestroyDevice(a->device, NULL);
	vkDestroyInstance(a->instance, NULL);
	exit(0);
}

// The device works for very long. (Some drivers end loops by themselves.)
static void hang(App *a) {
	Job j = make_job(a, 1);
	VkFence fence = make_fence(a);
	VkCommandBuffer cb = begin(a);
	for (int i = 0; i < 20000; i++) {
		dispatch(cb, &j.compute, 60000, N / 64);
		barrier(cb);
	}
	OK(vkEndCommandBuffer(cb));
	submit(a, cb, fence);
	wait_in_vain(a, fence);
	exit(0);
}

int main(int argc, char **argv) {
	const Case cases[] = {{"fences", fences}, {"polling", polling}, {"timeline", timeline}, {"turns", turns}, {"semaphores", semaphores},
		{"events", events}, {"devices", devices}, {"forks", forks}, {"children", children}, {"lost", lost}, {"submissions", submissions}, {"hang", hang}};
	return run_case(argc, argv, cases, sizeof cases / sizeof *cases);
}
