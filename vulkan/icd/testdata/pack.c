// SPDX-License-Identifier: Apache-2.0

// Calls some functions through the trampolines, with a Go side that notes what
// it is given, and prints that.

#include "../entry.h"

#include <stdio.h>
#include <string.h>

static uint64_t words[16];
static unsigned int called;

unsigned long long memspanCall(unsigned int command, uintptr_t args) {
	called = command;
	memcpy(words, (void *)args, sizeof words);
	return 0xfffffffffffffffcull; // VK_ERROR_DEVICE_LOST, or a large address
}

static void say(const char *name, int n, long long result) {
	printf("%s %u %lld", name, called, result);
	for (int i = 0; i < n; i++) printf(" %llx", (unsigned long long)words[i]);
	printf("\n");
}

int main(void) {
	void *object = (void *)0x1122334455667788;
#define GET(name) vkGetInstanceProcAddr(object, name)
	int32_t result = ((int32_t(*)(void *, uint64_t))GET("vkGetFenceStatus"))(object, 0xffffffff00000001);
	say("vkGetFenceStatus", 2, result);
	((void (*)(void *, float, float, float))GET("vkCmdSetDepthBias"))(object, 1.0f, -2.5f, 0.0f);
	say("vkCmdSetDepthBias", 4, 0);
	((void (*)(void *, uint32_t, uint32_t, uint32_t, int32_t, uint32_t))GET("vkCmdDrawIndexed"))(object, 0xffffffff, 2, 3, -7, 5);
	say("vkCmdDrawIndexed", 6, 0);
	uint64_t address = ((uint64_t(*)(void *, void *))GET("vkGetBufferDeviceAddressKHR"))(object, object);
	say("vkGetBufferDeviceAddressKHR", 2, address);
	((void (*)(void *, uint32_t, uint32_t, uint32_t, uint32_t, void *, uint32_t, void *, uint32_t, void *))GET("vkCmdPipelineBarrier"))(
		object, 1, 2, 3, 4, object, 6, object, 8, object);
	say("vkCmdPipelineBarrier", 10, 0);
	((void (*)(void *, uint64_t, uint64_t, uint64_t, uint32_t))GET("vkCmdFillBuffer"))(object, 1, 0xffffffffffffffff, 3, 0x80000000);
	say("vkCmdFillBuffer", 5, 0);
	return 0;
}
