/* One workload of `zaplock scale` on this kernel: scale WORKLOAD THREADS MILLISECONDS
 *
 * Prints operations a second, of all threads together, each on a CPU of its own. The workloads are
 * those of lab/scale.py, and do the same: what that touches and maps, this does. "transfer" prints
 * how many nanoseconds a cache line takes from one CPU to another, in the best of many batches.
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

struct worker {
	_Alignas(128) pthread_t thread;
	int number, file;
	long done;
	double seconds;
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

static void touch(char *p, size_t length)
{
	for (size_t at = 0; at < length; at += PAGE)
		((volatile char *)p)[at] = 1;
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

	if (!strcmp(n, "mmap1") || !strcmp(n, "mmap2")) {
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
		touch(p, (size_t)FAULTS * PAGE);
		munmap(p, MAPPED);
		w->done += FAULTS;
	} else {
		int mixed = !strcmp(n, "regions-high");

		for (int nth = 0; nth < CALLS; nth++) {
			size_t page = mixed ? (size_t)nth * threads + (w->number * 7919 + nth * 31) % threads
					    : w->number * (REGION / PAGE) + nth;

			p = map(area + page * PAGE, PAGE, MEMORY | MAP_FIXED, -1);
			touch(p, PAGE);
			munmap(p, PAGE);
		}
		w->done += CALLS;
	}
}

static void *work(void *argument)
{
	struct worker *w = argument;
	int faults_only = !strncmp(workload, "pft", 3);
	double begin;

	pin(w->number);
	pthread_barrier_wait(&ready);
	begin = now();
	if (faults_only) {
		touch(area + w->number * TOUCHED + PAGE, TOUCHED - PAGE);
		w->done = TOUCHED / PAGE - 1;
	} else {
		while (!atomic_load_explicit(&stop, memory_order_relaxed))
			one_round(w);
	}
	w->seconds = now() - begin;
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

enum { EXCHANGES = 1000, BATCHES = 1000 };

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

int main(int argc, char **argv)
{
	double seconds = 0;
	long done = 0;

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
	if (!strncmp(workload, "regions", 7))
		munmap(area, threads * TOUCHED);
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
		workers[i].file = strchr("23", workload[strlen(workload) - 1]) ? memory_file() : -1;
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	heap = (char *)syscall(SYS_brk, 0); /* where it ends for good: nobody allocates from here on */
	pthread_barrier_wait(&ready);
	if (strncmp(workload, "pft", 3))
		usleep(milliseconds * 1000);
	atomic_store(&stop, 1);
	for (int i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		done += workers[i].done;
		if (workers[i].seconds > seconds)
			seconds = workers[i].seconds;
	}
	if (child > 0)
		kill(child, SIGKILL);
	printf("%.0f\n", done / seconds);
	return 0;
}
