/* Who has the lock is not easily seen, and a thread of the same process waits for it.
 *
 *     hidden GIB NICE WAY [FILE]
 *
 * mlockall    the page work of an mlockall, under the lock for write
 * spanning    an MADV_DONTNEED over several VMAs: the lock, and not that of a VMA
 * outsider    another process gives advice about these pages; says "outsider PID"
 * idle        nothing but a mapping of FILE: says "mapped ADDRESS"; somebody else reads it
 * slow        a page of FILE is touched; it lets go of the lock for that
 */
#include "common.h"
#include <sys/uio.h>

static size_t length;
static char *area;
static int nice_value;
static const char *way, *file;

static void *victim(void *unused)
{
	named("victim");
	for (;;) {
		void *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(page, 4096);
		usleep(1000);
	}
	return unused;
}

static void advise_from_outside(pid_t target)
{
	struct iovec all = {area, length};
	int handle = syscall(SYS_pidfd_open, target, 0);

	named("outsider");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	on_a_crowded_cpu(nice_value);
	while (getppid() == target)
		syscall(SYS_process_madvise, handle, &all, 1, MADV_COLD, 0);
	_exit(0);
}

static void *culprit(void *unused)
{
	named("culprit");
	if (file) {
		char *pages = mmap(0, 1 << 20, PROT_READ, MAP_PRIVATE, open(file, O_RDONLY), 0);

		printf("%p\n", pages);
		say("go");
		if (!strcmp(way, "slow"))
			*(volatile char *)pages;
		pause();
	}
	on_a_crowded_cpu(nice_value);
	say("go");
	if (!strcmp(way, "mlockall"))
		mlockall(MCL_CURRENT);
	if (!strcmp(way, "spanning")) {
		mprotect(area, 4096, PROT_READ);
		madvise(area, length, MADV_DONTNEED);
	}
	pause();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	pid_t self = getpid(), outsider;

	length = atof(argv[1]) * GIB;
	nice_value = atoi(argv[2]);
	way = argv[3];
	file = argc > 4 ? argv[4] : 0;
	if (length)
		area = filled(length);
	if (!strcmp(way, "outsider")) {
		if ((outsider = fork()) == 0)
			advise_from_outside(self);
		printf("%d\n", outsider);
		say("go");
	} else
		pthread_create(&threads[0], 0, culprit, 0);
	pthread_create(&threads[1], 0, victim, 0);
	pause();
	return 0;
}
