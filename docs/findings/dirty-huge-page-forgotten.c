/* mprotect forgets that a huge page is dirty, and what was written after MADV_FREE is thrown away
 * cc -o reproducer reproducer.c && ./reproducer
 * written by: zaplock oracle --replay dirty-huge-page-forgotten.json --c reproducer.c
 * What is expected is what Linux 6.18 gives by zaplock's model; ANYWHERE: where it chooses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define ANYWHERE LONG_MAX

static long field(const char *path, const char *name)
{
	char line[256];
	long kb = -1;
	FILE *file = fopen(path, "r");

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			kb = atol(line + strlen(name) + 1);
	if (file)
		fclose(file);
	return kb;
}

static void print_result(long result)
{
	if (result == ANYWHERE)
		printf("a place that the kernel chooses");
	else if (result < 0 && result >= -4095)
		printf("%ld (%s)", result, strerror(-result));
	else
		printf(result > 9 ? "%#lx" : "%ld", result);
}

static void tell(int tells, const char *call, char *got, long expected)
{
	long result = got == MAP_FAILED ? -errno : (long)got;

	if (!tells)
		return;
	printf("%s = ", call);
	print_result(result);
	if (expected == ANYWHERE ? result > 0 : result == expected) {
		puts(", as expected");
	} else {
		printf(", expected ");
		print_result(expected);
		puts("");
	}
	fflush(stdout);
}

static long sequence(int tells)
{
	char *r[8];
	long before = field("/proc/self/status", "VmLck");

	r[0] = (char *)(long)mmap((void *)0x40000000, 0x200000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
	tell(tells, "mmap(0x40000000, 0x200000, 3, 0x32, -1, 0)", r[0], (long)0x40000000);
	r[1] = (char *)(long)madvise((void *)0x40000000, 0x200000, 0xe);
	tell(tells, "madvise(0x40000000, 0x200000, 0xe)", r[1], 0);
	r[2] = (char *)(long)(*(volatile char *)0x40000000 = 1);
	r[3] = (char *)(long)madvise((void *)0x40000000, 0x200000, 8);
	tell(tells, "madvise(0x40000000, 0x200000, 8)", r[3], 0);
	r[4] = (char *)(long)(*(volatile char *)0x40000000 = 1);
	r[5] = (char *)(long)mprotect((void *)0x40000000, 0x200000, 1);
	tell(tells, "mprotect(0x40000000, 0x200000, 1)", r[5], 0);
	r[6] = (char *)(long)madvise((void *)0x40000000, 0x200000, 0x15);
	tell(tells, "madvise(0x40000000, 0x200000, 0x15)", r[6], 0);
	r[7] = (char *)(long)*(volatile char *)0x40000000;

	if (tells)
		printf("a load of %p gives %ld%s\n", (void *)0x40000000, (long)r[7], (long)r[7] == 1 ? ", as expected" : ", expected 1");
	if (tells)
		printf("AnonHugePages in the end: %ld kB\n",
			field("/proc/self/smaps_rollup", "AnonHugePages"));
	if (r[0] != MAP_FAILED)
		munmap(r[0], 0x200000);
	return field("/proc/self/status", "VmLck") - before;
}

int main(void)
{
	long before = field("/proc/meminfo", "Committed_AS");

	for (int round = 0, status = 0; round < 16 && !status; round++) {
		if (!fork()) {
			struct rlimit second = { 1, 1 };
			long locked;

			setrlimit(RLIMIT_CPU, &second);
			locked = sequence(!round);
			if (!round)
				printf("VmLck with nothing mapped: %ld kB\n", locked);
			exit(0);
		}
		wait(&status);
		if (status)
			puts("VmLck with nothing mapped: not known, after a second of CPU time it goes on");
	}
	printf("Committed_AS after 16 rounds: %+ld kB\n",
		field("/proc/meminfo", "Committed_AS") - before);
	return 0;
}
