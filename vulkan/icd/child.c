// SPDX-License-Identifier: Apache-2.0

// What becomes of the driver in a process that was forked and went on without
// executing another program. Its only thread is the one that forked, and Go's
// runtime cannot live without the others; the connection is the parent's, which
// goes on using it. So nothing here calls Go any more. A child that wants a GPU
// of its own begins, as all do, with a command on no object: for it the library
// is loaded once more, as a copy, which has a runtime and a connection of its
// own. What the child has of its parent's is lost.

#define _GNU_SOURCE
#include "entry.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#define LOST 0xfffffffcull // VK_ERROR_DEVICE_LOST

static unsigned long long lost(unsigned int command, uintptr_t args) {
	(void)command, (void)args;
	return LOST;
}

static _Atomic(carrier) carry = memspanCall;
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static int forked;

static void child(void) {
	static const pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;
	loading = unlocked; // another thread of the parent's may have held it
	forked = 1;
	atomic_store(&carry, lost);
}

__attribute__((constructor)) static void watch(void) { pthread_atfork(NULL, NULL, child); }

// copied returns a file in memory with what the file at path holds, or -1.
static int copied(const char *path) {
	int from = open(path, O_RDONLY | O_CLOEXEC), to = memfd_create("libvulkan_memspan", MFD_CLOEXEC);
	ssize_t n = -1;
	while (from >= 0 && to >= 0 && ((n = sendfile(to, from, NULL, 1 << 20)) > 0 || (n < 0 && errno == EINTR)))
		;
	int error = errno;
	if (from >= 0) close(from);
	if (to >= 0 && n < 0) {
		close(to);
		to = -1;
	}
	errno = error;
	return to;
}

// load opens the library once more and returns the copy's Go side, or NULL. One
// that was built since has other commands, and another name for it.
static carrier load(void) {
	Dl_info library;
	char path[64];
	void *copy;
	procedure (*find)(void *, const char *);
	int file;
	if (dladdr((void *)&forked, &library) == 0 || library.dli_fname == NULL || (file = copied(library.dli_fname)) < 0) {
		fprintf(stderr, "memspan: no GPU for a forked process: copy the Vulkan driver: %s; execute a program instead\n", strerror(errno));
		return NULL;
	}
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	copy = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	close(file);
	if (copy == NULL) {
		fprintf(stderr, "memspan: no GPU for a forked process: load the Vulkan driver again: %s; execute a program instead\n", dlerror());
		return NULL;
	}
	find = (procedure(*)(void *, const char *))dlsym(copy, "vk_icdGetInstanceProcAddr");
	carrier found = find == NULL ? NULL : (carrier)find(NULL, carrierName);
	if (found == NULL) fprintf(stderr, "memspan: no GPU for a forked process: %s is not what it was; start the program again\n", library.dli_fname);
	return found;
}

unsigned long long carried(unsigned int command, uintptr_t args) {
	return atomic_load_explicit(&carry, memory_order_acquire)(command, args);
}

unsigned long long begun(unsigned int command, uintptr_t args) {
	if (forked && atomic_load_explicit(&carry, memory_order_acquire) == lost) {
		pthread_mutex_lock(&loading);
		if (atomic_load(&carry) == lost) {
			carrier found = load();
			if (found != NULL) atomic_store_explicit(&carry, found, memory_order_release);
		}
		pthread_mutex_unlock(&loading);
	}
	return carried(command, args);
}

void unlessForked(void (*f)(void)) {
	if (!forked) f();
}
