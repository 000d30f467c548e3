/* Races of two threads of one process that some kernels lose: how often is one lost here?
 *
 *   race=expand|ceiling|lost-update|missed-flush tries=N length=BYTES stand_in=0|1
 *
 * They are the interleavings of the checker's scenarios of these names. In each try one thread tears
 * a range down, and the other one acts as soon as it sees by mincore(2) that what it waits for has
 * happened: so what it writes comes after the teardown and has to stay.
 *
 *   expand       grow the stack above into the range, and write there
 *   ceiling      grow it into the range's last page table, beyond the range, and write there
 *   lost-update  grow a stack elsewhere page by page: total_vm has to be right in the end
 *   missed-flush give the page back that the first has just zapped, and write there
 *
 * `stand_in` tears down in several calls, the last of which takes away what the other thread did
 * meanwhile: what the bug does, on a kernel that doesn't have it. The record "race" holds an array of
 * struct attempt.
 */

#include <setjmp.h>
#include <sys/resource.h>

#define MOST_TRIES 20000
#define HUGE (2UL << 20)
#define ROOM (64UL << 20)     /* below the stack of lost-update */
#define GAP (4UL << 20)       /* a stack keeps a MiB away from what lies below */
#define NR_PIECES 1024
#define WRITTEN 0x5a

enum outcome { KEPT, LOST, REFUSED };

struct attempt { int64_t begin_ns, seen_ns, acted_ns, end_ns, outcome; };

struct race {
	const char *name;
	void (*lay_out)(void);
	void (*act)(struct attempt *);
	void (*take_down)(void);
	void (*stand_in)(void);
	int by_books; /* what counts is total_vm, not what was written */
};

static struct { char *begin, *end, *range, *stack; size_t length; } arena;
static struct attempt *attempts;
static const struct race *race;
static long nr_tries, own_pages;
static int with_stand_in;
static volatile char *watched, *written;
static volatile int turn, ready, done, over; /* the try that may begin, looks, has ended; its call has */
static volatile int64_t delay_ns;
static sigjmp_buf refusal;

static void race_range(size_t length)
{
	map(arena.range, length, PROT_READ | PROT_WRITE, MAP_FIXED, -1);
	madvise(arena.range, length, MADV_NOHUGEPAGE);
}

static void race_touch(size_t length)
{
	size_t i;

	if (madvise(arena.range, length, MADV_POPULATE_WRITE))
		for (i = 0; i < length; i += PAGE)
			arena.range[i] = 1;
}

static void race_stack(char *at)
{
	arena.stack = at;
	map(at, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_GROWSDOWN, -1);
}

static void expand_lay_out(void)
{
	race_range(arena.length);
	race_touch(arena.length - HUGE);
	race_stack(arena.range + arena.length);
	watched = written = arena.stack - PAGE;
}

static void ceiling_lay_out(void)
{
	race_range(arena.length - 16 * PAGE);
	race_touch(arena.length - 16 * PAGE);
	race_stack(arena.range + arena.length);
	watched = arena.range;
	written = arena.stack - PAGE;
}

static void books_lay_out(void)
{
	size_t piece = arena.length / NR_PIECES / PAGE * PAGE;
	int i;

	race_range(arena.length);
	for (i = 1; i < NR_PIECES; i += 2)
		mprotect(arena.range + i * piece, piece, PROT_READ);
	map(arena.range + arena.length, PAGE, PROT_READ, MAP_FIXED, -1);
	race_stack(arena.range + arena.length + ROOM);
	watched = arena.range;
	written = arena.stack - PAGE;
}

static void flush_lay_out(void)
{
	race_range(arena.length);
	race_touch(arena.length);
	watched = written = arena.range;
}

/* Wait until nothing is mapped where we look: the teardown's VMAs are out of the tree. */
static void wait_until_unmapped(struct attempt *attempt)
{
	unsigned char present;

	ready = turn;
	while (!mincore((void *)watched, PAGE, &present))
		;
	attempt->seen_ns = now_ns();
}

static void grow(struct attempt *attempt)
{
	wait_until_unmapped(attempt);
	while (now_ns() < attempt->seen_ns + delay_ns)
		;
	*written = WRITTEN;
}

static void grow_by_pages(struct attempt *attempt)
{
	volatile char *page = written;

	wait_until_unmapped(attempt);
	for (; !over && page > arena.range + arena.length + GAP; page -= PAGE)
		*page = WRITTEN;
}

static void give_back(struct attempt *attempt)
{
	unsigned char present = 1;

	*written = 1; /* this CPU's TLB has the page */
	ready = turn;
	while (!over && !mincore((void *)watched, PAGE, &present) && present & 1)
		;
	attempt->seen_ns = now_ns();
	madvise((void *)watched, PAGE, MADV_DONTNEED);
	*written = WRITTEN;
}

static size_t torn(void)
{
	return race->lay_out == ceiling_lay_out ? arena.length - 16 * PAGE : arena.length;
}

static void unmap_range(void)
{
	if (munmap(arena.range, torn()))
		die("cannot unmap %zu bytes", torn());
}

static void zap_range(void)
{
	if (madvise(arena.range, arena.length, MADV_DONTNEED))
		die("cannot give %zu bytes back", arena.length);
}

#define A_WHILE 200000 /* ns: on a busy machine the other thread gets a CPU in it */

static void unmap_in_calls(void)
{
	munmap(arena.range, PAGE);
	munmap(arena.range + torn() - HUGE, HUGE);
	sleep_ns(A_WHILE);
	munmap(arena.range, arena.length);
}

static void unmap_and_forget(void)
{
	unmap_range();
	map(NULL, PAGE, PROT_READ, 0, -1);
}

static void zap_twice(void)
{
	madvise(arena.range, PAGE, MADV_DONTNEED);
	sleep_ns(A_WHILE);
	zap_range();
}

static const struct race races[] = {
	{ "expand", expand_lay_out, grow, unmap_range, unmap_in_calls, 0 },
	{ "ceiling", ceiling_lay_out, grow, unmap_range, unmap_in_calls, 0 },
	{ "lost-update", books_lay_out, grow_by_pages, unmap_range, unmap_and_forget, 1 },
	{ "missed-flush", flush_lay_out, give_back, zap_range, zap_twice, 0 },
};

static void race_refused(int signal_)
{
	(void)signal_;
	siglongjmp(refusal, 1);
}

static void *race_other(void *unused)
{
	int nth;

	(void)unused;
	for (nth = 1; nth <= nr_tries; nth++) {
		struct attempt *attempt = &attempts[nth - 1];

		while (turn < nth)
			sched_yield();
		if (sigsetjmp(refusal, 1))
			attempt->outcome = REFUSED;
		else
			race->act(attempt);
		attempt->acted_ns = now_ns();
		__sync_synchronize();
		done = nth;
	}
	return NULL;
}

/* Pages of this address space, as the kernel's books have them. */
static long total_vm(void)
{
	char text[64] = "";
	int fd = open("/proc/self/statm", O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		die("cannot read %s", "/proc/self/statm");
	close(fd);
	return strtol(text, NULL, 10);
}

static void arena_clear(void)
{
	if (munmap(arena.begin, arena.end - arena.begin))
		die("cannot clear %zu bytes", arena.end - arena.begin);
}

/* Its thread's stack lies below the arena: up to 4.20 an access far below the stack pointer is none
 * that a stack grows for. */
static void arena_make(size_t length, pthread_attr_t *thread)
{
	size_t whole = length + ROOM + 4 * GAP;
	char *begin = map(NULL, whole, PROT_NONE, 0, -1);

	begin += -(uintptr_t)begin & (HUGE - 1);
	map(begin, 1 << 20, PROT_READ | PROT_WRITE, MAP_FIXED, -1);
	pthread_attr_init(thread);
	pthread_attr_setstack(thread, begin, 1 << 20);
	arena.begin = begin + HUGE;
	arena.end = begin + whole - HUGE;
	arena.range = begin + GAP + HUGE;
	arena.length = length;
}

static enum outcome outcome_of(const struct attempt *attempt)
{
	if (attempt->outcome == REFUSED)
		return REFUSED;
	if (!race->by_books)
		return *written == WRITTEN ? KEPT : LOST;
	arena_clear();
	return total_vm() == own_pages ? KEPT : LOST;
}

static void race_try(int nth)
{
	struct attempt *attempt = &attempts[nth - 1], *last = nth > 1 ? attempt - 1 : attempt;

	arena_clear();
	own_pages = total_vm();
	race->lay_out();
	/* From at once to the end of the call, as long as it took the last time. */
	delay_ns = race->lay_out == ceiling_lay_out ? (last->end_ns - last->begin_ns) * (nth % 64) / 64 : 0;
	over = 0;
	__sync_synchronize();
	turn = nth;
	while (ready < nth)
		sched_yield();
	attempt->begin_ns = now_ns();
	with_stand_in ? race->stand_in() : race->take_down();
	attempt->end_ns = now_ns();
	over = 1;
	while (done < nth)
		sched_yield();
	attempt->outcome = outcome_of(attempt);
}

static void race_target(void)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	pthread_attr_t attributes;
	pthread_t thread;
	int nth;

	prctl(PR_SET_NAME, "race");
	setrlimit(RLIMIT_STACK, &unlimited);
	arena_make(number("length", 16L << 20), &attributes);
	signal(SIGSEGV, race_refused);
	signal(SIGBUS, race_refused);
	arena_clear();
	if (pthread_create(&thread, &attributes, race_other, NULL))
		die("cannot start the second thread%s", "");
	for (nth = 1; nth <= nr_tries; nth++)
		race_try(nth);
	pthread_join(thread, NULL);
	arena_clear();
	_exit(0);
}

/* Drive a race in a process of its own, whose end shows whether the kernel's books are right. */
static void race_run(const char *name)
{
	static char log[1 << 19];
	struct utsname uname_;
	size_t i;
	int status, pid;

	for (i = 0; i < sizeof(races) / sizeof(*races); i++)
		if (is(races[i].name, name))
			race = &races[i];
	nr_tries = number("tries", 1000);
	with_stand_in = number("stand_in", 0);
	if (!race || nr_tries < 1 || nr_tries > MOST_TRIES)
		die("no race %s, or no such number of tries", name);
	attempts = mmap(NULL, sizeof(*attempts) * nr_tries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (attempts == MAP_FAILED)
		die("cannot map room for %ld tries", nr_tries);
	capsule_phase(2);
	pid = fork_child();
	if (!pid)
		race_target();
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status))
		die("the target of the race failed with status %#x", status);
	capsule_phase(3);
	uname(&uname_);
	capsule_printf("facts",
		"release=%s\nversion=%s\nnr_cpus=%ld\ntarget_pid=%d\nbrk_begin_ns=0\nbrk_end_ns=0\n"
		"begin_ns=%lld\nend_ns=%lld\ncpu_ns=0\n",
		uname_.release, uname_.version, sysconf(_SC_NPROCESSORS_CONF), pid,
		(long long)attempts[0].begin_ns, (long long)attempts[nr_tries - 1].end_ns);
	capsule_put("race", attempts, sizeof(*attempts) * nr_tries);
	status = klogctl(3, log, sizeof(log));
	capsule_put("kernel_log", log, status > 0 ? status : 0);
}
