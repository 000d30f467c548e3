/* A child that still has its parent's memory unmaps much, and a thread of the parent waits for it.
 *
 *     vfork GIB NICE
 */
#include "common.h"

static size_t length;
static char *area;
static int nice_value;

static void *victim(void *unused)
{
	named("victim");
	until_memory_is_freed();
	mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return unused;
}

static void *parent(void *unused)
{
	named("parent");
	on_a_crowded_cpu(nice_value);
	if (vfork() == 0) {
		named("child");
		unmapped(area, length);
		_exit(0);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];

	length = atof(argv[1]) * GIB;
	nice_value = argc > 2 ? atoi(argv[2]) : 0;
	area = filled(length);
	pthread_create(&threads[1], 0, victim, 0);
	pthread_create(&threads[0], 0, parent, 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], 0);
	say("over");
	return 0;
}
