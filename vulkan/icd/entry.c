// SPDX-License-Identifier: Apache-2.0

// What the Vulkan loader asks of a driver: how to find its functions. Only the
// vk_icd… symbols are exported (exports.map), so that nothing of the library
// takes the place of an application's or the loader's own symbols.

#include "entry.h"

#include <stdlib.h>
#include <string.h>

// The versions of the loader's interface that are spoken. From 7 on the
// functions here must be found by name too.
#define OLDEST_INTERFACE 5
#define NEWEST_INTERFACE 7

#define SUCCESS 0
#define ERROR_INCOMPATIBLE_DRIVER (-9)

int32_t vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version);
procedure vk_icdGetInstanceProcAddr(void *instance, const char *name);
procedure vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name);

static const struct entry *find(const char *name) {
	size_t low = 0, high = entryCount;
	if (name == NULL) return NULL;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(name, entries[middle].name);
		if (order == 0) return &entries[middle];
		if (order < 0) high = middle;
		else low = middle + 1;
	}
	return NULL;
}

procedure vkGetInstanceProcAddr(void *instance, const char *name) {
	const struct entry *e = find(name);
	if (e == NULL || (instance == NULL && e->level != GLOBAL)) return NULL;
	return e->function;
}

procedure vkGetDeviceProcAddr(void *device, const char *name) {
	const struct entry *e = find(name);
	if (e == NULL || e->level != DEVICE) return NULL;
	if (!e->core && !deviceHas(device, name)) return NULL;
	return e->function;
}

int32_t vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
	// memspan's own workers use the real drivers: where this one is installed
	// for everybody it would call itself for ever.
	const char *worker = getenv("MEMSPAN_WORKER");
	if (worker != NULL && *worker != 0) return ERROR_INCOMPATIBLE_DRIVER;
	if (*version < OLDEST_INTERFACE) return ERROR_INCOMPATIBLE_DRIVER;
	if (*version > NEWEST_INTERFACE) *version = NEWEST_INTERFACE;
	return SUCCESS;
}

procedure vk_icdGetInstanceProcAddr(void *instance, const char *name) {
	if (name != NULL && strncmp(name, "vk_icd", 6) == 0) {
		if (strcmp(name, "vk_icdNegotiateLoaderICDInterfaceVersion") == 0)
			return (procedure)vk_icdNegotiateLoaderICDInterfaceVersion;
		if (strcmp(name, "vk_icdGetInstanceProcAddr") == 0)
			return (procedure)vk_icdGetInstanceProcAddr;
		if (strcmp(name, "vk_icdGetPhysicalDeviceProcAddr") == 0)
			return (procedure)vk_icdGetPhysicalDeviceProcAddr;
		if (strcmp(name, carrierName) == 0) return (procedure)memspanCall;
		return NULL;
	}
	return vkGetInstanceProcAddr(instance, name);
}

procedure vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
	const struct entry *e = find(name);
	(void)instance;
	return e != NULL && e->level == PHYSICAL_DEVICE ? e->function : NULL;
}
