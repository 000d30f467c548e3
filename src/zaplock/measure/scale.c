/* One workload of `zaplock scale` on this kernel: scale WORKLOAD THREADS MILLISECONDS
 *
 * Prints operations a second, of all threads together, each on a CPU of its own: a line for each
 * millisecond in which none of them was off its CPU for long. What else runs here takes CPUs away
 * for longer than anything that a workload waits for, so such milliseconds are left out, and a busy
 * machine gives fewer lines and not other ones.
 *
 * The workloads are those of lab/scale.py, and do the same: what that touches and maps, this does.
 * "compute" does nothing that is shared: it tells whether CPUs share a core. "transfer" prints how
 * many nanoseconds a cache line takes from one CPU to another, in the best of many batches.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, FAULTS = 256, CALLS = 100, MOST = 512 };
static const size_t MAPPED = 128UL << 20, REGION = 2UL << 20, TOUCHED = 32UL << 20;
static const int MEMORY = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
static const int RW = PROT_READ | PROT_WRITE;

static const char *workload;
static int threads, milliseconds;
static char *area, *heap;
static atomic_int stop;
static pthread_barrier_t ready;
static cpu_set_t allowed;

enum { LOOKS = 1 << 16 };
static const double SLOT = 1e-3, OFF = 0.3e-3, OFTEN = 10e-6;

/* `at` and `by`: when this thread looked at its clock, and what it had done by then. */
struct worker {
	_Alignas(128) pthread_t thread;
	int number, file, looks;
	volatile unsigned long sum;
	long done, *by;
	double *at;
};
static struct worker workers[MOST];

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void pin(int number)
{
	cpu_set_t one;
	int cpu;

	for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && number-- == 0)
			break;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (cpu == CPU_SETSIZE || sched_setaffinity(0, sizeof(one), &one))
		die("a CPU for each thread");
}

static char *map(void *at, size_t length, int flags, int file)
{
	char *p = mmap(at, length, RW, flags, file, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static void look(struct worker *w)
{
	double time = now();

	if (w->looks < LOOKS && (!w->looks || time - w->at[w->looks - 1] >= OFTEN)) {
		w->at[w->looks] = time;
		w->by[w->looks++] = w->done;
	}
}

static void touch(char *p, size_t length)
{
	for (size_t at = 0; at < length; at += PAGE)
		((volatile char *)p)[at] = 1;
}

static void touch_and_count(struct worker *w, char *p, size_t length)
{
	for (size_t at = 0; at < length; at += 8 * PAGE) {
		touch(p + at, length - at < 8 * PAGE ? length - at : 8 * PAGE);
		w->done += 8;
		look(w);
	}
}

static int memory_file(void)
{
	int file = memfd_create("scale", 0);

	if (file < 0 || ftruncate(file, MAPPED))
		die("memfd");
	return file;
}

static void one_round(struct worker *w)
{
	const char *n = workload;
	char *p;

	if (!strcmp(n, "compute")) {
		for (int i = 0; i < 1000; i++)
			w->sum = w->sum * 3 + 1;
		w->done++;
	} else if (!strcmp(n, "mmap1") || !strcmp(n, "mmap2")) {
		p = map(NULL, MAPPED, n[4] == '1' ? MEMORY : MAP_PRIVATE, w->file);
		munmap(p, MAPPED);
		w->done++;
	} else if (!strcmp(n, "maps")) {
		munmap(map(NULL, PAGE, MEMORY, -1), PAGE);
		w->done++;
	} else if (!strcmp(n, "brk1")) {
		syscall(SYS_brk, heap + PAGE);
		syscall(SYS_brk, heap);
		w->done += 2;
	} else if (!strncmp(n, "page_fault", 10)) {
		int flags = n[10] == '1' ? MEMORY : n[10] == '2' ? MAP_PRIVATE : MAP_SHARED;

		p = map(NULL, MAPPED, flags, w->file);
		touch_and_count(w, p, (size_t)FAULTS * PAGE);
		munmap(p, MAPPED);
	} else if (!strncmp(n, "pft", 3)) {
		p = area + w->number * TOUCHED + PAGE;
		touch_and_count(w, p, TOUCHED - PAGE);
		madvise(p, TOUCHED - PAGE, MADV_DONTNEED); /* longer than OFF, so no figure has it */
	} else {
		int mixed = !strcmp(n, "regions-high");

		for (int nth = 0; nth < CALLS; nth++) {
			size_t page = mixed ? (size_t)nth * threads + (w->number * 7919 + nth * 31) % threads
					    : w->number * (REGION / PAGE) + nth;

			p = map(area + page * PAGE, PAGE, MEMORY | MAP_FIXED, -1);
			touch(p, PAGE);
			munmap(p, PAGE);
			w->done++;
			look(w);
		}
	}
	look(w);
}

static void *work(void *argument)
{
	struct worker *w = argument;
	pin(w->number);
	pthread_barrier_wait(&ready);
	while (!atomic_load_explicit(&stop, memory_order_relaxed))
		one_round(w);
	return NULL;
}

static void *scan(void *argument)
{
	char name[64], bytes[4096];

	snprintf(name, sizeof(name), "/proc/%d/maps", getppid());
	while (!atomic_load(&stop)) {
		int file = open(name, O_RDONLY);

		while (read(file, bytes, sizeof(bytes)) > 0)
			;
		close(file);
	}
	return argument;
}

static _Alignas(128) atomic_long ball;

enum { EXCHANGES = 500, BATCHES = 100 };

static void *answer(void *argument)
{
	pin(1);
	for (long at = 1; at < 2L * EXCHANGES * BATCHES; at += 2) {
		while (atomic_load(&ball) != at)
			;
		atomic_store(&ball, at + 1);
	}
	return argument;
}

static int transfer(void)
{
	pthread_t other;
	double least = 1e9;
	long at = 0;

	pthread_create(&other, NULL, answer, NULL);
	pin(0);
	for (int batch = 0; batch < BATCHES; batch++) {
		double begin = now(), took;

		for (int i = 0; i < EXCHANGES; i++, at += 2) {
			atomic_store(&ball, at + 1);
			while (atomic_load(&ball) != at + 2)
				;
		}
		took = (now() - begin) * 1e9 / (2 * EXCHANGES);
		least = took < least ? took : least;
	}
	printf("%.1f\n", least);
	return 0;
}

/* What a thread did from `begin` to `end` by its clock, or -1 if it was off its CPU meanwhile. */
static double done_in(struct worker *w, int *next, double begin, double end)
{
	int i = *next, first;

	while (i < w->looks && w->at[i] < begin)
		i++;
	first = i;
	while (i < w->looks && w->at[i] < end)
		i++;
	*next = i ? i - 1 : 0;
	if (first == 0 || i == w->looks || i - first < 2)
		return -1;
	for (int k = first; k <= i; k++)
		if (w->at[k] - w->at[k - 1] > OFF)
			return -1;
	return (w->by[i - 1] - w->by[first]) / (w->at[i - 1] - w->at[first]);
}

static void print_slots(void)
{
	static int next[MOST];
	double begin = 0, end = 1e18;

	for (int i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		if (!w->looks)
			return;
		begin = w->at[0] > begin ? w->at[0] : begin;
		end = w->at[w->looks - 1] < end ? w->at[w->looks - 1] : end;
	}
	for (begin += SLOT; begin + SLOT <= end; begin += SLOT) {
		double sum = 0;
		int ran = 1;

		for (int i = 0; i < threads; i++) {
			double rate = done_in(&workers[i], &next[i], begin, begin + SLOT);

			ran &= rate >= 0;
			sum += rate;
		}
		if (ran)
			printf("%.0f\n", sum);
	}
}

int main(int argc, char **argv)
{

	sched_getaffinity(0, sizeof(allowed), &allowed);
	if (argc == 2 && !strcmp(argv[1], "transfer"))
		return transfer();
	if (argc != 4)
		return 2;
	workload = argv[1];
	threads = atoi(argv[2]);
	milliseconds = atoi(argv[3]);
	if (threads < 1 || threads > MOST)
		return 2;
	area = map(NULL, threads * TOUCHED, MEMORY, -1);
	madvise(area, threads * TOUCHED, MADV_NOHUGEPAGE);
	if (!strcmp(workload, "pft-each"))
		for (int i = 1; i < threads; i += 2)
			madvise(area + i * TOUCHED, TOUCHED, MADV_DONTFORK);
	for (int i = 0; i < threads; i++)
		touch(area + i * TOUCHED, PAGE);
	pid_t child = strcmp(workload, "maps") ? 0 : fork();
	if (child == 0 && !strcmp(workload, "maps")) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin(threads);
		scan(NULL);
		return 0;
	}
	pthread_barrier_init(&ready, NULL, threads + 1);
	for (int i = 0; i < threads; i++) {
		workers[i].number = i;
		workers[i].at = calloc(LOOKS, sizeof(*workers[i].at));
		workers[i].by = calloc(LOOKS, sizeof(*workers[i].by));
		if (!workers[i].at || !workers[i].by)
			die("calloc");
		memset(workers[i].at, 1, LOOKS * sizeof(*workers[i].at));
		memset(workers[i].by, 1, LOOKS * sizeof(*workers[i].by));
		workers[i].file = strchr("23", workload[strlen(workload) - 1]) ? memory_file() : -1;
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	if (!strncmp(workload, "regions", 7)) /* only now, so that no thread's stack lies there */
		munmap(area, threads * TOUCHED);
	heap = (char *)syscall(SYS_brk, 0); /* where it ends for good: nobody allocates from here on */
	pthread_barrier_wait(&ready);
	usleep(milliseconds * 1000);
	atomic_store(&stop, 1);
	for (int i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	if (child > 0)
		kill(child, SIGKILL);
	print_slots();
	return 0;
}
