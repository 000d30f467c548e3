/* What the programs of these cases have in common. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define GIB (1UL << 30)

static inline double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* Memory of 4 KiB pages, all of them there. */
static inline char *filled(size_t length)
{
	char *area = mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	madvise(area, length, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < length; at += 4096)
		area[at] = 1;
	return area;
}

static inline void named(const char *name)
{
	prctl(PR_SET_NAME, name);
}

/* Whether the program is to do what the advice for it says. */
static inline int cured(void)
{
	return getenv("CURED") != 0;
}

/* Give the pages of an area back: at once, or by pieces with a rest after each. */
static inline void emptied(char *area, size_t length)
{
	size_t piece = cured() ? 1 << 20 : length;

	for (size_t at = 0; at < length; at += piece) {
		madvise(area + at, piece, MADV_DONTNEED);
		if (cured())
			usleep(1000);
	}
}

static inline void unmapped(char *area, size_t length)
{
	if (cured())
		emptied(area, length);
	munmap(area, length);
}

/* Share cpu 0 with whoever else is there, and be nice to them. */
static inline void beside_the_hog(int nice)
{
	cpu_set_t first;

	CPU_ZERO(&first);
	CPU_SET(0, &first);
	sched_setaffinity(0, sizeof(first), &first);
	setpriority(PRIO_PROCESS, syscall(SYS_gettid), nice);
}

/* Make this thread slow, so that what takes 0.1 s alone takes seconds: it shares cpu 0 with a
 * process that never stops and has more of a say, the more the higher `nice`. */
static inline void on_a_crowded_cpu(int nice)
{
	pid_t parent = getpid();

	if (fork() == 0) {
		named("hog");
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		beside_the_hog(0);
		while (getppid() == parent)
			for (volatile int i = 0; i < 1000000; i++)
				;
		_exit(0);
	}
	beside_the_hog(nice);
}

/* Pages of this process that are there; reading it takes no mmap_lock and no new memory. */
static inline long resident(void)
{
	char text[128] = "";
	int file = open("/proc/self/statm", O_RDONLY);

	if (read(file, text, sizeof(text) - 1) <= 0)
		exit(1);
	close(file);
	return atol(strchr(text, ' '));
}

/* Wait until another thread is at it. */
static inline void until_memory_is_freed(void)
{
	long before = resident();

	while (resident() > before - 256)
		usleep(1000);
	if (write(1, "go\n", 3) < 0)
		exit(1);
}

/* Say a line that the test waits for. */
static inline void say(const char *text)
{
	printf("%s\n", text);
	fflush(stdout);
}
