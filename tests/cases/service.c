/* Services after public reports, one in each mode: a thread that has the lock for long, and others.
 *
 *     service MODE MIB NICE SECONDS
 *
 * The culprit does its work again until its victim has stood for long enough to be told of, by the
 * victim's own clock: others may compute just when the two should meet. With CURED in the
 * environment it does once what the advice for it says. On a busy machine all of it lasts longer than
 * SECONDS: the culprit does its work once, however late, and goes on until it was felt. The program
 * prints how long the worst operation of its victim took.
 */
#include "common.h"
#include <spawn.h>
#include <sys/wait.h>

static size_t length;
static char *area;
static int nice_value;
static const double felt = 0.03;
static double until;
static volatile int over; /* the culprit has done its work */
static volatile double worst;
static char reader[4096];
static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

static void slow(const char *name)
{
	named(name);
	beside_the_hog(nice_value);
	usleep(100000);
}

static void took(double begin)
{
	double now = seconds();

	if (now - begin > worst)
		worst = now - begin;
}

/* Whether others go on: for so long, and until the culprit has had a CPU for its work once. */
static int on(void)
{
	return seconds() < until || (!over && seconds() < until + 20);
}

/* Whether the victim hasn't felt it yet, so that the work is done again, however long that takes. */
static int unfelt(void)
{
	return !cured() && worst < felt && seconds() < until + 20;
}

static int again(void)
{
	if (!unfelt())
		return 0;
	area = filled(length);
	return 1;
}

static void *maps(void *name)
{
	named(name);
	while (on()) {
		double begin = seconds();
		munmap(mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
		took(begin);
		usleep(2000);
	}
	return 0;
}

/* A search queue: scans ask what is in memory, script fields tell how they will read. */
static void *scans(void *unused)
{
	static unsigned char pages[16 << 8];

	slow("search");
	do
		mincore(area, sizeof(pages) * 4096, pages);
	while (seconds() < until || unfelt());
	return unused;
}

static void *script_fields(void *unused)
{
	named("script-field");
	while (on() && !cured()) {
		madvise(area, length, MADV_SEQUENTIAL);
		madvise(area, length, MADV_NORMAL);
		usleep(1000);
	}
	return unused;
}

static void *asks(void *name)
{
	unsigned char page;

	named(name);
	while (on()) {
		double begin = seconds();
		mincore(area, 4096, &page);
		took(begin);
		usleep(1000);
	}
	return 0;
}

/* A data frame that is dropped in a thread of its own. */
static void *unmaps(void *unused)
{
	slow("polars-unmap-0");
	do
		unmapped(area, length);
	while (again());
	return unused;
}

/* A purge of the heap that has its VMA while a compiler protects a page in the middle of it. */
static volatile int begun, ended;

static void *purges(void *unused)
{
	slow("purger");
	do {
		begun++;
		emptied(area, length);
		ended++;
	} while (again());
	return unused;
}

static void *protects(void *unused)
{
	named("jit");
	for (int purge = 1; on() && (purge == 1 || worst < felt); purge++) {
		while (begun < purge && on())
			usleep(1000);
		long before = resident();
		while (ended < purge && resident() > before - 256 && on())
			usleep(1000);
		mprotect(area + length / 2, 4096, PROT_READ);
	}
	return unused;
}

/* A collector that gives the heap back by mapping over it. */
static void *uncommits(void *unused)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;

	slow("G1 Service");
	if (cured()) /* a heap of constant size */
		return unused;
	do
		mmap(area, length, PROT_NONE, flags, -1, 0);
	while (again());
	return unused;
}

/* A runtime that gives pages back with its heap's lock in hand. */
static void *scavenges(void *unused)
{
	size_t piece = cured() ? 1 << 20 : length;

	slow("scavenger");
	do
		for (size_t at = 0; at < length; at += piece) {
			pthread_mutex_lock(&heap_lock);
			madvise(area + at, piece, MADV_DONTNEED);
			pthread_mutex_unlock(&heap_lock);
			usleep(cured() ? 1000 : 0);
		}
	while (again());
	return unused;
}

static void *allocates(void *name)
{
	named(name);
	while (on()) {
		double begin = seconds();
		pthread_mutex_lock(&heap_lock);
		pthread_mutex_unlock(&heap_lock);
		took(begin);
		usleep(2000);
	}
	return 0;
}

/* An allocator that keeps nothing. */
static void *decays(void *unused)
{
	named("worker");
	while (seconds() < until) {
		memset(area, 1, 1 << 20);
		if (!cured())
			madvise(area, 1 << 20, MADV_DONTNEED);
		usleep(1000);
	}
	return unused;
}

static void run(char **argv)
{
	pid_t child;

	if (posix_spawn(&child, argv[0], 0, 0, argv, environ) == 0)
		waitpid(child, 0, 0);
}

/* An agent from outside (reader.c) that looks at this process; cured, it is switched off. */
static void *is_looked_at(char *how, const char *file, char *text)
{
	char nice[16], path[64], from[32], many[32];
	char *memory[] = { reader, nice, how, path, from, many, 0 };
	char *of_proc[] = { reader, nice, how, path, text, 0 };

	snprintf(nice, sizeof(nice), "%d", nice_value);
	snprintf(path, sizeof(path), file, getpid());
	snprintf(from, sizeof(from), "%#lx", (unsigned long)area);
	snprintf(many, sizeof(many), "%#lx", (unsigned long)length);
	if (cured())
		return 0;
	do
		run(strcmp(how, "vm") ? of_proc : memory);
	while (unfelt());
	return 0;
}

static void *smaps(void *unused)
{
	return is_looked_at("read", "/proc/%d/smaps_rollup", 0);
}

static void *clear_refs(void *unused)
{
	return is_looked_at("write", "/proc/%d/clear_refs", "1");
}

static void *memory(void *unused)
{
	return is_looked_at("vm", "%d", 0);
}

/* A service that measures itself. */
static void *metrics(void *unused)
{
	char text[4096];
	int file = open(cured() ? "/proc/self/statm" : "/proc/self/smaps_rollup", O_RDONLY);

	slow("metrics");
	for (int i = 0; i < 10 || unfelt(); i++)
		if (pread(file, text, sizeof(text), 0) <= 0)
			break;
	close(file);
	return unused;
}

/* A service that runs a command: by fork, or without a copy of its page tables. */
static void *starts_a_command(void *unused)
{
	char *command[] = { "/bin/true", 0 };
	pid_t child;

	slow("starter");
	if (cured()) {
		run(command);
		return unused;
	}
	do {
		if ((child = fork()) == 0) {
			execv(command[0], command);
			_exit(1);
		}
		waitpid(child, 0, 0);
	} while (unfelt());
	return unused;
}

static const struct mode {
	const char *name;
	void *(*threads[3])(void *);
	const char *victim;
} modes[] = {
	{ "search", { scans, script_fields, asks }, "request" },
	{ "frame", { unmaps, maps }, "main-loop" },
	{ "vma", { purges, protects, maps }, "pgrep" },
	{ "heap", { uncommits, maps }, "search-1" },
	{ "runtime", { scavenges, allocates }, "goroutine" },
	{ "allocator", { decays }, "" },
	{ "smaps", { smaps, maps }, "main-loop" },
	{ "clear_refs", { clear_refs, maps }, "main-loop" },
	{ "memory", { memory, maps }, "main-loop" },
	{ "metrics", { metrics, maps }, "main-loop" },
	{ "command", { starts_a_command, maps }, "main-loop" },
};

static const struct mode *mode = modes;

/* The first thread of a mode. */
static void *culprit(void *victim)
{
	mode->threads[0](victim);
	over = 1;
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t threads[3];
	int i;

	if (argc < 5)
		return 2;
	while (strcmp(mode->name, argv[1]))
		mode++;
	length = atof(argv[2]) * (1 << 20);
	nice_value = atoi(argv[3]);
	snprintf(reader, sizeof(reader), "%.*s/reader",
		 (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	area = filled(length);
	say("ready");
	getchar();
	until = seconds() + atof(argv[4]);
	for (i = 0; i < 3 && mode->threads[i]; i++)
		pthread_create(&threads[i], 0, i ? mode->threads[i] : culprit,
			       (void *)mode->victim);
	while (i--)
		pthread_join(threads[i], 0);
	printf("worst %.6f\n", worst);
	return 0;
}
