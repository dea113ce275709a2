// SPDX-License-Identifier: Apache-2.0
//
// A timer's signals come while the device is used. Their handler is an old
// program's: installed when the driver is there already, on no stack of its own,
// which it needs much of.

#include "app.h"
#include <signal.h>
#include <sys/time.h>

enum { SIZE = 1 << 20, ROUNDS = 100, TICKS = 500 };

static volatile sig_atomic_t ticks;

static void tick(int number) {
	volatile char room[64 << 10];
	for (size_t i = 0; i < sizeof room; i += 64)
		room[i] = number;
	ticks++;
}

int main(void) {
	App a = open_app();
	Buffer from = make_buffer(&a, SIZE, COPY, COHERENT), to = make_buffer(&a, SIZE, COPY, COHERENT);
	unsigned char *in = map(&a, &from), *out = map(&a, &to);
	signal(SIGALRM, tick);
	struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (int round = 0; round < ROUNDS || ticks < TICKS; round++) {
		memset(in, round, SIZE);
		copy(&a, &from, &to);
		for (int i = 0; i < SIZE; i++)
			CHECK(out[i] == (unsigned char)round);
		for (int i = 0; i < 50; i++) { // little calls, too
			VkFence fence = make_fence(&a);
			CHECK(vkGetFenceStatus(a.device, fence) == VK_NOT_READY);
			vkDestroyFence(a.device, fence, NULL);
		}
	}
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	printf("every copy right\n");
	drop_buffer(&a, &from);
	drop_buffer(&a, &to);
	close_app(&a);
	return 0;
}
