/* A sleeper whose timer fires while another thread of its cpu is in a munmap, and a third one who
 * is woken by somebody that the munmap kept from working.
 *
 *     timer MIB NICE
 */
#include "common.h"

static size_t length;
static char *area;
static int nice_value;
static pthread_mutex_t first = PTHREAD_MUTEX_INITIALIZER, second = PTHREAD_MUTEX_INITIALIZER;

static void *culprit(void *unused)
{
	named("culprit");
	pthread_mutex_lock(&first);
	beside_the_hog(nice_value);
	usleep(100000);
	munmap(area, length);
	pthread_mutex_unlock(&first);
	return unused;
}

/* It sleeps by the clock of the culprit's cpu for as long as the munmap may take. */
static void *sleeper(void *unused)
{
	named("sleeper");
	beside_the_hog(0);
	for (int i = 0; i < 40; i++)
		usleep(50000);
	return unused;
}

static void *middle(void *unused)
{
	named("middle");
	pthread_mutex_lock(&second);
	usleep(50000);
	pthread_mutex_lock(&first);
	pthread_mutex_unlock(&first);
	pthread_mutex_unlock(&second);
	return unused;
}

static void *last(void *unused)
{
	named("last");
	usleep(80000);
	pthread_mutex_lock(&second);
	pthread_mutex_unlock(&second);
	return unused;
}

int main(int argc, char **argv)
{
	void *(*all[])(void *) = { culprit, sleeper, middle, last };
	pthread_t threads[4];

	length = atof(argv[1]) * (1 << 20);
	nice_value = argc > 2 ? atoi(argv[2]) : 0;
	area = filled(length);
	say("ready");
	getchar();
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], 0, all[i], 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], 0);
	say("over");
	getchar();
	return 0;
}
