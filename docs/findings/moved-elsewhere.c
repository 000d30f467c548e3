/* an mremap of huge pages moves those behind an untouched part to another place
 * cc -o reproducer reproducer.c && ./reproducer
 * written by: zaplock oracle --replay moved-elsewhere.json --c reproducer.c
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
	char *r[3];
	long before = field("/proc/self/status", "VmLck");

	r[0] = (char *)(long)mmap((void *)0x1ffffe00000, 0x400000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	tell(tells, "mmap(0x1ffffe00000, 0x400000, 3, 0x40032, -1, 0)", r[0], (long)0x1ffffe00000);
	r[1] = (char *)(long)(*(volatile char *)0x20000000000 = 1);
	r[2] = (char *)(long)mremap((void *)0x1ffffe00000, 0x400000, 0x400000, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)0x30000000000);
	tell(tells, "mremap(0x1ffffe00000, 0x400000, 0x400000, 3, 0x30000000000)", r[2], (long)0x30000000000);

	if (tells)
		printf("AnonHugePages in the end: %ld kB\n",
			field("/proc/self/smaps_rollup", "AnonHugePages"));
	if (r[0] != MAP_FAILED)
		munmap(r[0], 0x400000);
	if (r[2] != MAP_FAILED)
		munmap(r[2], 0x400000);
	munmap((void *)0x1ffffe00000, 0x400000);
	return field("/proc/self/status", "VmLck") - before;
}

int main(void)
{
	long before = field("/proc/meminfo", "Committed_AS");
	long reserved = field("/proc/meminfo", "HugePages_Rsvd");

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
	printf("HugePages_Rsvd when all are gone: %+ld\n",
		field("/proc/meminfo", "HugePages_Rsvd") - reserved);
	return 0;
}
