/* Virtual CPUs that touch memory whose userfaultfd monitor does not answer (any more).
 *
 *     uffd THREADS
 */
#include "common.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

static char *area;

static void *vcpu(void *number)
{
	char name[16];

	snprintf(name, sizeof(name), "vcpu%ld", (long)number);
	named(name);
	area[4096 * (long)number] = 1;
	return number;
}

int main(int argc, char **argv)
{
	int count = atoi(argv[argc - 1]);
	long file = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;

	area = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (unsigned long)area;
	range.range.len = 1 << 20;
	if (file < 0 || ioctl(file, UFFDIO_API, &api) || ioctl(file, UFFDIO_REGISTER, &range)) {
		perror("userfaultfd");
		return 1;
	}
	for (long i = 0; i < count; i++)
		pthread_create(&thread, 0, vcpu, (void *)i);
	usleep(100000);
	say("go");
	pause();
	return 0;
}
