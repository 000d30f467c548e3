/* The lock events: the mmap_lock tracepoints (5.11), or kprobes on the rwsem's functions, or, in a
 * guest, function_graph (lockgraph.c).
 *
 * A probe at a function's entry tells the semaphore (its first argument, in %di), one at its return
 * what came of it. The functions are those of the kernel's symbol table whose names are known here;
 * which of them are semaphores of address spaces is told later (recorder/rwsem_probes.py). Return
 * probes have a pool of places for tasks that are inside: 256 from 4.12 on, and before that as many
 * as there may be CPUs, whence possible_cpus= on the command line of an old guest.
 */

enum returns { NO_PROBE, NOTHING, VALUE };

static const struct { const char *name; enum returns returns; } rwsem_functions[] = {
	{ "down_read", NOTHING }, { "down_read_nested", NOTHING }, { "down_read_interruptible", VALUE },
	{ "down_read_killable", VALUE }, { "down_read_killable_nested", VALUE },
	{ "down_read_trylock", VALUE }, { "down_write", NOTHING }, { "down_write_nested", NOTHING },
	{ "_down_write_nest_lock", NOTHING }, { "down_write_killable", VALUE },
	{ "down_write_killable_nested", VALUE }, { "down_write_trylock", VALUE },
	{ "up_read", NO_PROBE }, { "up_read_non_owner", NO_PROBE }, { "up_write", NO_PROBE },
	{ "downgrade_write", NO_PROBE },
};
#define NR_RWSEM_FUNCTIONS (sizeof(rwsem_functions) / sizeof(*rwsem_functions))

static int file_has(const char *path, const char *word)
{
	static char text[4096];
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return strstr(text, word) != NULL;
}

#include "lockgraph.c"

static char probe_group[80], probed[2 * NR_RWSEM_FUNCTIONS][160];
static size_t nr_probed;

static int probe_command(const char *command)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/kprobe_events", tracefs);
	return write_text(path, command, O_APPEND);
}

/* Make one probe and switch it on; false where the kernel refuses. */
static int probe_make(const char *kind, const char *function, const char *suffix, const char *argument)
{
	char command[320], *event = probed[nr_probed];

	snprintf(event, sizeof(probed[0]), "%s/%s%s", probe_group, function, suffix);
	snprintf(command, sizeof(command), "%s:%s %s %s\n", kind, event, function, argument);
	if (!probe_command(command) || !trace_enable(event))
		return 0;
	nr_probed++;
	return 1;
}

/* A number of places for returns can be asked for from 4.12 on (696ced4fb1d7). Before, it is neither
 * understood nor refused: the probe gets a name of the kernel's own. */
static int counts_places(void)
{
	struct utsname name;
	int major = 0, minor = 0;

	return !uname(&name) && sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
	       (major > 4 || (major == 4 && minor >= 12));
}

/* The return first: the entry of a call whose return is not seen would say nothing. A kernel that
 * knows its types (BTF) refuses the return value of a function that has none. */
static void probe_function(const char *function, enum returns returns)
{
	const char *value = returns == VALUE ? "ret=$retval:s32" : "";

	if (returns == NO_PROBE || (counts_places() && probe_make("r256", function, "_ret", value)) ||
	    probe_make("r", function, "_ret", value))
		probe_make("p", function, "", "sem=%di");
}

/* Probe each known function that the symbol table has. */
static void probe_symbols(void)
{
	static char line[512], name[64];
	FILE *symbols = fopen("/proc/kallsyms", "r");
	int done[NR_RWSEM_FUNCTIONS] = { 0 };
	size_t i;
	char kind;

	while (symbols && fgets(line, sizeof(line), symbols)) {
		if (sscanf(line, "%*s %c %63s", &kind, name) != 2 || (kind != 't' && kind != 'T'))
			continue;
		for (i = 0; i < NR_RWSEM_FUNCTIONS; i++)
			if (!strcmp(name, rwsem_functions[i].name) && !done[i]++)
				probe_function(name, rwsem_functions[i].returns);
	}
	if (symbols)
		fclose(symbols);
}

static int has_tracepoints(void)
{
	char path[320];

	snprintf(path, sizeof(path), "%s/events/%s/format", tracefs, lock_events[0]);
	return !access(path, F_OK);
}

/* Whether a probe can be made: the file may be there, and the function not. */
static int has_kprobes(void)
{
	return probe_command("p:zaplock_try/down_read down_read\n") && probe_command("-:zaplock_try/down_read\n");
}

static int offers_graph(const char *folder)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/available_tracers", folder);
	return file_has(path, "function_graph");
}

/* An instance has the tracer from 6.13 on. Before, it works at the top level, which is the guest's to
 * use, never the host's. */
static int has_graph(void)
{
	return offers_graph(instance) || (in_guest && offers_graph(tracefs));
}

enum { TRACEPOINTS = 1, KPROBES = 2, GRAPH = 4 };
static int lock_ways;

/* Choose where lock events come from: `way` is auto, tracepoints, kprobes, function_graph, all or
 * none. An instance that lacks function_graph is left for the top level. */
static void locks_choose(const char *way)
{
	if (!strcmp(way, "auto"))
		lock_ways = has_tracepoints() ? TRACEPOINTS : has_kprobes() ? KPROBES : has_graph() ? GRAPH : 0;
	else if (!strcmp(way, "all"))
		lock_ways = (has_tracepoints() ? TRACEPOINTS : 0) | KPROBES | (has_graph() ? GRAPH : 0);
	else if (!strcmp(way, "tracepoints"))
		lock_ways = has_tracepoints() ? TRACEPOINTS : 0;
	else
		lock_ways = !strcmp(way, "kprobes") ? KPROBES : !strcmp(way, "function_graph") && has_graph() ? GRAPH : 0;
	if (lock_ways & GRAPH && !offers_graph(instance))
		trace_at_the_top();
}

/* Switch the lock events on. */
static void locks_enable(void)
{
	const char *name = strrchr(instance, '/') + 1;
	char *c;
	size_t i;

	snprintf(probe_group, sizeof(probe_group), "%.64s", in_guest ? "zaplock" : name);
	for (c = probe_group; *c; c++)
		if (*c == '-')
			*c = '_';
	for (i = 0; lock_ways & TRACEPOINTS && i < NR_LOCK_EVENTS; i++)
		trace_enable(lock_events[i]);
	if (lock_ways & KPROBES)
		probe_symbols();
	if (lock_ways & GRAPH)
		graph_enable();
}

static void locks_save(void)
{
	char path[256];
	size_t i;

	for (i = 0; lock_ways & TRACEPOINTS && i < NR_LOCK_EVENTS; i++)
		trace_save_format(lock_events[i]);
	for (i = 0; by_graph && i < COUNT(graph_events); i++)
		trace_save_format(graph_events[i]);
	for (i = 0; i < nr_probed; i++)
		trace_save_format(probed[i]);
	snprintf(path, sizeof(path), "%s/kprobe_profile", tracefs);
	if (nr_probed)
		capsule_file("kprobe_profile", path, 4096);
}

/* Say which features that a judgement can use this kernel has: lines of name=0 or 1. */
static void features_save(void)
{
	char probes[256], calls[320], sched[320], faults[320];

	snprintf(probes, sizeof(probes), "%s/kprobe_events", tracefs);
	snprintf(calls, sizeof(calls), "%s/events/syscalls/sys_enter_munmap", tracefs);
	snprintf(sched, sizeof(sched), "%s/events/sched/sched_switch", tracefs);
	snprintf(faults, sizeof(faults), "%s/events/exceptions/page_fault_user", tracefs);
	capsule_printf("features",
		"tracefs=%d\nmmap_lock=%d\nkprobe_events=%d\nkallsyms=%d\nfunction_graph=%d\n"
		"syscalls=%d\nsched=%d\npage_fault_user=%d\nhung_task=%d\nhugetlb=%d\n",
		has_tracefs(tracefs), has_tracepoints(), !access(probes, F_OK),
		!access("/proc/kallsyms", F_OK), has_graph(),
		!access(calls, F_OK), !access(sched, F_OK), !access(faults, F_OK),
		!access("/proc/sys/kernel/hung_task_timeout_secs", F_OK),
		!access("/proc/sys/vm/nr_hugepages", F_OK));
}

static void locks_remove(void)
{
	char command[192];

	graph_disable();
	while (nr_probed) {
		snprintf(command, sizeof(command), "-:%s\n", probed[--nr_probed]);
		probe_command(command);
	}
}
