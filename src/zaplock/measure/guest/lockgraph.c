/* The lock events by function_graph, where a kernel has neither tracepoints nor kprobes: entries and
 * returns of the rwsem's functions and of those that tell whose semaphore it is. What they mean is
 * told later (recorder/graph_calls.py, which has the same names). Before 6.13 the tracer works at
 * the top level alone, so all events are recorded there then: in a guest, never on the host.
 */

static const char *const graph_prefixes[] = { "__x64_sys_", "SyS_", "sys_" };
static const char *const graph_calls[] = {
	"munmap", "mmap", "brk", "mremap", "madvise", "mprotect", "read", "process_vm_readv",
};
static const char *const graph_around[] = {
	"copy_process", "do_exit", "exit_mmap", "__do_page_fault", "do_user_addr_fault",
	"exc_page_fault", "vfs_read", "mm_access",
};
static const char *const graph_events[] = { "ftrace/funcgraph_entry", "ftrace/funcgraph_exit" };
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static int by_graph;

static int graph_knows(const char *name)
{
	size_t i, length;

	for (i = 0; i < NR_RWSEM_FUNCTIONS; i++)
		if (!strcmp(name, rwsem_functions[i].name))
			return 1;
	for (i = 0; i < COUNT(graph_around); i++)
		if (!strcmp(name, graph_around[i]))
			return 1;
	for (i = 0; i < COUNT(graph_prefixes); i++) {
		length = strlen(graph_prefixes[i]);
		if (!strncmp(name, graph_prefixes[i], length))
			break;
	}
	if (i < COUNT(graph_prefixes))
		for (i = 0, name += length; i < COUNT(graph_calls); i++)
			if (!strcmp(name, graph_calls[i]))
				return 1;
	return 0;
}

/* Have the tracer follow each known function that the symbol table has, and put down where it is. */
static void graph_enable(void)
{
	static char line[512], name[64];
	unsigned long address;
	FILE *symbols = fopen("/proc/kallsyms", "r");
	size_t room, length = 0;
	char *to = (char *)capsule_begin("graph_functions", &room), kind;

	while (symbols && fgets(line, sizeof(line), symbols))
		if (sscanf(line, "%lx %c %63s", &address, &kind, name) == 3 && (kind == 't' || kind == 'T') &&
		    graph_knows(name) && room - length > sizeof(name) + 32) {
			length += snprintf(to + length, room - length, "%lx %s\n", address, name);
			trace_filter("set_ftrace_filter", name);
		}
	if (symbols)
		fclose(symbols);
	capsule_end("graph_functions", length);
	by_graph = length && trace_set("current_tracer", "function_graph");
}

static void graph_disable(void)
{
	if (by_graph)
		trace_set("current_tracer", "nop");
}
