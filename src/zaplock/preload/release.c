/* zaplock run --release: a program's big frees by pieces, that stall none of its threads.
 *
 * Loaded before a program's libraries (LD_PRELOAD), it stands before munmap, madvise, mremap, brk,
 * sbrk, free and realloc. Of at least `from` bytes of plain memory (plain.c) munmap takes the pages
 * away at once and gives them back by pieces (away.c), advice goes by pieces (pace.c), where another
 * thread does the work (worker.c) MADV_DONTNEED like munmap; results, errors and maps are those of
 * the plain call. Everything else goes to the kernel, or to the allocator, as it came. free and
 * realloc are looked at where they are glibc's, whose own munmap can't be stood before: the pages of
 * a block that glibc has mapped are taken away first.
 *
 * It does nothing after the program has restricted its system calls (seccomp), and in one that was
 * so restricted by another than who started it: it makes calls that the program doesn't.
 *
 * docs/run-release.md has what it can't do.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernel.c"
#include "pace.c"
#include "plain.c"
#include "away.c"
#include "worker.c"

#define MOST_VMAS 16
#define IS_MMAPPED 2UL

extern const char *gnu_get_libc_version(void) __attribute__((weak));

static size_t from = SIZE_MAX;
static volatile int off = 1;
static int with_glibc;
static void (*next_free)(void *);
static void *(*next_realloc)(void *, size_t);
static int (*next_brk)(void *);
static void *(*next_sbrk)(intptr_t);

/* How many frees went by pieces, and how many bytes: whether it does anything at all. */
struct zaplock_released {
	unsigned long calls, bytes;
} zaplock_released;

static void count(size_t length)
{
	__atomic_fetch_add(&zaplock_released.calls, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&zaplock_released.bytes, length, __ATOMIC_RELAXED);
}

static long answer(long told)
{
	if (told < 0 && told > -4096) {
		errno = (int)-told;
		return -1;
	}
	return told;
}

/* The VMAs of a range that is mapped without a hole and may go as a whole; how many, 0 if it may
 * not. Their bounds are cut to the range.
 */
static int parts_of(int maps, uintptr_t start, uintptr_t end, struct vma *parts)
{
	int nr = 0;

	while (start < end) {
		struct vma *vma = &parts[nr];

		if (nr == MOST_VMAS || find_vma(maps, start, vma) != 1 || vma->start > start ||
		    !vma->is_plain)
			return 0;
		vma->start = start;
		vma->end = least(vma->end, end);
		if (!may_go(vma->start, vma->end))
			return 0;
		start = vma->end;
		nr++;
	}
	return nr;
}

/* Unmap parts, the big ones by taking them away; each exactly once, for its addresses are somebody
 * else's in the next moment. Only the first can be refused: what it takes to cut a VMA in the middle
 * is asked for once, and the ends of two VMAs are cut without.
 */
static long unmap_parts(int maps, struct vma *parts, int nr)
{
	struct away away[MOST_VMAS];
	int nr_away = 0;
	long failed = 0;

	for (int k = 0; k < nr && !failed; k++) {
		struct vma *part = &parts[k];
		size_t length = part->end - part->start;

		if (length >= LEAST && take_away(maps, part->start, part->end, 0, &away[nr_away]))
			nr_away++;
		else
			failed = unmap(part->start, length);
	}
	for (int k = 0; k < nr_away; k++)
		finish(&away[k]);
	return failed;
}

static int open_maps(void) { return open_own("/proc/thread-self/maps"); }

/* Unmap a range that may be plain; say whether it was (then *told is the answer). */
static int unmap_by_pieces(uintptr_t start, uintptr_t end, long *told)
{
	uint64_t before = hold_signals();
	struct vma parts[MOST_VMAS];
	int maps, nr = 0;

	maps = may_reserve() && !has_userfaultfd() ? open_maps() : -1;
	if (maps >= 0) {
		nr = parts_of(maps, start, end, parts);
		if (nr) {
			*told = unmap_parts(maps, parts, nr);
			count(end - start);
		}
		shut(maps);
	}
	let_signals(before);
	return nr > 0;
}

static int is_range(uintptr_t start, size_t length)
{
	return start % page == 0 && length <= SIZE_MAX / 2 && start + up(length, page) > start;
}

int munmap(void *address, size_t length)
{
	uintptr_t start = (uintptr_t)address;
	long told;

	if (length >= from && !off && is_range(start, length) &&
	    unmap_by_pieces(start, start + up(length, page), &told))
		return (int)answer(told);
	return (int)answer(unmap(start, length));
}

/* A shrinking mremap in place unmaps the tail. */
void *mremap(void *address, size_t old_length, size_t new_length, int flags, ...)
{
	uintptr_t start = (uintptr_t)address, target = 0;
	size_t old_size = up(old_length, page), new_size = up(new_length, page);
	struct vma vma = { 0 };
	long told;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP_)) {
		va_list rest_of_them;

		va_start(rest_of_them, flags);
		target = (uintptr_t)va_arg(rest_of_them, void *);
		va_end(rest_of_them);
	}
	if (!off && !(flags & ~MREMAP_MAYMOVE) && is_range(start, old_length) && new_length &&
	    new_length <= old_length && old_size - new_size >= from) {
		int maps = open_maps(), whole = 0;

		if (maps >= 0) {
			whole = find_vma(maps, start, &vma) == 1 && vma.start <= start &&
				vma.end >= start + old_size;
			shut(maps);
		}
		if (whole && unmap_by_pieces(start + new_size, start + old_size, &told))
			return (void *)(told ? answer(told) : (long)start);
	}
	told = kernel(SYS_mremap, start, old_length, new_length, flags, target);
	return (void *)answer(told);
}

/* Give an advice VMA by VMA, by pieces; say whether all that is there is plain. */
static int advise_by_pieces(uintptr_t start, uintptr_t end, int advice, long *told)
{
	struct pace pace = new_pace();
	int maps = has_userfaultfd() ? -1 : open_maps();
	uintptr_t at = start;
	struct vma vma;
	int is_plain = maps >= 0;

	while (is_plain && at < end && find_vma(maps, at, &vma) == 1 && vma.start < end) {
		uintptr_t first = vma.start > at ? vma.start : at;

		at = least(vma.end, end);
		is_plain = vma.is_plain && may_go(first, at);
	}
	at = start;
	*told = 0;
	while (is_plain && at < end) {
		long failed = -ENOMEM; /* of a hole; what comes after it is advised all the same */

		if (find_vma(maps, at, &vma) != 1 || vma.start >= end) {
			at = end;
		} else if (vma.start > at) {
			at = vma.start;
		} else {
			failed = by_pieces(at, least(vma.end, end), advice, &pace);
			at = least(vma.end, end);
		}
		if (failed)
			*told = failed;
		if (failed && failed != -ENOMEM)
			break;
	}
	if (maps >= 0)
		shut(maps);
	return is_plain;
}

/* Drop the content of a range in the background: take it away, VMA by VMA, and what can't be taken
 * goes by pieces where it is; say whether all that is there is plain, private and without a hole.
 */
static int drop_content(uintptr_t start, uintptr_t end, long *told)
{
	int maps = may_reserve() && is_unlimited(RLIMIT_DATA) && !has_userfaultfd() ? open_maps() : -1;
	struct vma parts[MOST_VMAS];
	struct pace pace = new_pace();
	struct away away;
	int nr = maps >= 0 ? parts_of(maps, start, end, parts) : 0;
	long failed;

	*told = 0;
	for (int k = 0; k < nr; k++)
		if (!parts[k].is_private)
			nr = 0;
	for (int k = 0; k < nr; k++) {
		if (parts[k].end - parts[k].start >= LEAST &&
		    take_content(maps, parts[k].start, parts[k].end, &away))
			finish(&away);
		else if ((failed = by_pieces(parts[k].start, parts[k].end, MADV_DONTNEED, &pace)))
			*told = failed;
	}
	if (maps >= 0)
		shut(maps);
	return nr > 0;
}

int madvise(void *address, size_t length, int advice)
{
	uintptr_t start = (uintptr_t)address;
	long told;

	if (length >= from && !off && is_range(start, length) &&
	    (advice == MADV_DONTNEED || advice == MADV_FREE)) {
		uintptr_t end = start + up(length, page);
		uint64_t before = hold_signals();
		int done = (in_background && advice == MADV_DONTNEED && drop_content(start, end, &told)) ||
			   advise_by_pieces(start, end, advice, &told);

		let_signals(before);
		if (done) {
			count(length);
			return (int)answer(told);
		}
	}
	return (int)answer(advise(start, length, advice));
}

/* Take away the pages of a range whose addresses the caller is about to unmap. */
static int empty(uintptr_t start, uintptr_t end, struct away *away)
{
	int maps = may_reserve() && !has_userfaultfd() ? open_maps() : -1, taken = 0;
	struct vma part[MOST_VMAS];

	if (maps >= 0) {
		taken = parts_of(maps, start, end, part) == 1 &&
			take_away(maps, start, end, MREMAP_DONTUNMAP_, away);
		shut(maps);
	}
	return taken;
}

/* Set the end of the heap from `old` to `new` by `set`, which says whether that was done. */
static int shrink_heap(uintptr_t new, uintptr_t old, int (*set)(uintptr_t))
{
	uintptr_t start = up(new, page), end = up(old, page);
	struct away away;
	uint64_t before;
	int is_set;

	if (off || end <= start || end - start < from)
		return set(new);
	before = hold_signals();
	if (empty(start, end, &away)) {
		is_set = set(new);
		if (is_set) {
			finish(&away);
			count(end - start);
		} else {
			bring_back(&away, start);
		}
	} else {
		is_set = set(new);
	}
	let_signals(before);
	return is_set;
}

static void find_next(void)
{
	next_brk = (int (*)(void *))dlsym(RTLD_NEXT, "brk");
	next_sbrk = (void *(*)(intptr_t))dlsym(RTLD_NEXT, "sbrk");
	next_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
	__atomic_store_n(&next_free, (void (*)(void *))dlsym(RTLD_NEXT, "free"), __ATOMIC_RELEASE);
}

static int set_by_brk(uintptr_t end) { return !next_brk((void *)end); }

static int set_by_sbrk(uintptr_t end)
{
	return next_sbrk((intptr_t)end - (intptr_t)next_sbrk(0)) != (void *)-1;
}

int brk(void *end)
{
	if (!next_free)
		find_next();
	return shrink_heap((uintptr_t)end, (uintptr_t)next_sbrk(0), set_by_brk) ? 0 : -1;
}

void *sbrk(intptr_t by)
{
	uintptr_t old;

	if (!next_free)
		find_next();
	if (by >= 0 || (size_t)-by < from || off)
		return next_sbrk(by);
	old = (uintptr_t)next_sbrk(0);
	if ((size_t)-by > old)
		return next_sbrk(by);
	return shrink_heap(old + by, old, set_by_sbrk) ? (void *)old : (void *)-1;
}

/* The end of a big block that glibc has mapped, else 0. Such a block's size is in the word before
 * it, with a mark; it begins and ends at pages.
 */
static uintptr_t mapped_end(const void *block)
{
	size_t size = ((const size_t *)block)[-1], before;
	uintptr_t end;

	if (!(size & IS_MMAPPED) || size < from)
		return 0;
	before = ((const size_t *)block)[-2];
	end = (uintptr_t)block - 16 + (size & ~7UL);
	return end % page || ((uintptr_t)block - 16 - before) % page ? 0 : end;
}

void free(void *block)
{
	static __thread int finding;
	uintptr_t start, end;
	struct away away;
	uint64_t before;

	if (!block)
		return;
	if (!__atomic_load_n(&next_free, __ATOMIC_ACQUIRE)) {
		if (finding)
			return; /* what dlsym frees while it looks for free: a few bytes stay */
		finding = 1;
		find_next();
		finding = 0;
	}
	end = with_glibc && !off ? mapped_end(block) : 0;
	start = up((uintptr_t)block, page);
	if (!end || end <= start || end - start < from) {
		next_free(block);
		return;
	}
	before = hold_signals();
	if (empty(start, end, &away)) {
		next_free(block);
		finish(&away);
		count(end - start);
	} else {
		next_free(block);
	}
	let_signals(before);
}

/* What a shrinking realloc cuts off is dead, whatever realloc does: it is emptied where it is. */
void *realloc(void *block, size_t size)
{
	uintptr_t start, end;
	uint64_t before;
	long told;

	if (!next_free)
		find_next();
	end = block && size && with_glibc && !off ? mapped_end(block) : 0;
	if (end && size < end - (uintptr_t)block) {
		start = up((uintptr_t)block + size, page);
		if (end > start && end - start >= from) {
			before = hold_signals();
			if (advise_by_pieces(start, end, MADV_DONTNEED, &told))
				count(end - start);
			let_signals(before);
		}
	}
	return next_realloc(block, size);
}

/* From here on some calls may be answered otherwise, or kill: nothing is done that isn't asked for. */
long syscall(long number, ...)
{
	va_list given;
	long a[6];

	va_start(given, number);
	for (int k = 0; k < 6; k++)
		a[k] = va_arg(given, long);
	va_end(given);
	if (number == SYS_seccomp || number == SYS_userfaultfd)
		off = 1;
	return answer(kernel6(number, a[0], a[1], a[2], a[3], a[4], a[5]));
}

int prctl(int option, ...)
{
	va_list given;
	unsigned long a[4];

	va_start(given, option);
	for (int k = 0; k < 4; k++)
		a[k] = va_arg(given, unsigned long);
	va_end(given);
	if (option == PR_SET_SECCOMP)
		off = 1;
	return (int)answer(kernel(SYS_prctl, option, a[0], a[1], a[2], a[3]));
}

/* How many seccomp filters are on this thread; -1 where there are some that nobody has counted. */
static int filters(void)
{
	char text[4096];
	int file = open_own("/proc/thread-self/status");
	long length = file < 0 ? 0 : kernel(SYS_read, file, (long)text, sizeof(text) - 1, 0, 0);
	const char *mode, *number;

	if (file >= 0)
		shut(file);
	text[length > 0 ? length : 0] = 0;
	mode = strstr(text, "\nSeccomp:\t");
	number = strstr(text, "\nSeccomp_filters:\t");
	if (!mode)
		return -1;
	if (mode[10] == '0')
		return 0;
	return number ? atoi(number + 18) : -1;
}

/* A number out of the settings: "from=16777216,stall=5000000,background=0,most=...,filters=0". */
static long setting(const char *settings, const char *name, long otherwise)
{
	const char *at = strstr(settings, name);

	return at ? atol(at + strlen(name)) : otherwise;
}

__attribute__((constructor)) static void begin(void)
{
	const char *settings = getenv("ZAPLOCK_RELEASE");
	Dl_info libc, of_free;

	page = sysconf(_SC_PAGESIZE);
	if (!next_free)
		find_next();
	if (!settings)
		return;
	bound_ns = setting(settings, "stall=", bound_ns);
	in_background = (int)setting(settings, "background=", 0);
	most_waiting = setting(settings, "most=", most_waiting);
	with_glibc = gnu_get_libc_version && next_free &&
		     dladdr((void *)gnu_get_libc_version, &libc) &&
		     dladdr((void *)next_free, &of_free) && libc.dli_fbase == of_free.dli_fbase;
	pthread_atfork(before_fork, after_fork, in_child);
	if (in_background)
		pthread_atfork(NULL, NULL, forget_worker);
	from = up(setting(settings, "from=", 16 << 20), page);
	off = bound_ns < 100000 || from < page || filters() != setting(settings, "filters=", 0);
}
