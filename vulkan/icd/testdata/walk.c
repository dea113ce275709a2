// SPDX-License-Identifier: Apache-2.0

// Loads a driver library as the loader does and asks for the functions whose
// names come on standard input, each behind the letter of what it is called on:
// g(lobal), i(nstance), p(hysical device), d(evice) or e (a device, and an
// extension's). Says what is not as it should be.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef void (*procedure)(void);
typedef procedure (*get)(void *, const char *);

static int bad;

static void expect(int ok, const char *what, const char *name) {
	if (ok) return;
	printf("%s: %s\n", name, what);
	bad = 1;
}

int main(int argc, char **argv) {
	int fake, walked = 0;
	char kind, name[256];
	void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
	if (library == NULL) {
		printf("dlopen: %s\n", dlerror());
		return 1;
	}
	int32_t (*negotiate)(uint32_t *) = (int32_t (*)(uint32_t *))dlsym(library, "vk_icdNegotiateLoaderICDInterfaceVersion");
	get instance = (get)dlsym(library, "vk_icdGetInstanceProcAddr");
	get physical = (get)dlsym(library, "vk_icdGetPhysicalDeviceProcAddr");
	if (negotiate == NULL || instance == NULL || physical == NULL) {
		printf("the three exported functions are not there\n");
		return 1;
	}
	for (uint32_t asked = 0; asked < 12; asked++) {
		uint32_t got = asked;
		int32_t result = negotiate(&got);
		snprintf(name, sizeof name, "interface version %u", asked);
		if (asked < 5) expect(result == -9, "not refused", name);
		else expect(result == 0 && got == (asked < 7 ? asked : 7), "wrong answer", name);
	}
	get device = (get)instance(&fake, "vkGetDeviceProcAddr");
	expect(device != NULL, "missing", "vkGetDeviceProcAddr");
	if (device == NULL) return 1;
	while (scanf(" %c %255s", &kind, name) == 2) {
		walked++;
		expect(instance(&fake, name) != NULL, "no function for an instance", name);
		expect((instance(NULL, name) != NULL) == (kind == 'g'), "wrong without an instance", name);
		expect((physical(&fake, name) != NULL) == (kind == 'p'), "wrong for physical devices", name);
		if (kind != 'e') // else the Go side decides
			expect((device(&fake, name) != NULL) == (kind == 'd'), "wrong for a device", name);
	}
	static const char *const none[] = {"", "vk", "vkCreateBuffe", "vkCreateBufferX", "vkCreateSwapchainKHR", "vkZ", "zz", "A", "vk_icdNothing"};
	for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
		expect(instance(&fake, none[i]) == NULL, "is there", none[i]);
		expect(device(&fake, none[i]) == NULL, "is there", none[i]);
		expect(physical(&fake, none[i]) == NULL, "is there", none[i]);
	}
	expect(instance(&fake, NULL) == NULL, "is there", "NULL");
	expect(instance(NULL, "vk_icdGetPhysicalDeviceProcAddr") == (procedure)physical, "missing", "vk_icdGetPhysicalDeviceProcAddr");
	expect(instance(NULL, "vk_icdNegotiateLoaderICDInterfaceVersion") == (procedure)negotiate, "missing", "vk_icdNegotiate…");
	printf("%d walked\n", walked);
	return bad;
}
