// SPDX-License-Identifier: Apache-2.0
//
// What applications may do with mapped memory. The argument names the case.

#include "app.h"
#include <fcntl.h>

// fill has the device write words: every one of n from offset on, stride bytes
// apart.
static VkCommandBuffer fill(App *a, Buffer *b, VkDeviceSize offset, VkDeviceSize stride, int n, uint32_t word) {
	VkCommandBuffer cb = begin(a);
	for (int i = 0; i < n; i++)
		vkCmdFillBuffer(cb, b->buffer, offset + i * stride, 4, word);
	return cb;
}

// Host and device write bytes of the same pages, for ever mapped: both survive.
static void both_sides(App *a) {
	enum { SIZE = 16384 };
	Buffer b = make_buffer(a, SIZE, COPY, COHERENT);
	uint8_t *at = map(a, &b), want[SIZE] = {0};
	memset(at, 0, SIZE);
	for (uint32_t round = 1; round <= 50; round++) {
		uint32_t word = round * 0x01010101;
		for (int i = 0; i < SIZE; i += 16)
			memcpy(want + i, &word, 4);
		VkCommandBuffer cb = fill(a, &b, 0, 16, SIZE / 16, word);
		for (int i = 0; i < SIZE; i += 16) // before the device has them
			at[i + 5] = want[i + 5] = round * 3;
		OK(vkEndCommandBuffer(cb));
		VkFence fence = make_fence(a);
		submit(a, cb, fence);
		for (int i = 0; i < SIZE; i += 16) // while it works
			at[i + 9] = want[i + 9] = round * 7;
		OK(vkWaitForFences(a->device, 1, &fence, VK_TRUE, UINT64_MAX));
		for (int i = 0; i < SIZE; i++)
			if (at[i] != want[i])
				FAIL("round %u, byte %d: %02x, want %02x", round, i, at[i], want[i]);
		vkDestroyFence(a->device, fence, NULL);
		vkFreeCommandBuffers(a->device, a->pool, 1, &cb);
	}
	// And what the device has is what the host sees.
	Buffer copied = make_buffer(a, SIZE, COPY, COHERENT);
	copy(a, &b, &copied);
	CHECK(memcmp(map(a, &copied), want, SIZE) == 0);
	printf("sum %016llx\n", (unsigned long long)sum(at, SIZE));
	drop_buffer(a, &copied);
	drop_buffer(a, &b);
}

// The kernel writes into mapped memory.
static void read_into(App *a) {
	enum { SIZE = 3 << 20 };
	Buffer b = make_buffer(a, SIZE, COPY, COHERENT), copied = make_buffer(a, SIZE, COPY, COHERENT);
	uint8_t *at = map(a, &b);
	char name[] = "/tmp/memspan-app-XXXXXX";
	int fd = mkstemp(name);
	CHECK(fd >= 0 && unlink(name) == 0);
	for (int round = 1; round <= 3; round++) {
		uint8_t *bytes = malloc(SIZE);
		for (int i = 0; i < SIZE; i++)
			bytes[i] = i * 31 / 7 + round;
		CHECK(pwrite(fd, bytes, SIZE, 0) == SIZE);
		for (ssize_t n, got = 0; got < SIZE; got += n)
			if ((n = pread(fd, at + got, SIZE - got, got)) <= 0)
				FAIL("read into mapped memory: %s", strerror(errno));
		copy(a, &b, &copied);
		CHECK(memcmp(map(a, &copied), bytes, SIZE) == 0);
		vkUnmapMemory(a->device, copied.memory);
		free(bytes);
	}
	printf("read\n");
	close(fd);
	drop_buffer(a, &copied);
	drop_buffer(a, &b);
}

typedef struct {
	uint8_t *at;
	int size, stop;
	uint32_t count;
} Writer;

// Writes the odd halves of all 8-byte groups, over and over.
static void *write_on(void *argument) {
	Writer *w = argument;
	while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
		uint32_t count = w->count + 1;
		for (int i = 4; i < w->size; i += 8)
			__atomic_store_n((uint32_t *)(w->at + i), count ^ i, __ATOMIC_RELAXED);
		__atomic_store_n(&w->count, count, __ATOMIC_RELAXED);
	}
	return NULL;
}

// A thread writes while others wait for the device, which writes beside it.
static void concurrent(App *a) {
	enum { SIZE = 256 << 10, ROUNDS = 40 };
	Buffer b = make_buffer(a, SIZE, COPY, COHERENT);
	Writer w = {.at = map(a, &b), .size = SIZE};
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, write_on, &w) == 0);
	while (__atomic_load_n(&w.count, __ATOMIC_RELAXED) == 0)
		usleep(100);
	for (uint32_t round = 1; round <= ROUNDS; round++) {
		finish(a, fill(a, &b, 0, 512, SIZE / 512, round));
		for (int i = 0; i < SIZE; i += 512)
			CHECK(*(uint32_t *)(w.at + i) == round);
	}
	__atomic_store_n(&w.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	for (int i = 4; i < SIZE; i += 8)
		if (*(uint32_t *)(w.at + i) != (w.count ^ i))
			FAIL("the host's word at %d is lost", i);
	Buffer copied = make_buffer(a, SIZE, COPY, COHERENT);
	copy(a, &b, &copied);
	CHECK(memcmp(map(a, &copied), w.at, SIZE) == 0);
	printf("all words there\n");
	drop_buffer(a, &copied);
	drop_buffer(a, &b);
}

// Flushes and invalidates in ranges, of memory that need not be coherent.
static void ranges(App *a) {
	enum { SIZE = 1 << 20 };
	VkDeviceSize atom = a->properties.limits.nonCoherentAtomSize;
	Buffer b = make_buffer(a, SIZE, COPY, VISIBLE), copied = make_buffer(a, SIZE, COPY, VISIBLE);
	int type = memory_type(a, ~0u, VISIBLE, VK_MEMORY_PROPERTY_HOST_COHERENT_BIT); // if there is any
	if (type >= 0) {
		VkMemoryRequirements need;
		vkGetBufferMemoryRequirements(a->device, b.buffer, &need);
		if (need.memoryTypeBits >> type & 1) {
			drop_buffer(a, &b);
			VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .size = SIZE, .usage = COPY};
			OK(vkCreateBuffer(a->device, &info, NULL, &b.buffer));
			VkMemoryAllocateInfo memory = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = need.size, .memoryTypeIndex = type};
			OK(vkAllocateMemory(a->device, &memory, NULL, &b.memory));
			OK(vkBindBufferMemory(a->device, b.buffer, b.memory, 0));
		}
	}
	uint8_t *at = map(a, &b), *want = calloc(1, SIZE), *got = map(a, &copied);
	VkMappedMemoryRange whole = {.sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE, .memory = b.memory, .size = VK_WHOLE_SIZE};
	VkMappedMemoryRange result = {.sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE, .memory = copied.memory, .size = VK_WHOLE_SIZE};
	memset(at, 0, SIZE);
	OK(vkFlushMappedMemoryRanges(a->device, 1, &whole));
	for (int round = 1; round <= 20; round++) {
		VkMappedMemoryRange list[8];
		for (int i = 0; i < 8; i++) { // parts of different lengths
			VkDeviceSize offset = i * (SIZE / 8), size = atom * (round + i);
			memset(at + offset, round * 8 + i, size);
			memset(want + offset, round * 8 + i, size);
			list[i] = whole;
			list[i].offset = offset, list[i].size = size;
		}
		list[7].size = VK_WHOLE_SIZE;
		OK(vkFlushMappedMemoryRanges(a->device, 8, list));
		copy(a, &b, &copied);
		OK(vkInvalidateMappedMemoryRanges(a->device, 1, &result));
		CHECK(memcmp(got, want, SIZE) == 0);
		// The other way: the device writes, ranges of it are taken in.
		VkDeviceSize middle = SIZE / 2;
		finish(a, fill(a, &b, middle, 4, 64, round));
		VkMappedMemoryRange part = whole;
		part.offset = middle, part.size = (256 + atom - 1) / atom * atom;
		OK(vkInvalidateMappedMemoryRanges(a->device, 1, &part));
		for (int i = 0; i < 64; i++) {
			CHECK(((uint32_t *)(at + middle))[i] == (uint32_t)round);
			((uint32_t *)(want + middle))[i] = round;
		}
	}
	printf("sum %016llx\n", (unsigned long long)sum(got, SIZE));
	free(want);
	drop_buffer(a, &b);
	drop_buffer(a, &copied);
}

// Maps parts: what lies outside stays; pointers begin where they should.
static void parts(App *a) {
	enum { SIZE = 1 << 20, AT = 3 * 4096 + 64 };
	Buffer b = make_buffer(a, SIZE, COPY, COHERENT), copied = make_buffer(a, SIZE, COPY, COHERENT);
	finish(a, fill(a, &b, 0, 4096, SIZE / 4096, 0x55555555));
	uint8_t *at;
	OK(vkMapMemory(a->device, b.memory, AT, VK_WHOLE_SIZE, 0, (void **)&at));
	CHECK(((uintptr_t)at - AT) % a->properties.limits.minMemoryMapAlignment == 0);
	CHECK(*(uint32_t *)(at - AT + 4 * 4096) == 0x55555555); // the fourth page's
	memset(at, 1, 100);
	vkUnmapMemory(a->device, b.memory);
	OK(vkMapMemory(a->device, b.memory, AT + 50, 4, 0, (void **)&at));
	CHECK(at[0] == 1 && at[3] == 1);
	memset(at, 2, 4);
	vkUnmapMemory(a->device, b.memory);
	copy(a, &b, &copied);
	uint8_t *got = map(a, &copied);
	for (int i = 0; i < SIZE; i += 4096)
		CHECK(*(uint32_t *)(got + i) == 0x55555555);
	for (int i = 0; i < 100; i++)
		CHECK(got[AT + i] == (i >= 50 && i < 54 ? 2 : 1));
	vkUnmapMemory(a->device, copied.memory);
	// 64 times mapped and unmapped without a leak.
	for (int i = 0; i < 64; i++) {
		*(uint8_t *)map(a, &b) = i;
		vkUnmapMemory(a->device, b.memory);
	}
	copy(a, &b, &copied);
	CHECK(*(uint8_t *)map(a, &copied) == 63);
	printf("parts right\n");
	drop_buffer(a, &b);
	drop_buffer(a, &copied);
}

static int mappings(void) {
	int n = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	for (int c; (c = fgetc(f)) != EOF;)
		n += c == '\n';
	fclose(f);
	return n;
}

// 65,536 dirty pages none of which is next to another. The kernel's limit of
// mappings is 65,530.
static void isolated(App *a) {
	const VkDeviceSize size = 512 << 20;
	enum { N = 1 << 16 };
	Buffer b = make_buffer(a, size, COPY, COHERENT), gathered = make_buffer(a, N * 4, COPY, COHERENT);
	uint8_t *at = map(a, &b);
	uint32_t *got = map(a, &gathered);
	VkBufferCopy *list = calloc(N, sizeof *list);
	int before = 0;
	for (uint32_t round = 1; round <= 2; round++) {
		for (uint32_t i = 0; i < N; i++) {
			list[i] = (VkBufferCopy){i * 8192ull + 4 * (i % 1024), i * 4, 4};
			*(uint32_t *)(at + list[i].srcOffset) = i * 2654435761u + round;
		}
		VkCommandBuffer cb = begin(a);
		vkCmdCopyBuffer(cb, b.buffer, gathered.buffer, N, list);
		finish(a, cb);
		for (uint32_t i = 0; i < N; i++)
			CHECK(got[i] == i * 2654435761u + round);
		if (round == 1)
			before = mappings();
	}
	CHECK(mappings() < before + 100 && before < 1000);
	printf("%d pages right\n", N);
	free(list);
	drop_buffer(a, &b);
	drop_buffer(a, &gathered);
}

// The device changes memory of more than 16 MiB, of which the host has a page
// of its own changed: all of it is there after the wait.
static void large(App *a) {
	const VkDeviceSize size = 40 << 20;
	Buffer b = make_buffer(a, size, COPY, COHERENT);
	uint8_t *at = map(a, &b);
	for (uint32_t round = 1; round <= 3; round++) {
		VkCommandBuffer cb = begin(a);
		vkCmdFillBuffer(cb, b.buffer, 0, size / 2, round);
		OK(vkEndCommandBuffer(cb));
		VkFence fence = make_fence(a);
		submit(a, cb, fence);
		at[size - 100] = round; // a dirty page, in the half that is the host's
		OK(vkWaitForFences(a->device, 1, &fence, VK_TRUE, UINT64_MAX));
		for (VkDeviceSize i = 0; i < size / 2; i += 4)
			CHECK(*(uint32_t *)(at + i) == round);
		CHECK(at[size - 100] == round);
		vkDestroyFence(a->device, fence, NULL);
		vkFreeCommandBuffers(a->device, a->pool, 1, &cb);
	}
	printf("%llu bytes right\n", (unsigned long long)size);
	drop_buffer(a, &b);
}

// Memory that the host cannot see is not mapped.
static void invisible(App *a) {
	int type = memory_type(a, ~0u, 0, VISIBLE), seen = 0;
	if (type >= 0) {
		VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = 4096, .memoryTypeIndex = type};
		VkDeviceMemory memory;
		OK(vkAllocateMemory(a->device, &info, NULL, &memory));
		void *at;
		VkResult r = vkMapMemory(a->device, memory, 0, VK_WHOLE_SIZE, 0, &at);
		if (r != VK_ERROR_MEMORY_MAP_FAILED)
			FAIL("mapping invisible memory: VkResult %d", r);
		vkFreeMemory(a->device, memory, NULL);
		seen = 1;
	}
	printf(seen ? "refused\n" : "the host sees all memory\n");
}

// A buffer that no device has room for is refused, and the application goes on
// with a smaller one.
static void refused(App *a) {
	enum { N = 1 << 16 };
	for (int bits = 62; bits >= 40; bits -= 2) {
		VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .size = (VkDeviceSize)1 << bits, .usage = COPY};
		VkBuffer none;
		printf("a buffer of 2^%d bytes: VkResult %d\n", bits, vkCreateBuffer(a->device, &info, NULL, &none));
	}
	Buffer from = make_buffer(a, N * 4, COPY, COHERENT), to = make_buffer(a, N * 4, COPY, COHERENT);
	memset(map(a, &from), 7, N * 4);
	copy(a, &from, &to);
	printf("then %016llx\n", (unsigned long long)sum(map(a, &to), N * 4));
	drop_buffer(a, &from);
	drop_buffer(a, &to);
}

static long resident_pages(void) {
	long pages = -1;
	FILE *f = fopen("/proc/self/statm", "r");
	CHECK(fscanf(f, "%*d %ld", &pages) == 1);
	fclose(f);
	return pages;
}

// What was mapped is given back, unmapped before or not.
static void freed(App *a) {
	const VkDeviceSize size = 8 << 20;
	long pages = 0;
	int places = 0;
	for (int i = 0; i < 24; i++) {
		Buffer b = make_buffer(a, size, COPY, COHERENT);
		memset(map(a, &b), i, size);
		if (i % 2)
			vkUnmapMemory(a->device, b.memory);
		finish(a, begin(a));
		drop_buffer(a, &b);
		if (i == 7)
			pages = resident_pages(), places = mappings();
	}
	if (resident_pages() > pages + (long)(3 * size / 4096) || mappings() > places + 30)
		FAIL("%ld pages are resident, %d places mapped; %ld, %d before", resident_pages(), mappings(), pages, places);
	printf("given back\n");
}

int main(int argc, char **argv) {
	const Case cases[] = {{"both-sides", both_sides}, {"read-into", read_into}, {"concurrent", concurrent}, {"ranges", ranges},
		{"parts", parts}, {"isolated", isolated}, {"large", large}, {"invisible", invisible}, {"freed", freed}, {"refused", refused}};
	return run_case(argc, argv, cases, sizeof cases / sizeof *cases);
}
