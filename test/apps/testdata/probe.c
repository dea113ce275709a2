// SPDX-License-Identifier: Apache-2.0
//
// A Vulkan driver that offers nothing. When it is loaded it tries what a worker
// must not be able to do and writes what it got to the file PROBE_ANSWER.

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void tell(int answer, const char *what, long result) {
	dprintf(answer, "%s: %s\n", what, result < 0 ? strerror(errno) : "done");
}

__attribute__((constructor)) static void probe(void) {
	const char *file = getenv("PROBE_FILE"), *path = getenv("PROBE_ANSWER");
	if (!file || !path || !getenv("MEMSPAN_WORKER"))
		return;
	int answer = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (answer < 0)
		return;
	tell(answer, "open", open(file, O_RDONLY));
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strncpy(address.sun_path, getenv("PROBE_SOCKET"), sizeof address.sun_path - 1);
	tell(answer, "connect", connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address));
	tell(answer, "socket", socket(AF_INET, SOCK_STREAM, 0));
	tell(answer, "trace", ptrace(PTRACE_ATTACH, getppid(), 0, 0));
	close(answer);
}

int vk_icdNegotiateLoaderICDInterfaceVersion(unsigned *version) {
	(void)version;
	return -9; // VK_ERROR_INCOMPATIBLE_DRIVER
}

void *vk_icdGetInstanceProcAddr(void *instance, const char *name) {
	(void)instance, (void)name;
	return NULL;
}
