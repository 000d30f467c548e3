/* A CPU quota for the target of a guest: a cgroup of its own, and what its account said meanwhile.
 *
 * The target enters it, with all its threads, when everything is ready; the supervisor and the
 * foreign readers stay outside, as zaplock's own cpu_limit has it on the host.
 */

#define QUOTA_ROOT "/sys/fs/cgroup"
#define QUOTA_GROUP QUOTA_ROOT "/zap"
#define QUOTA_PAUSE_NS 5000000

static struct { char *text; size_t room, length; } quota_log;

/* Make the group; `limit` is "QUOTA PERIOD" in microseconds, with an underscore between the two. */
static void quota_make(const char *limit)
{
	char text[64], *gap;

	snprintf(text, sizeof(text), "%s", limit);
	if ((gap = strchr(text, '_')))
		*gap = ' ';
	if ((mount("cgroup2", QUOTA_ROOT, "cgroup2", 0, NULL) && errno != EBUSY) ||
	    !write_file(QUOTA_ROOT "/cgroup.subtree_control", "+cpu") ||
	    mkdir(QUOTA_GROUP, 0755) || !write_file(QUOTA_GROUP "/cpu.max", text))
		die("this kernel gives no cgroup with cpu.max %s", text);
	quota_log.room = 1 << 20;
	quota_log.text = malloc(quota_log.room);
}

static void quota_enter(void)
{
	if (!write_file(QUOTA_GROUP "/cgroup.procs", "0"))
		die("cannot enter the cgroup%s", "");
}

static long long quota_figure(const char *stat, const char *name)
{
	const char *at = strstr(stat, name);

	return at ? atoll(at + strlen(name)) : 0;
}

/* Note the account: a line of the time, the throttled time in us and how often. */
static void quota_read(void)
{
	char stat[1024] = "";
	int fd = open(QUOTA_GROUP "/cpu.stat", O_RDONLY);

	if (fd < 0 || read(fd, stat, sizeof(stat) - 1) < 0 || quota_log.length + 128 > quota_log.room)
		die("cannot read the account of the cgroup%s", "");
	close(fd);
	quota_log.length += sprintf(quota_log.text + quota_log.length, "%lld %lld %lld\n", (long long)now_ns(),
				    quota_figure(stat, "throttled_usec "), quota_figure(stat, "nr_throttled "));
}

static void quota_save(void)
{
	capsule_put("quota", quota_log.text, quota_log.length);
}
