/* A sleeper whose timer fires while another thread of its cpu is in a munmap, and a third one who
 * is woken by somebody that the munmap kept from working. The munmap begins when both sleep; where it
 * was not most of their sleep, since others computed meanwhile, all of it is done again.
 *
 *     timer MIB NICE
 */
#include "common.h"

static size_t length;
static char *area;
static int nice_value;
static pthread_mutex_t first = PTHREAD_MUTEX_INITIALIZER, second = PTHREAD_MUTEX_INITIALIZER;

static volatile pid_t middle_waits, last_waits;
static volatile int locked, over, seen;

/* Wait until a thread that has said who it is sleeps in a futex. */
static void until_asleep(volatile pid_t *tid)
{
	char path[64], text[32];
	int number = -1;

	while (number != SYS_futex) {
		usleep(1000);
		snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", *tid);
		int file = open(path, O_RDONLY);
		if (file < 0 || read(file, text, sizeof(text)) <= 0 || sscanf(text, "%d", &number) != 1)
			number = -1;
		close(file);
	}
}

static void *culprit(void *unused)
{
	named("culprit");
	beside_the_hog(nice_value);
	pthread_mutex_lock(&first);
	double locked_at = seconds();
	locked = 1;
	until_asleep(&middle_waits);
	until_asleep(&last_waits);
	double begin = seconds();
	munmap(area, length);
	double took = seconds() - begin;
	pthread_mutex_unlock(&first);
	over = 1;
	seen = took > 0.03 && took > 2 * (begin - locked_at);
	return unused;
}

/* It sleeps by the clock of the culprit's cpu for as long as the munmap takes. */
static void *sleeper(void *unused)
{
	named("sleeper");
	beside_the_hog(0);
	while (!over)
		usleep(50000);
	return unused;
}

static void *middle(void *unused)
{
	named("middle");
	pthread_mutex_lock(&second);
	while (!locked)
		usleep(1000);
	middle_waits = gettid();
	pthread_mutex_lock(&first);
	pthread_mutex_unlock(&first);
	pthread_mutex_unlock(&second);
	return unused;
}

static void *last(void *unused)
{
	named("last");
	until_asleep(&middle_waits);
	last_waits = gettid();
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
	say("ready");
	getchar();
	for (int round = 0; round < 20 && !seen; round++) {
		middle_waits = last_waits = locked = over = 0;
		area = filled(length);
		for (int i = 0; i < 4; i++)
			pthread_create(&threads[i], 0, all[i], 0);
		for (int i = 0; i < 4; i++)
			pthread_join(threads[i], 0);
	}
	say(seen ? "over" : "not seen");
	getchar();
	return 0;
}
