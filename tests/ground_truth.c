/* A workload that knows what it did: rounds in which one thread holds up others on purpose.
 *
 * In each round the culprit starts an operation on a large range; a moment later a writer (mmap)
 * and a reader (/proc/self/cmdline) of the same lock come along, as the round's kind says. Nobody
 * else is active, so whoever waited for long waited because of the culprit. Each operation is
 * written down with its range and CLOCK_MONOTONIC before and after.
 *
 *   ground_truth SECONDS      prints its pid, waits for a line on stdin, works, prints one line an
 *                             operation: round kind actor tid operation address length begin end
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CULPRIT, WRITER, READER, ACTORS };
enum { MUNMAP, FORK, MPROTECT, FIXED, POPULATE, CONVOY, VMA_LOCK, KINDS };
static const char *kind_names[KINDS] = {"munmap",   "fork",   "mprotect", "fixed",
					"populate", "convoy", "vma-lock"};
static const size_t SMALL = 4096;
static const long DELAY_NS = 300 * 1000;
/* On a busy machine a round takes longer, and not each convoy comes about. */
enum { FEWEST = 10 * KINDS };

struct entry {
	int round, kind, actor, tid;
	const char *operation;
	uintptr_t address;
	size_t length;
	int64_t begin, end;
};

static struct entry entries[1 << 20];
static int n_entries;
static pthread_mutex_t entries_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t start_line, finish_line;
static struct { int round, kind, over; char *area; size_t length; void *small; } now;

static int64_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void pause_ns(long ns)
{
	struct timespec t = {0, ns};
	nanosleep(&t, NULL);
}

static void note(int actor, const char *operation, void *address, size_t length, int64_t begin,
		 int64_t end)
{
	pthread_mutex_lock(&entries_lock);
	if (n_entries < (int)(sizeof entries / sizeof *entries))
		entries[n_entries++] = (struct entry){now.round, now.kind, actor, (int)gettid(),
			operation, (uintptr_t)address, length, begin, end};
	pthread_mutex_unlock(&entries_lock);
}

static char *populated(size_t length)
{
	char *area = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED || madvise(area, length, MADV_NOHUGEPAGE))
		abort();
	for (size_t at = 0; at < length; at += SMALL)
		area[at] = 1;
	return area;
}

#define TIMED(actor, name, address, length, call)                                                  \
	do {                                                                                       \
		int64_t begin = clock_ns();                                                        \
		call;                                                                              \
		note(actor, name, address, length, begin, clock_ns());                             \
	} while (0)

static void culprit(void)
{
	char *area = now.area;
	size_t length = now.length;
	pid_t child;
	switch (now.kind) {
	case MUNMAP:
	case CONVOY:
		TIMED(CULPRIT, "munmap", area, length, munmap(area, length));
		break;
	case FORK:
		TIMED(CULPRIT, "clone", NULL, 0, child = fork());
		if (child == 0)
			_exit(0);
		waitpid(child, NULL, 0);
		break;
	case MPROTECT:
		TIMED(CULPRIT, "mprotect", area, length, mprotect(area, length, PROT_READ));
		break;
	case FIXED:
		TIMED(CULPRIT, "mmap", area, length,
		      mmap(area, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		break;
	case POPULATE:
		TIMED(CULPRIT, "mlock", area, length, mlock(area, length));
		break;
	case VMA_LOCK:
		TIMED(CULPRIT, "madvise", area, length, madvise(area, length, MADV_DONTNEED));
		break;
	}
}

static void writer(void)
{
	if (now.kind == VMA_LOCK) { /* it will take the mmap_lock and sleep on the VMA's */
		pause_ns(DELAY_NS);
		TIMED(WRITER, "mprotect", now.area, SMALL, mprotect(now.area, SMALL, PROT_READ));
		return;
	}
	pause_ns(DELAY_NS);
	int64_t begin = clock_ns();
	now.small = mmap(NULL, SMALL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	note(WRITER, "mmap", NULL, SMALL, begin, clock_ns());
}

/* Behind a shared holder a reader waits only where a writer is queued in front of it. */
static void reader(void)
{
	char line[64];
	if (now.kind == MUNMAP || now.kind == POPULATE)
		return;
	pause_ns(now.kind == CONVOY || now.kind == VMA_LOCK ? 3 * DELAY_NS : DELAY_NS);
	int64_t begin = clock_ns();
	int file = open("/proc/self/cmdline", O_RDONLY);
	if (read(file, line, sizeof line) < 0)
		abort();
	note(READER, "read", NULL, 0, begin, clock_ns());
	close(file);
}

static void *actor(void *which)
{
	static void (*const plays[ACTORS])(void) = {culprit, writer, reader};
	static const struct sched_param ahead = {.sched_priority = 1};
	if ((intptr_t)which != CULPRIT) /* who is to meet a holder comes in time on a busy machine, too */
		sched_setscheduler(0, SCHED_FIFO, &ahead);
	for (;;) {
		pthread_barrier_wait(&start_line);
		if (now.over)
			return NULL;
		plays[(intptr_t)which]();
		pthread_barrier_wait(&finish_line);
	}
}

int main(int argc, char **argv)
{
	pthread_t threads[ACTORS];
	double seconds = argc > 1 ? atof(argv[1]) : 5;
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	pthread_barrier_init(&start_line, NULL, ACTORS + 1);
	pthread_barrier_init(&finish_line, NULL, ACTORS + 1);
	for (intptr_t which = 0; which < ACTORS; which++)
		pthread_create(&threads[which], NULL, actor, (void *)which);
	printf("%d\n", getpid());
	fflush(stdout);
	getchar();
	int64_t until = clock_ns() + (int64_t)(seconds * 1e9);
	for (now.round = 0; clock_ns() < until || now.round < FEWEST; now.round++) {
		now.kind = now.round % KINDS;
		now.length = (96 + 32 * (now.round / KINDS % 3)) << 20;
		now.area = populated(now.length);
		pthread_barrier_wait(&start_line);
		pthread_barrier_wait(&finish_line);
		munmap(now.area, now.length); /* harmless where the culprit did it */
		if (now.kind != VMA_LOCK)
			munmap(now.small, SMALL); /* so that the writer queues once, for its mmap */
	}
	now.over = 1;
	pthread_barrier_wait(&start_line);
	for (int which = 0; which < ACTORS; which++)
		pthread_join(threads[which], NULL);
	for (struct entry *e = entries; e < entries + n_entries; e++)
		printf("%d %s %d %d %s %lu %zu %ld %ld\n", e->round, kind_names[e->kind], e->actor,
		       e->tid, e->operation, (unsigned long)e->address, e->length, (long)e->begin,
		       (long)e->end);
	return 0;
}
