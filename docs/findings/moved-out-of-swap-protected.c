/* UFFDIO_MOVE keeps the write protection of a page in swap and drops that of one in memory
 * cc -o reproducer reproducer.c && ./reproducer
 * written by: zaplock oracle --replay moved-out-of-swap-protected.json --c reproducer.c
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
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 5, struct uffdio_move)
#endif
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

static int uffd = -1;

static long uffd_register(char *start, unsigned long length, unsigned long mode)
{
	struct uffdio_register range = { { (unsigned long)start, length }, mode, 0 };

	return ioctl(uffd, UFFDIO_REGISTER, &range);
}

static long uffd_writeprotect(char *start, unsigned long length, unsigned long mode)
{
	struct uffdio_writeprotect range = { { (unsigned long)start, length }, mode };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &range);
}

static long uffd_move(char *start, unsigned long length, unsigned long source, unsigned long mode)
{
	struct uffdio_move range = { (unsigned long)start, source, length, mode, 0 };

	return ioctl(uffd, UFFDIO_MOVE, &range);
}

static void tell_moved(char *start, unsigned long length)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	__u64 entry;

	for (char *page = start; page < start + length; page += 4096) {
		if (pread(pagemap, &entry, sizeof(entry), (unsigned long)page / 4096 * 8) != 8)
			break;
		printf("%p is %s and %swrite-protected\n", page,
			entry >> 62 & 1 ? "in swap" : entry >> 63 ? "present" : "empty",
			entry >> 57 & 1 ? "" : "not ");
	}
	close(pagemap);
}

static long sequence(int tells)
{
	char *r[9];
	long before = field("/proc/self/status", "VmLck");
	struct uffdio_api api = { UFFD_API, UFFD_FEATURE_SIGBUS, 0 };

	uffd = syscall(SYS_userfaultfd, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	ioctl(uffd, UFFDIO_API, &api);

	r[0] = (char *)(long)mmap((void *)0x10000000, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
	tell(tells, "mmap(0x10000000, 0x2000, 3, 0x32, -1, 0)", r[0], (long)0x10000000);
	r[1] = (char *)(long)mmap((void *)0x20000000, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
	tell(tells, "mmap(0x20000000, 0x2000, 3, 0x32, -1, 0)", r[1], (long)0x20000000);
	r[2] = (char *)(long)uffd_register((void *)0x10000000, 0x2000, 2);
	tell(tells, "uffd_register(0x10000000, 0x2000, 2)", r[2], 0);
	r[3] = (char *)(long)uffd_register((void *)0x20000000, 0x2000, 3);
	tell(tells, "uffd_register(0x20000000, 0x2000, 3)", r[3], 0);
	r[4] = (char *)(long)(*(volatile char *)0x10000000 = 1);
	r[5] = (char *)(long)(*(volatile char *)0x10001000 = 1);
	r[6] = (char *)(long)uffd_writeprotect((void *)0x10000000, 0x2000, 1);
	tell(tells, "uffd_writeprotect(0x10000000, 0x2000, 1)", r[6], 0);
	r[7] = (char *)(long)madvise((void *)0x10001000, 0x1000, 0x15);
	tell(tells, "madvise(0x10001000, 0x1000, 0x15)", r[7], 0);
	r[8] = (char *)(long)uffd_move((void *)0x20000000, 0x2000, 0x10000000, 0);
	tell(tells, "uffd_move(0x20000000, 0x2000, 0x10000000, 0)", r[8], 0);

	if (tells)
		tell_moved((void *)0x20000000, 0x2000);
	if (tells)
		printf("AnonHugePages in the end: %ld kB\n",
			field("/proc/self/smaps_rollup", "AnonHugePages"));
	if (r[0] != MAP_FAILED)
		munmap(r[0], 0x2000);
	if (r[1] != MAP_FAILED)
		munmap(r[1], 0x2000);
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
