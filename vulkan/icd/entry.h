// SPDX-License-Identifier: Apache-2.0

// The library's table of commands, and how it is searched.

#ifndef MEMSPAN_ENTRY_H
#define MEMSPAN_ENTRY_H

#include <stddef.h>
#include <stdint.h>

// Nothing here is a symbol of the library, however it is linked: the loader's
// vkGetInstanceProcAddr must not be taken for this one.
#pragma GCC visibility push(hidden)

typedef void (*procedure)(void);

// Whom a command is called on.
enum level { GLOBAL, INSTANCE, PHYSICAL_DEVICE, DEVICE };

struct entry {
	const char *name;
	procedure function;
	unsigned char level; // enum level
	unsigned char core;  // of Vulkan 1.0, which every device has
};

// Generated; in the order of the names, as strcmp has it.
extern const struct entry entries[];
extern const size_t entryCount;

// The Go side: runs the command with that index in registry.Commands.
typedef unsigned long long (*carrier)(unsigned int command, uintptr_t args);
#pragma GCC visibility push(default)
extern unsigned long long memspanCall(unsigned int command, uintptr_t args);
#pragma GCC visibility pop

// Generated: the name by which another copy of this very library finds
// memspanCall, with a sum of what the commands are.
extern const char carrierName[];

// Call the Go side, but in a forked process: child.c. begun is for commands on
// no object.
unsigned long long carried(unsigned int command, uintptr_t args);
unsigned long long begun(unsigned int command, uintptr_t args);

// Calls f, but in a forked process.
void unlessForked(void (*f)(void));

// Whether a device has the command of that name (it is of the version that has
// it, or the extension is enabled): the Go side knows.
int deviceHas(void *device, const char *name);

// Answered in C, as they are asked for every command at start-up.
procedure vkGetInstanceProcAddr(void *instance, const char *name);
procedure vkGetDeviceProcAddr(void *device, const char *name);

#pragma GCC visibility pop

#endif
