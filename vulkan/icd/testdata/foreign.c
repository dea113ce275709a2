// SPDX-License-Identifier: Apache-2.0

// A program that has signal handlers, pipes, children and threads of its own,
// and loads a driver library: argv[1]. argv[2] says what it does with them; it
// prints "good" if all is as it should be.

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void (*procedure)(void);
typedef procedure (*get)(void *, const char *);

static void *library;
static get find;
static const char *path;

static void load(void) {
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (library == NULL) {
		printf("dlopen: %s\n", dlerror());
		exit(1);
	}
	find = (get)dlsym(library, "vk_icdGetInstanceProcAddr");
}

// call runs Go code on the calling thread.
static int call(void) {
	int32_t (*version)(uint32_t *) = (int32_t (*)(uint32_t *))find(NULL, "vkEnumerateInstanceVersion");
	uint32_t v;
	return version != NULL && version(&v) == -3; // as testdata/library answers
}

static void require(int ok, const char *what) {
	if (ok) return;
	printf("%s\n", what);
	exit(1);
}

static sigjmp_buf back;
static volatile sig_atomic_t caught[65];

static void handler(int signal, siginfo_t *info, void *context) {
	(void)info, (void)context;
	caught[signal]++;
	if (signal == SIGSEGV || signal == SIGBUS) siglongjmp(back, 1);
}

static void install(int signal) {
	struct sigaction a;
	memset(&a, 0, sizeof a);
	a.sa_sigaction = handler;
	a.sa_flags = SA_SIGINFO | SA_ONSTACK;
	sigaction(signal, &a, NULL);
}

static void fault(int signal) {
	int before = caught[signal];
	if (signal == SIGBUS) { // a mapping beyond its file's end
		FILE *f = tmpfile();
		volatile char *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fileno(f), 0);
		if (sigsetjmp(back, 1) == 0) (void)*p;
		munmap((void *)p, 4096);
		fclose(f);
	} else if (sigsetjmp(back, 1) == 0) {
		*(volatile int *)8 = 1;
	}
	require(caught[signal] == before + 1, "the program's handler was not called");
}

// Handlers from before and after loading work, and only those that Go needs are
// replaced.
static void handlers(void) {
	static const int all[] = {SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGCHLD, SIGWINCH, SIGIO, SIGPROF};
	install(SIGSEGV), install(SIGBUS);
	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) install(all[i]);
	load();
	require(call(), "the call failed");
	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		struct sigaction a;
		sigaction(all[i], NULL, &a);
		if (a.sa_sigaction == handler || all[i] == SIGILL || all[i] == SIGTRAP) continue;
		printf("the handler of signal %d was replaced\n", all[i]);
		exit(1);
	}
	for (int round = 0; round < 3; round++) {
		fault(SIGSEGV), fault(SIGBUS);
		raise(SIGUSR1), raise(SIGTERM);
		require(call(), "a call after a fault failed");
	}
	install(SIGSEGV), install(SIGBUS); // as JVMs do, late
	fault(SIGSEGV), fault(SIGBUS);
	require(call() && caught[SIGUSR1] == 3 && caught[SIGTERM] == 3, "signals were lost");
}

static void breakPipe(void) {
	int ends[2];
	require(pipe(ends) == 0, "pipe");
	close(ends[0]);
	errno = 0;
	require(write(ends[1], "x", 1) == -1 && errno == EPIPE, "a broken pipe took a byte");
	close(ends[1]);
}

// A broken pipe of the program's own is what it says it is.
static void pipes(void) {
	signal(SIGPIPE, SIG_IGN);
	load();
	require(call(), "the call failed");
	breakPipe(); // ignored
	install(SIGPIPE);
	breakPipe();
	require(caught[SIGPIPE] == 1, "the handler was not called");
}

// By default it ends the process.
static void pipeDefault(void) {
	load();
	require(call(), "the call failed");
	breakPipe();
}

static void children(void) {
	load();
	for (int i = 0; i < 50; i++) {
		require(call(), "the call failed");
		int status;
		pid_t child = fork();
		if (child == 0) {
			if (i % 2) _exit(7);
			execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL);
			_exit(1);
		}
		require(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, "a child failed");
	}
	FILE *f = popen("echo from a shell", "r");
	char line[64] = "";
	require(f != NULL && fgets(line, sizeof line, f) != NULL && strcmp(line, "from a shell\n") == 0 && pclose(f) == 0, "popen");
}

// The library may be given back, and loaded again.
static void again(void) {
	for (int i = 0; i < 5; i++) {
		load();
		require(call(), "the call failed");
		require(dlclose(library) == 0, "dlclose");
	}
	usleep(1000); // Go's own threads are there
	load();
	require(call(), "the call failed");
}

static void *thread(void *unused) {
	(void)unused;
	for (int i = 0; i < 20; i++)
		if (!call()) return (void *)1;
	return NULL;
}

// Threads call it and end.
static void threads(void) {
	load();
	for (int round = 0; round < 20; round++) {
		pthread_t all[8];
		for (int i = 0; i < 8; i++) require(pthread_create(&all[i], NULL, thread, NULL) == 0, "thread");
		for (int i = 0; i < 8; i++) {
			void *failed;
			pthread_join(all[i], &failed);
			require(failed == NULL, "the call failed on a thread");
		}
	}
}

static void deep(int signal) {
	volatile char much[64 << 10];
	for (size_t i = 0; i < sizeof much; i += 64) much[i] = (char)signal;
	caught[signal]++;
}

static void *caller(void *ended) {
	while (!*(volatile int *)ended)
		if (!call()) return (void *)1;
	return NULL;
}

// Signals that come while a thread is in the library, and at any of its own
// threads, do no harm, though their handlers were installed late and know
// nothing of other stacks.
static void late(void) {
	load();
	require(call(), "the call failed");
	signal(SIGALRM, deep); // without SA_ONSTACK
	struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
	volatile int ended = 0;
	pthread_t other;
	require(pthread_create(&other, NULL, caller, (void *)&ended) == 0, "thread");
	setitimer(ITIMER_REAL, &often, NULL);
	while (caught[SIGALRM] < 5000) require(call(), "the call failed");
	setitimer(ITIMER_REAL, &never, NULL);
	ended = 1;
	void *failed;
	pthread_join(other, &failed);
	require(failed == NULL, "the call failed on a thread");
}

// The program's signals are for its own threads, and its limits are as they were.
static void own(void) {
	struct rlimit before = {256, 1024}, now;
	require(setrlimit(RLIMIT_NOFILE, &before) == 0, "setrlimit");
	load();
	require(call(), "the call failed");
	require(getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == 256 && now.rlim_max == 1024, "the limit of open files was changed");
	DIR *tasks = opendir("/proc/self/task");
	int others = 0;
	for (struct dirent *d; (d = readdir(tasks)) != NULL;) {
		char name[300], line[256];
		unsigned long long blocked = 0;
		snprintf(name, sizeof name, "/proc/self/task/%s/status", d->d_name);
		FILE *f = d->d_name[0] == '.' ? NULL : fopen(name, "r");
		if (f == NULL) continue;
		while (fgets(line, sizeof line, f) != NULL)
			if (sscanf(line, "SigBlk: %llx", &blocked) == 1) break;
		fclose(f);
		unsigned long long bits = 1ull << (SIGALRM - 1) | 1ull << (SIGTERM - 1) | 1ull << (SIGUSR1 - 1);
		int mine = atoi(d->d_name) == getpid();
		require((blocked & bits) == (mine ? 0 : bits), mine ? "the program's own mask was changed" : "a thread of the library takes the program's signals");
		others += !mine;
	}
	closedir(tasks);
	require(others > 0, "the library has no thread");
}

static void crash(void) {
	load();
	require(call(), "the call failed");
	*(volatile int *)8 = 1;
}

static void leave(void) {
	load();
	require(call(), "the call failed");
}

int main(int argc, char **argv) {
	static const struct { const char *name; void (*run)(void); } modes[] = {
		{"handlers", handlers}, {"pipes", pipes}, {"pipe by default", pipeDefault}, {"children", children},
		{"again", again}, {"threads", threads}, {"crash", crash}, {"exit", leave}, {"late handlers", late}, {"own", own},
	};
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc != 3) return 2;
	path = argv[1];
	for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
		if (strcmp(argv[2], modes[i].name) == 0) {
			modes[i].run();
			printf("good\n");
			return 0;
		}
	return 2;
}
