/* The probe: one teardown of one big mapping beside some bystanders, on the kernel it runs on.
 *
 *   probe key=value...
 *
 *   length=BYTES backing=anonymous|zero|file|thp|hugetlb 
 *   bystanders=fault,mmap,proc,... (bystanders.c)
 *   teardown=munmap|fixed|growsdown|brk|mremap|dontneed|exit locked=1|0 vmas=N
 *   period_ns=N     a bystander sleeps so long between two operations
 *   settle_ns=N     the bystanders run so long alone before and after the teardown
 *   from_begin=1    no bystander does anything before the teardown begins
 *   trace=1|0       record the lock events of the kernel (root and tracefs)
 *   locks=auto|tracepoints|kprobes|function_graph|all|none  where the lock events come from
 *                   (lockprobes.c)
 *   graph=1         record the function_graph of the teardown instead (in a guest)
 *   graph_root=FUNCTION,... graph_functions=PATTERN,...
 *   cpu_max=QUOTA_PERIOD  give the target so many us of CPU time in each period (in a guest)
 *   hung_s=N        set hung_task_timeout_secs (in a guest)
 *   capsule=FILE    where the results go (capsule.c); a guest finds its device itself
 *   tracefs=DIR instance=NAME buffer_kb=N
 *   race=NAME       drive a race of two threads instead (race.c)
 *
 * The same program is the init of a guest and an ordinary process on the host. As init it mounts
 * procfs, sysfs and tracefs and leaves by QEMU's isa-debug-exit with status (0 << 1) | 1 or, when
 * something failed, (1 << 1) | 1. Three processes: the supervisor, the target with the mapping, and
 * the foreign reader, so that neither tracing nor reading disturbs the target's lock.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

static void leave(int failed) __attribute__((noreturn));
#define die(...) (dprintf(2, "zaplock-probe: " __VA_ARGS__), dprintf(2, ": %s\n", strerror(errno)), leave(1))

static int supervisor_pid, in_guest, under_quota;

#include "capsule.c"
#include "teardown.c"
#include "bystanders.c"
#include "tracing.c"
#include "guest.c"
#include "quota.c"

static char *const *arguments;

static const char *option(const char *key, const char *otherwise)
{
	size_t length = strlen(key);
	char *const *argument;

	for (argument = arguments; *argument; argument++)
		if (!strncmp(*argument, key, length) && (*argument)[length] == '=')
			return *argument + length + 1;
	return otherwise;
}

static long number(const char *key, long otherwise)
{
	const char *text = option(key, NULL);

	return text ? strtol(text, NULL, 0) : otherwise;
}

static void leave(int failed)
{
	if (in_guest && getpid() == supervisor_pid)
		guest_exit(failed);
	_exit(failed);
}

static void wait_for(volatile int *value, int wanted, const char *what)
{
	int64_t limit = now_ns() + 600000000000LL;

	while (*value < wanted) {
		sleep_ns(1000000);
		if (waitpid(-1, NULL, WNOHANG) > 0)
			die("the target died before %s", what);
		if (now_ns() > limit)
			die("no end of %s", what);
	}
}

static void target(void)
{
	const char *teardown = option("teardown", "munmap"), *backing = option("backing", "anonymous");
	int64_t settle = number("settle_ns", 20000000), begin = now_ns();
	struct range range = range_reserve(teardown, backing, number("length", 1L << 30));
	int i;

	prctl(PR_SET_NAME, "zap");
	shared->target_tid = shared->target_pid = getpid();
	shared->range = range;
	range_shape(range, number("locked", 0), number("vmas", 1));
	range_populate(range, backing);
	shared->populate_ns = now_ns() - begin;
	for (i = 0; i < nr_lanes; i++)
		if (!is_foreign(&shared->lanes[i]))
			start_thread(&shared->lanes[i]);
	__sync_fetch_and_add(&shared->nr_ready, 1);
	while (!shared->go)
		sleep_ns(1000000);
	if (under_quota)
		quota_enter();
	sleep_ns(settle);
	shared->brk_begin_ns = now_ns();
	syscall(SYS_brk, 0); /* tells whoever reads the trace where the heap ends, and which lock is ours */
	shared->brk_end_ns = now_ns();
	begin = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	shared->begin_ns = now_ns();
	shared->result = range_teardown(range, teardown);
	shared->end_ns = now_ns();
	shared->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - begin;
	sleep_ns(settle);
	shared->stop = 1;
	sleep_ns(2 * period_ns + settle);
	_exit(shared->result != 0);
}

static void read_lanes(const char *list)
{
	const char *end;

	for (; *list && nr_lanes < MAX_LANES; list = *end ? end + 1 : end) {
		end = strchrnul(list, ',');
		snprintf(shared->lanes[nr_lanes++].name, 16, "%.*s", (int)(end - list), list);
	}
}

/* Fork a process that does not outlive this one, however this one ends. */
static int fork_child(void)
{
	int pid = fork();

	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* Fork the target, then the foreign readers of it; returns when all of them are ready. */
static int start(void)
{
	int i, pid = fork_child();

	if (!pid)
		target();
	while (!shared->target_pid)
		sleep_ns(1000000);
	for (i = 0; i < nr_lanes; i++)
		if (is_foreign(&shared->lanes[i]) && !fork_child()) {
			bystander(&shared->lanes[i]);
			_exit(0);
		}
	wait_for(&shared->nr_ready, 1 + nr_lanes, "the population");
	return pid;
}

/* Let everybody run, and wait for the target's end: an exit's own end is when its parent sees it. */
static void run(int pid)
{
	int status, ended = 0;

	shared->go = 1;
	for (; under_quota && !(ended = waitpid(pid, &status, WNOHANG)); sleep_ns(QUOTA_PAUSE_NS))
		quota_read();
	if (!ended)
		ended = waitpid(pid, &status, 0);
	if (ended != pid)
		die("lost the target%s", "");
	if (!shared->end_ns)
		shared->end_ns = now_ns();
	shared->stop = 1;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		die("the target failed with status %#x", status);
	while (waitpid(-1, &status, 0) > 0)
		;
}

#include "race.c"

static void save_results(void)
{
	struct utsname uname_;
	int i;
	char name[64];
	static char log[1 << 19];

	uname(&uname_);
	capsule_printf("facts",
		"release=%s\nversion=%s\nnr_cpus=%ld\nlength=%zu\nstart=%lu\ntarget_pid=%d\n"
		"populate_ns=%lld\nbrk_begin_ns=%lld\nbrk_end_ns=%lld\nbegin_ns=%lld\nend_ns=%lld\ncpu_ns=%lld\nresult=%ld\nsupervisor_pid=%d\n",
		uname_.release, uname_.version, sysconf(_SC_NPROCESSORS_CONF), shared->range.length,
		(unsigned long)shared->range.start, shared->target_pid,
		(long long)shared->populate_ns, (long long)shared->brk_begin_ns,
		(long long)shared->brk_end_ns, (long long)shared->begin_ns, (long long)shared->end_ns,
		(long long)shared->cpu_ns, shared->result, supervisor_pid);
	for (i = 0; i < nr_lanes; i++) {
		struct lane *lane = &shared->lanes[i];

		snprintf(name, sizeof(name), "lane/%s/%d/%d", lane->name, lane->pid, lane->tid);
		capsule_put(name, lane->ops, sizeof(*lane->ops) * lane->nr_ops);
	}
	if (under_quota)
		quota_save();
	if (in_guest)
		capsule_put("kernel_log", log, klogctl(3, log, sizeof(log)));
}

/* Have RCU's grace periods end at once: switching traces on and off waits for many of them, and an
 * emulated CPU that waits costs what a busy one costs. What is measured runs without. */
static void hurry(int on)
{
	if (in_guest)
		write_file("/sys/kernel/rcu_expedited", on ? "1" : "0");
}

int main(int argc, char **argv)
{
	int pid, trace, graph;

	(void)argc;
	arguments = argv + 1;
	supervisor_pid = getpid();
	in_guest = supervisor_pid == 1;
	if (in_guest)
		guest_boot();
	capsule_open(in_guest ? guest_capsule() : option("capsule", "capsule"), 0);
	if (option("race", NULL)) {
		race_run(option("race", NULL));
		capsule_close();
		leave(0);
	}
	hurry(1);
	trace = number("trace", 1) && has_tracefs(option("tracefs", "/sys/kernel/tracing"));
	graph = in_guest && number("graph", 0);
	tracefs = option("tracefs", "/sys/kernel/tracing");
	period_ns = number("period_ns", period_ns);
	from_begin = number("from_begin", 0);
	if (in_guest)
		guest_hung_task(option("hung_s", NULL));
	under_quota = in_guest && option("cpu_max", NULL);
	if (under_quota)
		quota_make(option("cpu_max", NULL));
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("cannot map %zu bytes", sizeof(*shared));
	read_lanes(option("bystanders", ""));
	if (trace)
		trace_make(option("instance", "zaplock-probe"), number("buffer_kb", 8192));
	locks_choose(trace && !graph ? option("locks", "auto") : "none");
	capsule_phase(1);
	pid = start();
	trace_save_tasks();
	if (graph) {
		trace_graph(option("graph_root", "*"), option("graph_functions", "*"));
	} else if (trace) {
		if (!in_guest)
			trace_only_ours(shared->lanes, nr_lanes, shared->target_tid);
		trace_set("tracing_on", "0"); /* no event of a call whose other ones are not on yet */
		trace_events();
		locks_enable();
	}
	hurry(0);
	trace_set("tracing_on", trace ? "1" : "0");
	capsule_phase(2);
	run(pid);
	capsule_phase(3);
	hurry(1);
	trace_set("tracing_on", "0");
	save_results();
	features_save();
	if (graph) {
		trace_save_graph();
	} else if (trace) {
		trace_save_formats();
		trace_save_pages(sysconf(_SC_NPROCESSORS_CONF));
	}
	if (trace && !in_guest) /* a guest takes its instances with it */
		trace_remove();
	capsule_close();
	leave(0);
}
