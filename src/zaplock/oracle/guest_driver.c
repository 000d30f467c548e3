/* The oracle's real side in a guest: runs programs of the stub (stub.S) that the host hands over.
 *
 * It is the init of the guest. The memory of the ivshmem device is shared with the host while the
 * guest runs; guest_side.py writes this layout and reads the answers (little endian):
 *
 *   0x0      u64 "ZAPLIVE1" once the guest is ready
 *   0x8      u64 GO: the host counts it up: a program is there      0x10  u64 DONE: ... and has run
 *   0x18     u64 wait status of the runner, or LOST                 0x20  u64 restart first
 *   0x28     u64 bytes of the program      0x30  u64 bytes observed      0x38 u64 its place in the ring
 *   0x1000   text: facts about the kernel and the bare process, a "name value" each line
 *   0x10000  the ring as the bare process begins with it, and each program at its place
 *   0x100000 what the last program observed
 *
 * The bare process is made as on the host (bare_process.py): it maps the ring and jumps into the
 * stub, which unmaps everything else.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void guest_exit(int failed) __attribute__((noreturn));
#define die(...) (dprintf(2, "zaplock-probe: " __VA_ARGS__), dprintf(2, ": %s\n", strerror(errno)), guest_exit(1))

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0)
		return;
	(void)!write(fd, text, strlen(text));
	close(fd);
}

#include "guest.c"

enum { MAGIC, GO, DONE, STATUS, RESTART, LENGTH, OBSERVED, PLACE };
#define FACTS 0x1000
#define RING_IMAGE 0x10000
#define OBSERVATIONS 0x100000
#define LOST 0xffffffffffffULL
#define HANG_MS 60000
#define GROUP "/group"

static volatile uint64_t *words;
static unsigned char *shared, *ring;
static size_t shared_size;
static int ring_fd, out_fd, bare;
static uint64_t ring_at, ring_size, go_at, done_at, status_at, boot_at, kept, shares;
static char **options;
static int64_t pool_at_first;

static uint64_t option_of(char **argv, const char *name)
{
	size_t length = strlen(name);

	for (; *argv; argv++)
		if (!strncmp(*argv, name, length) && (*argv)[length] == '=')
			return strtoull(*argv + length + 1, NULL, 0);
	die("no %s on the command line", name);
}

static void nap(long ns)
{
	struct timespec t = {0, ns};

	nanosleep(&t, NULL);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Nap for a 16th of the time since a moment: who waits long looks up seldom. */
static void nap_since(uint64_t since)
{
	uint64_t ns = (now_ns() - since) / 16;

	nap(ns < 200000 ? 200000 : ns > 20000000 ? 20000000 : ns);
}

/* Field `number` (from 1) of /proc/self/stat. */
static uint64_t stat_field(int number)
{
	static char text[4096];
	int fd = open("/proc/self/stat", O_RDONLY);
	ssize_t length = read(fd, text, sizeof(text) - 1);
	char *at;
	int i;

	close(fd);
	text[length > 0 ? length : 0] = 0;
	at = strrchr(text, ')') + 2;
	for (i = 3; i < number; i++)
		at = strchr(at, ' ') + 1;
	return strtoull(at, NULL, 10);
}

static void become_bare(void)
{
	write_file(GROUP "/oracle/cgroup.procs", "0"); /* if it is there */
	dup2(out_fd, 3);
	if (mmap((void *)ring_at, ring_size, 7, MAP_SHARED | MAP_FIXED_NOREPLACE, ring_fd, 0) != (void *)ring_at)
		_exit(3);
	*(uint64_t *)(ring_at + boot_at + 8) = stat_field(47);
	((void (*)(uint64_t))ring_at)(ring_at + boot_at);
}

/* Make mount `number` of hugetlbfs as the command line has it; its root is descriptor kept + 1 + number. */
static void mount_share(char **argv, int number)
{
	static const char *const names[] = {"size", "min_size"};
	char path[] = "/share0", name[16], options[128] = "pagesize=2M";
	unsigned int i;
	int fd;

	path[6] += number;
	for (i = 0; i < 2; i++) {
		int64_t bytes;

		snprintf(name, sizeof(name), "%s%d", i ? "least" : "most", number);
		bytes = option_of(argv, name);
		if (bytes >= 0)
			sprintf(options + strlen(options), ",%s=%lld", names[i], (long long)bytes);
	}
	close(kept + 1 + number);
	umount2(path, MNT_DETACH);
	mkdir(path, 0755);
	if (mount("hugetlbfs", path, "hugetlbfs", 0, options))
		die("cannot mount hugetlbfs with %s", options);
	fd = open(path, O_RDONLY | O_DIRECTORY);
	if (fd < 0 || dup2(fd, kept + 1 + number) < 0)
		die("cannot open %s", path);
	close(fd);
}

/* Mount tmpfs number `number` with the huge= that the command line has; its root follows those of hugetlbfs. */
static void mount_tmpfs(int number)
{
	static const char *const policies[] = {"never", "always", "within_size", "advise"};
	char path[] = "/tmpfs0", name[16], data[64];
	int fd, number_kept = kept + 1 + shares + number;

	path[6] += number;
	snprintf(name, sizeof(name), "huge%d", number);
	snprintf(data, sizeof(data), "size=600M,huge=%s", policies[option_of(options, name) & 3]);
	mkdir(path, 0755);
	if (mount("tmpfs", path, "tmpfs", 0, data))
		die("cannot mount tmpfs with %s", data);
	fd = open(path, O_RDONLY | O_DIRECTORY);
	if (fd < 0 || dup2(fd, number_kept) < 0)
		die("cannot open %s", path);
	close(fd);
}

/* Lay the ring and the mounts anew and start a bare process; it is ready for a program at once. */
static void start(void)
{
	unsigned int i;

	memcpy(ring, shared + RING_IMAGE, ring_size);
	for (i = 0; i < shares; i++)
		mount_share(options, i);
	bare = fork();
	if (!bare)
		become_bare();
}

static void stop(void)
{
	kill(bare, SIGKILL);
	while (waitpid(bare, NULL, 0) != bare)
		;
}

static uint64_t run(void)
{
	volatile uint32_t *go = (void *)(ring + go_at), *done = (void *)(ring + done_at);
	struct timespec turn = {0, 100000000};
	int waited;

	memcpy(ring + words[PLACE], shared + RING_IMAGE + words[PLACE], words[LENGTH]);
	*done = 0;
	*go = 1;
	syscall(SYS_futex, go, FUTEX_WAKE, 1, NULL, NULL, 0);
	for (waited = 0; !*done; waited++) {
		syscall(SYS_futex, done, FUTEX_WAIT, 0, &turn, NULL, 0);
		if (waited > HANG_MS / 10 || waitpid(bare, NULL, WNOHANG) == bare)
			return LOST;
	}
	memcpy(shared + RING_IMAGE + words[PLACE], ring + words[PLACE], words[LENGTH]);
	return *(uint64_t *)(ring + status_at) & 0xffffffff;
}

static uint64_t copy_observed(void)
{
	static char bounce[1 << 16];
	uint64_t length = lseek(out_fd, 0, SEEK_CUR), at;
	ssize_t n;

	if (length > shared_size - OBSERVATIONS)
		length = shared_size - OBSERVATIONS;
	for (at = 0; at < length; at += n) {
		n = pread(out_fd, bounce, length - at < sizeof(bounce) ? length - at : sizeof(bounce), at);
		if (n <= 0)
			break;
		memcpy(shared + OBSERVATIONS + at, bounce, n);
	}
	return at;
}

static uint64_t number_in(const char *path)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return 0;
	(void)!read(fd, text, sizeof(text) - 1);
	close(fd);
	return strtoull(text, NULL, 10);
}

static uint64_t meminfo(const char *name)
{
	static char text[8192];
	int fd = open("/proc/meminfo", O_RDONLY);
	char *at;

	(void)!read(fd, text, sizeof(text) - 1);
	close(fd);
	at = strstr(text, name);
	return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

/* How many huge pages of the pool nobody uses or has reserved. */
static int64_t pool_left(void)
{
	return meminfo("HugePages_Free:") - meminfo("HugePages_Rsvd:");
}

/* Give the pool what the kernel has lost of it (docs/findings/half-moved-huge-pages), or take what it has too much. */
static void restore_pool(void)
{
	int64_t lost = pool_at_first - pool_left();
	char text[32];

	if (!lost)
		return;
	sprintf(text, "%lld", (long long)(meminfo("HugePages_Total:") + lost));
	write_file("/proc/sys/vm/nr_hugepages", text);
	if (pool_left() != pool_at_first)
		die("no memory for %lld huge pages that the kernel has lost", (long long)lost);
}

static int has_keys(void)
{
	long key = syscall(SYS_pkey_alloc, 0UL, 0UL);

	return key >= 0 && !syscall(SYS_pkey_free, key);
}

static void tell(void)
{
	static const int resources[] = {RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_AS};
	char *at = (char *)shared + FACTS;
	struct rlimit limit;
	struct utsname name;
	unsigned int i;

	uname(&name);
	for (i = 0; i < sizeof(resources) / sizeof(*resources); i++) {
		getrlimit(resources[i], &limit);
		at += sprintf(at, "soft_%d %lu\nhard_%d %lu\n", resources[i], limit.rlim_cur,
			      resources[i], limit.rlim_max);
	}
	sprintf(at, "release %s\nmax_map_count %lu\nmmap_min_addr %lu\n"
		"total_kb %lu\nswap_pages %lu\ndata_length %lu\novercommit_memory %lu\nhas_keys %d\n"
		"hugetlb_pages %ld\ngigantic_pages %lu\n",
		name.release, number_in("/proc/sys/vm/max_map_count"), number_in("/proc/sys/vm/mmap_min_addr"),
		meminfo("MemTotal:") + meminfo("SwapTotal:"), meminfo("SwapFree:") / 4,
		stat_field(46) - stat_field(45), number_in("/proc/sys/vm/overcommit_memory"), has_keys(),
		pool_at_first,
		number_in("/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages"));
}

/* Write what the command line says behind a prefix ("ksm:run=0") into files of a folder; return how many. */
static int set_files(char **argv, const char *prefix, const char *folder)
{
	size_t length = strlen(prefix);
	char path[128];
	int said = 0;

	for (; *argv; argv++) {
		char *name = *argv + length, *value;

		if (strncmp(*argv, prefix, length) || !(value = strchr(name, '=')))
			continue;
		snprintf(path, sizeof(path), "%s/%.*s", folder, (int)(value - name), name);
		write_file(path, value + 1);
		said++;
	}
	return said;
}

/* Have memory that ksmd may scan, where it is set at all. */
static void set_ksm(char **argv)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (set_files(argv, "ksm:", "/sys/kernel/mm/ksm") && madvise(page, 4096, MADV_MERGEABLE))
		die("no memory is mergeable%s", "");
}

/* Make memory cgroups (v2) for bare processes and for children, where the command line sets limits. */
static void set_group(char **argv)
{
	int i;

	for (i = 0; argv[i] && strncmp(argv[i], "group:", 6); i++)
		;
	if (!argv[i])
		return;
	mkdir(GROUP, 0755);
	if (mount("cgroup2", GROUP, "cgroup2", 0, NULL))
		die("cannot mount cgroup2%s", "");
	write_file(GROUP "/cgroup.subtree_control", "+memory");
	mkdir(GROUP "/oracle", 0755);
	mkdir(GROUP "/filled", 0755);
	if (access(GROUP "/oracle/memory.max", W_OK))
		die("no memory controller%s", "");
	set_files(argv, "group:", GROUP "/oracle");
	set_files(argv, "filled:", GROUP "/filled");
}

/* Swap to the NVMe disk, which is found a moment after init begins, where the guest has one. */
static void set_swap(char **argv)
{
	unsigned int major, minor;
	FILE *file;
	int waited;

	if (!option_of(argv, "swap"))
		return;
	for (waited = 0; !(file = fopen("/sys/block/nvme0n1/dev", "r")); waited++) {
		if (waited == 1000)
			die("there is no NVMe disk%s", "");
		nap(10000000);
	}
	if (fscanf(file, "%u:%u", &major, &minor) != 2)
		die("cannot read the disk's number%s", "");
	fclose(file);
	mknod("/dev/swap", S_IFBLK | 0600, makedev(major, minor));
	if (syscall(SYS_swapon, "/dev/swap", 0))
		die("cannot swap to the disk%s", "");
}

static void set_up(char **argv)
{
	struct stat st;
	int fd, mounted;

	guest_boot();
	mkdir("/dev", 0755);
	mknod("/dev/zero", S_IFCHR | 0666, makedev(1, 5));
	write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
	write_file("/sys/kernel/mm/transparent_hugepage/defrag", "madvise");
	write_file("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "600000");
	fd = open(guest_capsule(), O_RDWR);
	if (fd < 0 || fstat(fd, &st))
		die("cannot open the device's memory%s", "");
	shared_size = st.st_size;
	shared = mmap(NULL, shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		die("cannot map the device's memory%s", "");
	close(fd);
	words = (void *)shared;
	ring_at = option_of(argv, "ring"), ring_size = option_of(argv, "ring_size");
	go_at = option_of(argv, "go"), done_at = option_of(argv, "done"), status_at = option_of(argv, "status");
	boot_at = option_of(argv, "boot"), kept = option_of(argv, "kept");
	shares = option_of(argv, "shares"), options = argv;
	set_ksm(argv);
	set_files(argv, "thp:", "/sys/kernel/mm/transparent_hugepage");
	for (mounted = option_of(argv, "tmpfs"); mounted--;)
		mount_tmpfs(mounted);
	set_group(argv);
	set_swap(argv);
	fd = open("/disk", O_RDWR | O_CREAT, 0600);
	dup2(fd, kept);
	close(fd);
	ring_fd = syscall(SYS_memfd_create, "ring", 0);
	out_fd = syscall(SYS_memfd_create, "observations", 0);
	if (ring_fd < 0 || out_fd < 0 || ftruncate(ring_fd, ring_size))
		die("cannot make the ring%s", "");
	ring = mmap(NULL, ring_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, 0);
	if (ring == MAP_FAILED)
		die("cannot map the ring%s", "");
}

int main(int argc, char **argv)
{
	uint64_t answered = 0;
	uint64_t idle_since;

	(void)argc;
	set_up(argv);
	start();
	pool_at_first = pool_left();
	tell();
	__sync_synchronize();
	memcpy((void *)words, "ZAPLIVE1", 8);
	for (;;) {
		idle_since = now_ns();
		while (words[GO] == answered)
			nap_since(idle_since);
		__sync_synchronize();
		if (words[RESTART]) {
			stop();
			start();
		}
		restore_pool();
		words[STATUS] = words[LENGTH] ? run() : 0;
		words[OBSERVED] = copy_observed();
		__sync_synchronize();
		words[DONE] = answered = words[GO];
	}
}
