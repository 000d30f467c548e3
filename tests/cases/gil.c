/* One lock for all threads, as an interpreter has: one unmaps with it in hand, main waits for it.
 *
 *     gil GIB NICE
 */
#include "common.h"

static pthread_mutex_t gil = PTHREAD_MUTEX_INITIALIZER;
static size_t length;
static char *area;
static int nice_value;

static void *pin_memory(void *unused)
{
	named("pin-memory");
	pthread_mutex_lock(&gil);
	if (cured()) /* as zaplock.release does: the lock is for objects, not for freeing pages */
		pthread_mutex_unlock(&gil);
	on_a_crowded_cpu(nice_value);
	unmapped(area, length);
	if (!cured())
		pthread_mutex_unlock(&gil);
	return unused;
}

static void *main_loop(void *unused)
{
	named("main-loop");
	until_memory_is_freed();
	double begin = seconds();
	pthread_mutex_lock(&gil);
	printf("stood %.3f\n", seconds() - begin);
	pthread_mutex_unlock(&gil);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];

	length = atof(argv[1]) * GIB;
	nice_value = argc > 2 ? atoi(argv[2]) : 0;
	area = filled(length);
	say("ready");
	getchar();
	pthread_create(&threads[0], 0, main_loop, 0);
	pthread_create(&threads[1], 0, pin_memory, 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], 0);
	say("over");
	getchar();
	return 0;
}
