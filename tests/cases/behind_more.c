/* Who has the lock waits for something else, or who waits for no lock goes on no further.
 *
 *     behind_more truncated GIB NICE    another process truncates a file that one maps; says its PID
 *     behind_more full GROUP            a thread's memory cgroup (v1) is full, and nothing is killed
 *     behind_more core                  it crashes, and its core is written
 *     behind_more thawed FILE           a thread writes to FILE, which is mapped; another protects it
 */
#include "common.h"

static int file;
static size_t length;
static volatile int is_named;

static void *mapper(void *unused)
{
	named("mapper");
	for (;;) {
		void *page = mmap(0, 4096, PROT_READ, MAP_SHARED, file, 0);
		munmap(page, 4096);
		usleep(1000);
	}
	return unused;
}

static void *victim(void *unused)
{
	named("victim");
	is_named = 1;
	for (;;) {
		void *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(page, 4096);
		usleep(1000);
	}
	return unused;
}

static void truncate_it(int nice)
{
	named("truncater");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	on_a_crowded_cpu(nice);
	printf("%d\n", getpid());
	say("go");
	if (ftruncate(file, 0))
		perror("ftruncate");
	_exit(0);
}

static void truncated(char **argv)
{
	pthread_t threads[2];
	char *area;

	length = atof(argv[0]) * GIB;
	file = memfd_create("mapped", 0);
	if (ftruncate(file, length))
		perror("ftruncate");
	area = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	for (size_t at = 0; at < length; at += 4096)
		area[at] = 1;
	if (fork() == 0)
		truncate_it(atoi(argv[1]));
	pthread_create(&threads[0], 0, mapper, 0);
	pthread_create(&threads[1], 0, victim, 0);
}

static void *eater(void *unused)
{
	named("eater");
	say("go");
	filled(256 << 20);
	return unused;
}

static void full(const char *group)
{
	pthread_t thread;
	char tasks[4096];

	snprintf(tasks, sizeof(tasks), "%s/cgroup.procs", group);
	int joins = open(tasks, O_WRONLY);
	if (write(joins, "0", 1) != 1)
		exit(1);
	pthread_create(&thread, 0, eater, 0);
}

static void core(void)
{
	pthread_t thread;
	struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};

	setrlimit(RLIMIT_CORE, &all);
	pthread_create(&thread, 0, victim, 0);
	while (!is_named)
		usleep(1000);
	say("go");
	getchar();
	abort();
}

static char *mapped;

static void *writer(void *unused)
{
	named("writer");
	mapped[0] = 1;
	pause();
	return unused;
}

static void *protector(void *unused)
{
	named("protector");
	mprotect(mapped, 4096, PROT_READ);
	pause();
	return unused;
}

/* Says "go" when the file system may be frozen, writes after a line, protects after another. */
static void thawed(const char *path)
{
	pthread_t threads[3];

	mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, open(path, O_RDWR), 0);
	(void)*(volatile char *)mapped;
	say("go");
	getchar();
	pthread_create(&threads[0], 0, writer, 0);
	getchar();
	pthread_create(&threads[1], 0, victim, 0);
	usleep(10000);
	pthread_create(&threads[2], 0, protector, 0);
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[1], "truncated"))
		truncated(argv + 2);
	if (!strcmp(argv[1], "full"))
		full(argv[2]);
	if (!strcmp(argv[1], "core"))
		core();
	if (!strcmp(argv[1], "thawed"))
		thawed(argv[2]);
	pause();
	return argc < 2;
}
