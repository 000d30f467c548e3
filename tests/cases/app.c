/* A service that maps and unmaps a page all the time, beside a lot of memory.
 *
 *     app GIB
 */
#include "common.h"

static void *mapper(void *unused)
{
	named("mapper");
	for (;;) {
		void *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(page, 4096);
		usleep(2000);
	}
	return unused;
}

int main(int argc, char **argv)
{
	size_t length = atof(argv[argc - 1]) * GIB;
	char *area = filled(length);
	pthread_t thread;

	printf("address %lu\n", (unsigned long)area);
	pthread_create(&thread, 0, mapper, 0);
	say("go");
	pause();
	return 0;
}
