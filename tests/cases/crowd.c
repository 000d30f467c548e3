/* Many threads that map a page, while one unmaps much.
 *
 *     crowd GIB NICE THREADS
 */
#include "common.h"

static size_t length;
static char *area;
static int nice_value;

static void *culprit(void *unused)
{
	named("culprit");
	on_a_crowded_cpu(nice_value);
	unmapped(area, length);
	return unused;
}

static long at_first;

static void *worker(void *unused)
{
	named("worker");
	while (resident() > at_first - 256)
		usleep(5000);
	mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return unused;
}

int main(int argc, char **argv)
{
	int count = atoi(argv[argc - 1]);
	pthread_t thread;
	pthread_attr_t small;

	length = atof(argv[1]) * GIB;
	nice_value = atoi(argv[2]);
	area = filled(length);
	at_first = resident();
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 0; i < count; i++)
		pthread_create(&thread, &small, worker, 0);
	pthread_create(&thread, &small, culprit, 0);
	until_memory_is_freed();
	pause();
	return 0;
}
