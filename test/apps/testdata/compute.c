// SPDX-License-Identifier: Apache-2.0
//
// Compute shaders on buffers, verified. The argument names the case.

#include "app.h"
#include "mix_comp.h"

static uint32_t mixed(uint32_t x, uint32_t i, uint32_t rounds) {
	while (rounds--) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		x += i;
	}
	return x;
}

static void verify(const uint32_t *from, const uint32_t *to, uint32_t n, uint32_t rounds) {
	for (uint32_t i = 0; i < n; i++)
		if (to[i] != mixed(from[i], i, rounds))
			FAIL("element %u is %08x, want %08x", i, to[i], mixed(from[i], i, rounds));
	printf("%u elements right after %u rounds, sum %016llx\n", n, rounds, (unsigned long long)sum(to, n * 4));
}

// Dispatches on mapped memory, several times, each with an input of its own.
static void mapped(App *a) {
	enum { N = 100000 };
	Buffer from = make_buffer(a, N * 4, STORAGE, COHERENT), to = make_buffer(a, N * 4, STORAGE, COHERENT);
	Compute c = make_compute(a, mix_comp, sizeof mix_comp, from.buffer, to.buffer);
	uint32_t *in = map(a, &from), *out = map(a, &to);
	for (uint32_t rounds = 1; rounds <= 5; rounds++) {
		for (uint32_t i = 0; i < N; i++)
			in[i] = i * 2654435761u + rounds;
		VkCommandBuffer cb = begin(a);
		dispatch(cb, &c, rounds, (N + 63) / 64);
		finish(a, cb);
		verify(in, out, N, rounds);
	}
	drop_compute(a, &c);
	drop_buffer(a, &from);
	drop_buffer(a, &to);
}

// Device-local buffers, filled and read through staging, one command buffer
// with a pipeline of dispatches: there and back.
static void staged(App *a) {
	enum { N = 1 << 18 };
	Buffer host = make_buffer(a, N * 4, STORAGE, COHERENT);
	Buffer from = make_buffer(a, N * 4, STORAGE, LOCAL), to = make_buffer(a, N * 4, STORAGE, LOCAL);
	Compute there = make_compute(a, mix_comp, sizeof mix_comp, from.buffer, to.buffer);
	Compute back = make_compute(a, mix_comp, sizeof mix_comp, to.buffer, from.buffer);
	uint32_t *at = map(a, &host), *want = malloc(N * 4);
	for (uint32_t i = 0; i < N; i++)
		want[i] = mixed(mixed(at[i] = ~i * 40503, i, 3), i, 4);
	vkUnmapMemory(a->device, host.memory);
	VkCommandBuffer cb = begin(a);
	VkBufferCopy all = {.size = N * 4};
	vkCmdCopyBuffer(cb, host.buffer, from.buffer, 1, &all);
	barrier(cb);
	dispatch(cb, &there, 3, N / 64);
	barrier(cb);
	dispatch(cb, &back, 4, N / 64);
	barrier(cb);
	vkCmdCopyBuffer(cb, from.buffer, host.buffer, 1, &all);
	finish(a, cb);
	at = map(a, &host);
	CHECK(memcmp(at, want, N * 4) == 0);
	printf("sum %016llx\n", (unsigned long long)sum(at, N * 4));
	free(want);
	drop_compute(a, &there);
	drop_compute(a, &back);
	drop_buffer(a, &host);
	drop_buffer(a, &from);
	drop_buffer(a, &to);
}

// Replies stay in step when a shader of 400 KB goes by.
static void large_shader(App *a) {
	size_t size = 400 << 10;
	uint32_t *code = malloc(size), n = sizeof mix_comp / 4;
	memcpy(code, mix_comp, sizeof mix_comp);
	// Debug text of any length may follow the last OpName.
	uint32_t at = 5, last = 0;
	while (at < n) {
		if ((code[at] & 0xffff) == 5 || (code[at] & 0xffff) == 6) // OpName, OpMemberName
			last = at + (code[at] >> 16);
		at += code[at] >> 16;
	}
	CHECK(last > 0);
	uint32_t added = size / 4 - n, *to = code + last;
	memmove(to + added, to, (n - last) * 4);
	for (uint32_t left = added; left > 0;) {
		uint32_t words = left > 60002 ? 60000 : left; // no remainder of one word
		memset(to, 'a', words * 4);
		to[0] = words << 16 | 330; // OpModuleProcessed
		to[words - 1] = 0;
		to += words, left -= words;
	}
	Buffer from = make_buffer(a, 4096, STORAGE, COHERENT), out = make_buffer(a, 4096, STORAGE, COHERENT);
	for (int i = 0; i < 3; i++) {
		VkFence fence = make_fence(a);
		Compute c = make_compute(a, code, size, from.buffer, out.buffer);
		VkResult r = vkGetFenceStatus(a->device, fence);
		printf("unsignalled fence: %s\n", r == VK_NOT_READY ? "not ready" : "signalled");
		drop_compute(a, &c);
		vkDestroyFence(a->device, fence, NULL);
	}
	drop_buffer(a, &from);
	drop_buffer(a, &out);
	free(code);
}

// A mistake that does no harm, for a validation layer to find: the buffer was
// not made for being filled.
static void misuse(App *a) {
	Buffer b = make_buffer(a, 4096, VK_BUFFER_USAGE_STORAGE_BUFFER_BIT, LOCAL);
	VkCommandBuffer cb = begin(a);
	vkCmdFillBuffer(cb, b.buffer, 0, VK_WHOLE_SIZE, 0);
	finish(a, cb);
	drop_buffer(a, &b);
}

int main(int argc, char **argv) {
	App a = open_app();
	const char *name = argc > 1 ? argv[1] : "";
	if (!strcmp(name, "mapped"))
		mapped(&a);
	else if (!strcmp(name, "staged"))
		staged(&a);
	else if (!strcmp(name, "large-shader"))
		large_shader(&a);
	else if (!strcmp(name, "misuse"))
		misuse(&a);
	else
		FAIL("cases: mapped, staged, large-shader, misuse");
	close_app(&a);
	return 0;
}
