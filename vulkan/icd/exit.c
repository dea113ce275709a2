// SPDX-License-Identifier: Apache-2.0

// What is to be done when the process ends, as the Go runtime does not hear of
// that.

#include "entry.h"

#include <stdlib.h>

#pragma GCC visibility push(hidden)
void memspanAtExit(void);
#pragma GCC visibility pop

extern void memspanEnded(void);

static void ended(void) { unlessForked(memspanEnded); }

void memspanAtExit(void) { atexit(ended); }
