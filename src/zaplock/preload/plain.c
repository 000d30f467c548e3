/* Which memory is plain, so that moving and zapping it is certain to do what munmap would do.
 *
 * Plain are: private anonymous memory; and, where the kernel tells the size of pages (6.11), shared
 * anonymous memory and memfds of small pages. Not plain are: files (a driver's may be among them),
 * System V segments (they count who is attached), huge pages of the pool, locked memory, device
 * memory, sealed memory, whatever has another name.
 *
 * A process with a userfaultfd has no plain memory: its monitor would be told of other events.
 */

struct vma {
	uintptr_t start, end;
	int is_plain, is_private;
};

static int begins(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return 0;
	return 1;
}

static int same(const char *text, const char *other)
{
	return begins(text, other) && begins(other, text);
}

/* "[heap]", "[anon:NAME]", but no "[stack]", "[vdso]", "[vvar]", "[uprobes]", "[anon_shmem:...]". */
static int is_private_anonymous(uint64_t inode, uint32_t major, const char *name)
{
	return !inode && !major && (!*name || same(name, "[heap]") || begins(name, "[anon:"));
}

static int is_shared_anonymous(uint32_t major, const char *name)
{
	return !major && (same(name, "/dev/zero (deleted)") || begins(name, "/memfd:"));
}

#ifndef WITHOUT_QUERY
static int ask(int maps, uintptr_t address, struct vma *found)
{
	char name[64] = "";
	struct query query = {
		.size = sizeof(query), .flags = COVERING_OR_NEXT, .address = address,
		.name_size = sizeof(name), .name = (uintptr_t)name,
	};
	long failed = kernel(SYS_ioctl, maps, PROCMAP_QUERY, (long)&query, 0, 0);
	int is_named = 1;

	if (failed == -ENAMETOOLONG) {
		query.name_size = 0;
		query.name = 0;
		is_named = 0;
		failed = kernel(SYS_ioctl, maps, PROCMAP_QUERY, (long)&query, 0, 0);
	}
	if (failed)
		return failed == -ENOENT ? 0 : (int)failed;
	if (!query.name_size)
		name[0] = 0;
	found->start = query.start;
	found->end = query.end;
	found->is_private = is_named && query.page_size == page &&
			    is_private_anonymous(query.inode, query.major, name);
	found->is_plain = found->is_private || (is_named && query.page_size == page &&
						is_shared_anonymous(query.major, name));
	return 1;
}
#else
static int ask(int maps, uintptr_t address, struct vma *found)
{
	(void)maps, (void)address, (void)found;
	return -ENOTTY;
}
#endif

/* One line of maps after the other: "START-END rwxp OFFSET MAJOR:MINOR INODE   NAME". */
struct line {
	uint64_t number[6]; /* start, end, offset, major, minor, inode */
	char private, name[32];
	int field, at;
};

static void take_letter(struct line *line, char c)
{
	int is_digit = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');

	if (line->field == 7) {
		if (line->at < 31 && (line->at || c != ' '))
			line->name[line->at++] = c;
	} else if (line->field == 2) { /* the permissions come third, and are no number */
		if (c == 'p')
			line->private = 1;
		line->field += c == ' ';
	} else if (is_digit) {
		int k = line->field - (line->field > 2);
		uint64_t digit = c <= '9' ? c - '0' : c - 'a' + 10;

		line->number[k] = line->number[k] * (k == 5 ? 10 : 16) + digit;
	} else {
		line->field++;
	}
}

static int read_maps(int maps, uintptr_t address, struct vma *found)
{
	struct line line = { { 0 }, 0, "", 0, 0 };
	char text[256];
	long count;

	kernel(SYS_lseek, maps, 0, SEEK_SET, 0, 0);
	while ((count = kernel(SYS_read, maps, (long)text, sizeof(text), 0, 0)) > 0) {
		for (long k = 0; k < count; k++) {
			if (text[k] != '\n') {
				take_letter(&line, text[k]);
				continue;
			}
			if (line.number[1] > address) {
				found->start = line.number[0];
				found->end = line.number[1];
				found->is_plain = found->is_private = line.private &&
					is_private_anonymous(line.number[5], line.number[3], line.name);
				return 1;
			}
			line = (struct line){ { 0 }, 0, "", 0, 0 };
		}
	}
	return (int)count;
}

/* Find the first VMA that ends after an address; 1 found, 0 none, or a negative errno. */
static int find_vma(int maps, uintptr_t address, struct vma *found)
{
	int told = ask(maps, address, found);

	return told < 0 ? read_maps(maps, address, found) : told;
}

static int has_userfaultfd(void)
{
	int folder = open_own("/proc/thread-self/fd");
	char entries[512] __attribute__((aligned(8)));
	int found = folder < 0; /* who can't look is not certain */
	long count;

	while (!found && (count = kernel(SYS_getdents64, folder, (long)entries, sizeof(entries), 0, 0))) {
		if (count < 0)
			found = 1;
		for (long at = 0; at < count && !found; at += *(uint16_t *)(entries + at + 16)) {
			char link[32] = "";

			kernel(SYS_readlinkat, folder, (long)(entries + at + 19), (long)link, 31, 0);
			found = same(link, "anon_inode:[userfaultfd]");
		}
	}
	if (folder >= 0)
		shut(folder);
	return found;
}

static int is_unlimited(int resource)
{
	struct rlimit limit = { 0, 0 };

	return !kernel(SYS_prlimit64, 0, resource, 0, (long)&limit, 0) &&
	       limit.rlim_cur == RLIM_INFINITY;
}

/* Neither sealed (mseal, 6.10), nor locked, nor device memory. What is asked changes nothing: a
 * resize to the same size; advice (5.4) on pages that go anyway, on a whole huge page if it is one.
 */
static int may_go(uintptr_t start, uintptr_t end)
{
	size_t first = start % HUGE ? page : least(HUGE, end - start);

	return move(start, end - start, 0, 0) == (long)start && !advise(start, first, MADV_COLD_);
}

/* Say whether addresses may be moved in this process at all: where they, or what is promised of
 * memory, are counted, others could be refused theirs meanwhile.
 */
static int may_reserve(void)
{
	char mode = '2';
	int file;

	if (!is_unlimited(RLIMIT_AS))
		return 0;
	file = open_own("/proc/sys/vm/overcommit_memory");
	if (file < 0)
		return 0;
	kernel(SYS_read, file, (long)&mode, 1, 0, 0);
	shut(file);
	return mode != '2';
}
