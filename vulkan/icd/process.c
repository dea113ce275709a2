// SPDX-License-Identifier: Apache-2.0

// What the Go runtime takes from a process that it is loaded into, and gives
// back here.

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/resource.h>

#pragma GCC visibility push(hidden)
void memspanFewFiles(void);
#pragma GCC visibility pop

static sigset_t mask;
static struct rlimit files;

// before runs before the runtime's own constructor, which starts its first
// thread; all others have the signal mask that it gets. Signals to the process
// are for the application's threads: on one of Go's, their handlers would run
// on a goroutine's stack. What faults raise, and how the runtime interrupts its
// threads, stays; so do SIGCHLD and SIGPROF, which it lets through whatever the
// mask says: its threads get them only if all of the application's block them.
__attribute__((constructor(101))) static void before(void) {
	static const int kept[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP, SIGURG};
	sigset_t held;
	sigfillset(&held);
	for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) sigdelset(&held, kept[i]);
	pthread_sigmask(SIG_BLOCK, &held, &mask);
	getrlimit(RLIMIT_NOFILE, &files);
}

// after runs after it: the linker puts what has no priority in the order of the
// objects, and Go's is the first.
__attribute__((constructor)) static void after(void) { pthread_sigmask(SIG_SETMASK, &mask, NULL); }

// memspanFewFiles gives the limit on open files back that was there before: the
// runtime has made it one less than the hard limit. Unless the application has
// set another one since.
void memspanFewFiles(void) {
	struct rlimit now;
	if (getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == now.rlim_max - 1 && now.rlim_max == files.rlim_max)
		setrlimit(RLIMIT_NOFILE, &files);
}
