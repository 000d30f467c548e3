/* A program that frees big memory beside its own threads: bench/preload.py.
 *
 *   preload_subject WAY BYTES     WAY is free, munmap or dontneed
 *
 * One thread maps and unmaps a page, one touches a fresh page, each every half millisecond. Printed:
 * what the freeing took; the worst operation of each thread in that time, and of both before it; and
 * what must not differ: the answer, and how many bytes of memory are mapped afterwards.
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FRESH (1UL << 28)

static volatile int over;
static volatile int64_t worst[2];
static char *fresh;

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *stand_by(void *which)
{
	uintptr_t k = (uintptr_t)which;
	size_t at = 0;

	while (!over) {
		int64_t began = now_ns();

		if (k)
			fresh[at = (at + 4096) % FRESH] = 1;
		else
			munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
		began = now_ns() - began;
		if (began > worst[k])
			worst[k] = began;
		usleep(500);
	}
	return NULL;
}

static long mapped(void)
{
	long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	if (fscanf(file, "%ld", &pages) != 1)
		pages = -1;
	fclose(file);
	return pages;
}

int main(int argc, char **argv)
{
	size_t length = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
	int frees = argc > 1 && !strcmp(argv[1], "free"), answer = 0;
	pthread_t threads[2];
	int64_t took, idle;
	long before;
	char *memory;

	fresh = mmap(NULL, FRESH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	before = mapped();
	memory = frees ? malloc(length)
		       : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 1, length);
	for (uintptr_t k = 0; k < 2; k++)
		pthread_create(&threads[k], NULL, stand_by, (void *)k);
	usleep(500000);
	idle = worst[0] > worst[1] ? worst[0] : worst[1];
	worst[0] = worst[1] = 0;
	took = now_ns();
	if (frees)
		free(memory);
	else if (!strcmp(argv[1], "munmap"))
		answer = munmap(memory, length);
	else
		answer = madvise(memory, length, MADV_DONTNEED);
	took = now_ns() - took;
	usleep(20000); /* who stood is through by now */
	over = 1;
	printf("%ld %ld %ld %ld %d %ld\n", (long)took, (long)worst[0], (long)worst[1], (long)idle, answer,
	       (mapped() - before) >> 12);
	return 0;
}
