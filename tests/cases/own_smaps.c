/* A service with thousands of mappings that reads its own smaps for its metrics, slowly.
 *
 *     own_smaps MAPPINGS NICE
 */
#include "common.h"

static char buffer[1 << 20];
static int nice_value;

static void *metrics(void *unused)
{
	int file = open("/proc/self/smaps_rollup", O_RDONLY);

	named("metrics");
	on_a_crowded_cpu(nice_value);
	say("go");
	while (pread(file, buffer, sizeof(buffer), 0) > 0)
		;
	return unused;
}

static void *request(void *unused)
{
	named("request");
	for (;;) {
		void *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(page, 4096);
		usleep(1000);
	}
	return unused;
}

int main(int argc, char **argv)
{
	int mappings = atoi(argv[1]);
	pthread_t threads[2];

	nice_value = argc > 2 ? atoi(argv[2]) : 0;
	for (int i = 0; i < mappings; i++) {
		char *area = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		mprotect(area, 4096, PROT_READ);
		area[4096] = 1;
	}
	pthread_create(&threads[0], 0, metrics, 0);
	pthread_create(&threads[1], 0, request, 0);
	pause();
	return 0;
}
