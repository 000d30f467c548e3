/* Bystanders: tasks that do a small thing over and over and write down how long each took.
 *
 *   fault   a thread of the target that writes to a fresh page of its own VMA
 *   mmap    a thread of the target that maps a page and unmaps it: the queued writer
 *   madvise a thread of the target that drops a page of its own VMA by MADV_DONTNEED
 *   mprotect  a thread of the target that makes a page of its own read-only, and writable again
 *   clone   a thread of the target that maps a thread's stack, protects its guard page, and unmaps it
 *   fork    a thread of the target that forks, and the child exits; from the teardown's begin on,
 *           since before it would copy what is to be unmapped
 *   proc    a foreign process that reads /proc/PID/cmdline of the target, as ps does
 *   environ, maps, smaps, rollup  foreign processes that read those files of it (smaps_rollup)
 *   gup     a foreign process that reads a byte of the target: get_user_pages on its mm
 *
 * The next operation is due a period after the last began, or at once when that took longer.
 *
 * With from_begin=1 nobody does anything before the teardown begins.
 *
 * Their records lie in memory that is shared with the supervisor and survive the target's exit.
 */

#define MAX_LANES 8
#define MAX_OPS 32768
#define ARENA (1UL << 28)
#define STACK (8UL << 20)

struct lane {
	char name[16];
	int tid, pid;
	int nr_ops;
	int64_t ops[MAX_OPS][2]; /* begin and end, CLOCK_MONOTONIC, ns */
};

static struct shared {
	volatile int nr_ready, go, stop;
	int target_tid, target_pid;
	int64_t populate_ns, brk_begin_ns, brk_end_ns, begin_ns, end_ns, cpu_ns;
	long result;
	struct range range;
	struct lane lanes[MAX_LANES];
} *shared;

static int nr_lanes;
static long period_ns = 1000000, from_begin;

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void sleep_ns(int64_t ns)
{
	struct timespec t = { ns / 1000000000, ns % 1000000000 };

	syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, NULL);
}

static const struct { const char *bystander, *file; } proc_files[] = {
	{ "proc", "cmdline" }, { "environ", "environ" }, { "maps", "maps" },
	{ "smaps", "smaps" }, { "rollup", "smaps_rollup" },
};

/* The file of /proc/PID that a bystander reads, NULL for those that read none. */
static const char *proc_file(const struct lane *lane)
{
	size_t i;

	for (i = 0; i < sizeof(proc_files) / sizeof(*proc_files); i++)
		if (is(lane->name, proc_files[i].bystander))
			return proc_files[i].file;
	return NULL;
}

static int is_foreign(const struct lane *lane)
{
	return proc_file(lane) || is(lane->name, "gup");
}

/* Read a byte of the target: ours at the same address, since it is our fork. */
static void read_target(void)
{
	static char byte;
	struct iovec local = { &byte, 1 }, remote = { &nr_lanes, 1 };

	syscall(SYS_process_vm_readv, shared->target_pid, &local, 1, &remote, 1, 0);
}

/* Read a file of the target's to its end. */
static void read_file(int directory, const char *name)
{
	static char text[65536];
	int fd = openat(directory, name, O_RDONLY);

	if (fd < 0) {
		if (errno == ENOENT && !shared->begin_ns)
			die("this kernel has no /proc/PID/%s", name);
		return; /* the target is gone */
	}
	while (read(fd, text, sizeof(text)) > 0)
		;
	close(fd);
}

static long map_anew(size_t length)
{
	return syscall(SYS_mmap, NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void fork_and_exit(void)
{
	int status, pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (!pid)
		syscall(SYS_exit_group, 0);
	if (pid < 0)
		die("cannot fork%s", "");
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
}

static void operate(const struct lane *lane, char *arena, int directory)
{
	long at;

	if (is(lane->name, "fault"))
		*(volatile char *)(arena + (1 + lane->nr_ops) * PAGE) = 1;
	else if (is(lane->name, "mmap"))
		syscall(SYS_munmap, map_anew(PAGE), PAGE);
	else if (is(lane->name, "clone")) {
		at = map_anew(STACK);
		syscall(SYS_mprotect, at, PAGE, PROT_NONE);
		syscall(SYS_munmap, at, STACK);
	} else if (is(lane->name, "fork"))
		fork_and_exit();
	else if (is(lane->name, "gup"))
		read_target();
	else if (is(lane->name, "madvise"))
		syscall(SYS_madvise, arena, PAGE, MADV_DONTNEED);
	else if (is(lane->name, "mprotect")) {
		syscall(SYS_mprotect, arena, PAGE, PROT_READ);
		syscall(SYS_mprotect, arena, PAGE, PROT_READ | PROT_WRITE);
	} else if (proc_file(lane))
		read_file(directory, proc_file(lane));
	else
		die("no bystander %s", lane->name);
}

static void *bystander(void *argument)
{
	struct lane *lane = argument;
	char path[64], *arena = NULL;
	int directory = -1;
	int64_t begin;

	lane->tid = syscall(SYS_gettid);
	lane->pid = getpid();
	prctl(PR_SET_NAME, lane->name);
	if (is_foreign(lane)) {
		snprintf(path, sizeof(path), "/proc/%d", shared->target_pid);
		directory = open(path, O_RDONLY | O_DIRECTORY);
		operate(lane, NULL, directory); /* so that it has no page faults of its own later, */
		lane->ops[0][0] = now_ns(); /* not even those of the vdso */
	} else {
		arena = map(NULL, ARENA, PROT_READ | PROT_WRITE, 0, -1);
		madvise(arena, ARENA, MADV_NOHUGEPAGE);
		*(volatile char *)arena = 1; /* so that the VMA has its anon_vma */
	}
	memset(lane->ops, 0, sizeof(lane->ops));
	__sync_fetch_and_add(&shared->nr_ready, 1);
	while (!shared->go || ((from_begin || is(lane->name, "fork")) && !shared->begin_ns && !shared->stop))
		sleep_ns(shared->go ? period_ns : 1000000);
	while (!shared->stop && lane->nr_ops < MAX_OPS - 1) {
		begin = now_ns();
		lane->ops[lane->nr_ops][0] = begin;
		operate(lane, arena, directory);
		lane->ops[lane->nr_ops][1] = now_ns();
		lane->nr_ops++;
		begin += period_ns - now_ns();
		if (begin > 0)
			sleep_ns(begin);
	}
	return NULL;
}

static void start_thread(struct lane *lane)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	if (pthread_create(&thread, &attributes, bystander, lane))
		die("cannot start the bystander %s", lane->name);
	pthread_attr_destroy(&attributes);
}
