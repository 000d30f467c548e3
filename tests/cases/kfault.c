/* A read() into memory that is not there yet faults inside the kernel, while another thread unmaps.
 *
 *     kfault GIB NICE
 */
#include "common.h"

static size_t length;
static char *area, *absent;
static int nice_value, zeros;

static void *culprit(void *unused)
{
	named("culprit");
	on_a_crowded_cpu(nice_value);
	mprotect(area, length, PROT_READ);
	unmapped(area, length);
	return unused;
}

static void *mapper(void *unused)
{
	named("mapper");
	until_memory_is_freed();
	mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return unused;
}

/* The mapper is a writer in the queue by now, so a reader of the lock has to wait as well. A page
 * of shared memory without pages has no anon_vma, for which a fault takes the mmap_lock. */
static void *io(void *unused)
{
	char here[16384];

	named("io-read");
	if (read(zeros, here, sizeof(here)) < 0) /* so that no other page of ours is absent later */
		perror("read");
	seconds();
	until_memory_is_freed();
	usleep(100000);
	double begin = seconds();
	if (read(zeros, absent, 4096) < 0)
		perror("read");
	printf("read %.3f\n", seconds() - begin);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	length = atof(argv[1]) * GIB;
	nice_value = argc > 2 ? atoi(argv[2]) : 0;
	zeros = open("/dev/zero", O_RDONLY);
	area = filled(length);
	absent = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_create(&thread, 0, mapper, 0);
	pthread_create(&thread, 0, io, 0);
	pthread_create(&thread, 0, culprit, 0);
	pause();
	return 0;
}
