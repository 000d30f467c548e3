/* The kernel's own view: a private tracefs instance with the lock events (the mmap_lock tracepoints,
 * or lockprobes.c where there are none) and, around them, the system calls of mm with their
 * arguments, user page faults and scheduling; or, on request, the function_graph tracer over the
 * functions that tear a mapping down.
 *
 * An event that this kernel does not have is left out; the capsule holds the format files of those
 * that were switched on, so that the reader knows.
 */

static const char *tracefs;
static char instance[128];

static const char *const lock_events[] = {
	"mmap_lock/mmap_lock_start_locking", "mmap_lock/mmap_lock_acquire_returned",
	"mmap_lock/mmap_lock_released",
};
#define NR_LOCK_EVENTS (sizeof(lock_events) / sizeof(*lock_events))

static const char *const events[] = {
	"syscalls/sys_enter_munmap", "syscalls/sys_exit_munmap",
	"syscalls/sys_enter_mmap", "syscalls/sys_exit_mmap",
	"syscalls/sys_enter_mremap", "syscalls/sys_exit_mremap",
	"syscalls/sys_enter_brk", "syscalls/sys_exit_brk",
	"syscalls/sys_enter_madvise", "syscalls/sys_exit_madvise",
	"syscalls/sys_enter_exit_group",
	"exceptions/page_fault_user",
	"sched/sched_switch", "sched/sched_waking", "sched/sched_wakeup", "sched/sched_process_exit",
	"task/task_newtask", "task/task_rename",
};
#define NR_EVENTS (sizeof(events) / sizeof(*events))

static int write_text(const char *path, const char *text, int how)
{
	int fd = open(path, O_WRONLY | how);
	ssize_t n;

	if (fd < 0)
		return 0;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text);
}

static int write_file(const char *path, const char *text)
{
	return write_text(path, text, O_TRUNC);
}

static int trace_set(const char *file, const char *text)
{
	char path[384];

	snprintf(path, sizeof(path), "%s/%s", instance, file);
	return write_file(path, text);
}

static int has_tracefs(const char *folder)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/trace_clock", folder);
	return !access(path, F_OK);
}

static int trace_enable(const char *event)
{
	char path[200];

	snprintf(path, sizeof(path), "events/%s/enable", event);
	return trace_set(path, "1");
}

static void trace_save_format(const char *event)
{
	char name[200], path[360];

	snprintf(name, sizeof(name), "events/%s/format", event);
	snprintf(path, sizeof(path), "%s/%s", instance, name);
	capsule_file(name, path, 4096);
}

/* Have the tracer watch each of the comma-separated functions that this kernel has. */
static void trace_filter(const char *file, const char *functions)
{
	char path[256], name[64];
	const char *end;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", instance, file);
	for (; *functions; functions = *end ? end + 1 : end) {
		end = strchrnul(functions, ',');
		snprintf(name, sizeof(name), "%.*s", (int)(end - functions), functions);
		fd = open(path, O_WRONLY | O_APPEND);
		(void)!write(fd, name, strlen(name));
		close(fd);
	}
}

static long trace_buffer_kb;

static void trace_set_up(void)
{
	char number[32];

	snprintf(number, sizeof(number), "%ld", trace_buffer_kb);
	if (!trace_set("trace_clock", "mono") || !trace_set("buffer_size_kb", number))
		die("cannot set up the trace instance %s", instance);
}

static void trace_make(const char *name, long buffer_kb)
{
	snprintf(instance, sizeof(instance), "%s/instances/%s", tracefs, name);
	if (mkdir(instance, 0700) && errno != EEXIST)
		die("cannot make the trace instance %s", instance);
	trace_buffer_kb = buffer_kb;
	trace_set_up();
}

static void trace_at_the_top(void)
{
	rmdir(instance);
	snprintf(instance, sizeof(instance), "%s", tracefs);
	trace_set_up();
}

#include "lockprobes.c"

/* Keep out what the rest of the machine does: on a busy host it would fill the buffers. Threads of
 * the target and the foreign readers are all there by now. What a stranger does to the target's lock
 * is not seen then. */
static void trace_only_ours(const struct lane *lanes, int nr_lanes, int target)
{
	char pids[256];
	int i, length = snprintf(pids, sizeof(pids), "%d", target);

	for (i = 0; i < nr_lanes; i++)
		length += snprintf(pids + length, sizeof(pids) - length, " %d", lanes[i].tid);
	if (!trace_set("set_event_pid", pids) || (lock_ways & GRAPH && !trace_set("set_ftrace_pid", pids)))
		die("cannot narrow the trace instance %s", instance);
}

static void trace_events(void)
{
	size_t i;

	for (i = 0; i < NR_EVENTS; i++)
		trace_enable(events[i]);
}

/* function_graph works at the top level alone before 6.13: there the guest uses it, never the host. */
static void trace_graph(const char *root_function, const char *functions)
{
	snprintf(instance, sizeof(instance), "%s", tracefs);
	trace_set("tracing_on", "0");
	trace_set("trace_clock", "mono");
	trace_set("buffer_size_kb", "8192");
	trace_filter("set_ftrace_filter", functions);
	trace_filter("set_graph_function", root_function);
	if (!trace_set("current_tracer", "function_graph"))
		die("this kernel has no function_graph tracer%s", "");
	trace_set("options/funcgraph-abstime", "1");
	trace_set("options/funcgraph-proc", "1");
	trace_set("options/funcgraph-irqs", "0");
	trace_set("options/sleep-time", "1");
	trace_set("trace", "");
}

/* Name every task that there is: events carry thread ids, and tasks end. Lines of pid, tid, comm. */
static void trace_save_tasks(void)
{
	char path[320], comm[32];
	size_t room, length = 0;
	char *to = (char *)capsule_begin("tasks", &room);
	DIR *processes = opendir("/proc"), *threads;
	struct dirent *process, *thread;
	ssize_t n;
	int fd;

	while (processes && (process = readdir(processes))) {
		snprintf(path, sizeof(path), "/proc/%.16s/task", process->d_name);
		if (process->d_name[0] < '0' || process->d_name[0] > '9' || !(threads = opendir(path)))
			continue;
		while ((thread = readdir(threads))) {
			snprintf(path, sizeof(path), "/proc/%.16s/task/%.16s/comm", process->d_name, thread->d_name);
			if (thread->d_name[0] == '.' || (fd = open(path, O_RDONLY)) < 0)
				continue;
			n = read(fd, comm, sizeof(comm));
			close(fd);
			if (n > 0)
				length += snprintf(to + length, room - length, "%s %s %.*s", process->d_name,
						   thread->d_name, (int)n, comm);
		}
		closedir(threads);
	}
	closedir(processes);
	capsule_end("tasks", length);
}

static void trace_save_formats(void)
{
	char path[256];
	size_t i;

	for (i = 0; i < NR_EVENTS; i++)
		trace_save_format(events[i]);
	locks_save();
	snprintf(path, sizeof(path), "%s/events/header_page", tracefs);
	capsule_file("events/header_page", path, 4096);
	snprintf(path, sizeof(path), "%s/events/header_event", tracefs);
	capsule_file("events/header_event", path, 4096);
}

static void trace_save_pages(int nr_cpus)
{
	char name[64], path[256];
	int cpu;

	for (cpu = 0; cpu < nr_cpus; cpu++) {
		snprintf(name, sizeof(name), "stats/cpu%d", cpu);
		snprintf(path, sizeof(path), "%s/per_cpu/cpu%d/stats", instance, cpu);
		capsule_file(name, path, 4096);
		snprintf(name, sizeof(name), "pages/cpu%d", cpu);
		snprintf(path, sizeof(path), "%s/per_cpu/cpu%d/trace_pipe_raw", instance, cpu);
		capsule_file(name, path, 4096);
	}
}

static void trace_save_graph(void)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/trace", instance);
	capsule_file("function_graph", path, 65536);
}

static void trace_remove(void)
{
	trace_set("events/enable", "0");
	if (strcmp(instance, tracefs))
		rmdir(instance);
	locks_remove();
}
