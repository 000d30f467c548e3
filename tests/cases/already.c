/* A munmap under way, and an mmap that waits for it: it hangs before anybody looks.
 *
 *     already GIB NICE
 */
#include "common.h"

static size_t length;
static char *area;
static int nice_value;

static void *victim(void *unused)
{
	named("victim");
	until_memory_is_freed();
	double begin = seconds();
	mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("mmap %.3f\n", seconds() - begin);
	return unused;
}

static void *culprit(void *unused)
{
	named("culprit");
	double begin = seconds();
	unmapped(area, length);
	printf("munmap %.3f\n", seconds() - begin);
	return unused;
}

static void *slow(void *unused)
{
	on_a_crowded_cpu(nice_value);
	return culprit(unused);
}

int main(int argc, char **argv)
{
	pthread_t threads[2];

	length = atof(argv[1]) * GIB;
	nice_value = argc > 2 ? atoi(argv[2]) : 0;
	area = filled(length);
	pthread_create(&threads[1], 0, victim, 0);
	pthread_create(&threads[0], 0, slow, 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], 0);
	say("over");
	return 0;
}
