/* The mapping under study and the ways to tear it down.
 *
 * Each has the range to itself: inaccessible pages on both sides keep it from merging with other
 * mappings, so that one VMA goes. Raw system calls, so that nothing else of libc takes the lock.
 */

struct range { char *start; size_t length; };

#define GUARD (1UL << 20)
#define PAGE 4096UL

static int is(const char *a, const char *b) { return !strcmp(a, b); }

static char *map(void *at, size_t length, int prot, int flags, int fd)
{
	char *p = mmap(at, length, prot, MAP_PRIVATE | MAP_NORESERVE | flags | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);

	if (p == MAP_FAILED)
		die("cannot map %zu bytes", length);
	return p;
}

/* The page cache of a memfd, mapped shared: unmapping frees no page. */
static void map_file(struct range range)
{
	int fd = memfd_create("zaplock", 0);

	if (fd < 0 || posix_fallocate(fd, 0, range.length) ||
	    mmap(range.start, range.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		die("cannot map a file of %zu bytes", range.length);
	/* It stays open: else the teardown would drop the file's last reference, and free its pages. */
}

static struct range range_reserve(const char *teardown, const char *backing, size_t length)
{
	struct range range = { 0, length };

	if (is(teardown, "brk")) {
		range.start = (char *)syscall(SYS_brk, 0);
		range.start += -(uintptr_t)range.start & (2 * GUARD - 1);
		if ((char *)syscall(SYS_brk, range.start + length) != range.start + length)
			die("cannot grow the heap by %zu bytes", length);
		return range;
	}
	range.start = map(NULL, length + 6 * GUARD, PROT_NONE, 0, -1) + 2 * GUARD;
	range.start += -(uintptr_t)range.start & (2 * GUARD - 1); /* THP wants 2 MiB */
	if (is(teardown, "mremap")) /* shrinks to one page: the `length` bytes behind it go */
		map(range.start - PAGE, length + PAGE, PROT_READ | PROT_WRITE, MAP_FIXED, -1);
	else if (is(backing, "file"))
		map_file(range);
	else if (is(backing, "hugetlb"))
		map(range.start, length, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_HUGETLB, -1);
	else
		map(range.start, length, PROT_READ | PROT_WRITE, MAP_FIXED, -1);
	if (is(teardown, "growsdown"))
		map(range.start + length, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_GROWSDOWN, -1);
	return range;
}

/* Touch every page: by a write for memory of its own, by a read for the zero page. */
static void range_populate(struct range range, const char *backing)
{
	size_t i;

	madvise(range.start, range.length, is(backing, "thp") ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (is(backing, "zero") || is(backing, "file")) {
		if (madvise(range.start, range.length, MADV_POPULATE_READ))
			for (i = 0; i < range.length; i += PAGE)
				(void)*(volatile char *)(range.start + i);
	} else if (madvise(range.start, range.length, MADV_POPULATE_WRITE)) {
		for (i = 0; i < range.length; i += PAGE)
			*(volatile char *)(range.start + i) = 1;
	}
}

/* Lock it, and cut it into VMAs: every second piece is kept from fork, so that they don't merge. */
static void range_shape(struct range range, int locked, long nr_vmas)
{
	size_t nr_pages = range.length / PAGE;
	long i;

	for (i = 1; i < nr_vmas; i += 2) {
		char *begin = range.start + nr_pages * i / nr_vmas * PAGE;

		if (madvise(begin, range.start + nr_pages * (i + 1) / nr_vmas * PAGE - begin, MADV_DONTFORK))
			die("cannot cut the range into %ld VMAs", nr_vmas);
	}
	if (locked && mlock2(range.start, range.length, MLOCK_ONFAULT))
		die("cannot lock %zu bytes", range.length);
}

/* The one system call that the experiment is about; `exit` does not return. */
static long range_teardown(struct range range, const char *teardown)
{
	if (is(teardown, "munmap") || is(teardown, "growsdown"))
		return syscall(SYS_munmap, range.start, range.length);
	if (is(teardown, "fixed"))
		return syscall(SYS_mmap, range.start, range.length, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) < 0;
	if (is(teardown, "brk"))
		return (char *)syscall(SYS_brk, range.start) != range.start;
	if (is(teardown, "mremap"))
		return (char *)syscall(SYS_mremap, range.start - PAGE, range.length + PAGE, PAGE, 0, 0)
		       != range.start - PAGE;
	if (is(teardown, "dontneed"))
		return syscall(SYS_madvise, range.start, range.length, MADV_DONTNEED);
	if (is(teardown, "exit"))
		syscall(SYS_exit_group, 0);
	die("no teardown %s", teardown);
}
