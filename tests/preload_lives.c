/* Random lives of a program's memory, the same for the same seed: with and without the preload
 * library each life must print the same line.
 *
 *   preload_lives SEED FIRST COUNT          a line for each life: a hash of all that was seen
 *   preload_lives SEED FIRST 1 tell         each call, what it returned, and the maps after it
 *   preload_lives SEED FIRST COUNT arena    the same lives, without how much is mapped elsewhere: where
 *                                           memory is given back in the background that may vary
 *   preload_lives SEED threads MILLISECONDS threads that free beside threads that map, and forks
 *   preload_lives SEED crowded              a process with as many VMAs as it may have
 *
 * A life maps, writes, protects, locks, seals, advises, moves, shrinks, frees and forks in an arena at a
 * fixed address, in its heap and in malloc's blocks. After each call come its result, errno and the
 * maps, without inodes; at the end the content of all pages that can be read.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARENA 0x200000000000UL
#define PAGES 1024UL
#define PAGE 4096UL
#define BLOCKS 4
#define MSEAL 462

/* The library's, if it is there. Asked for by dlsym, its absence would leave a message in malloc's heap,
 * which then has less room than with the library: a block of just this size would be elsewhere.
 */
extern const unsigned long zaplock_released[] __attribute__((weak));

static uint64_t state, hash;
static int tells, in_arena, pattern, backing, is_over;
static uintptr_t heap;
static uint64_t others_before;

static uint64_t next(void)
{
	uint64_t z = (state += 0x9e3779b97f4a7c15UL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9UL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebUL;
	return z ^ (z >> 31);
}

static uint64_t below(uint64_t limit) { return next() % limit; }

static void mix(uint64_t value) { hash = (hash ^ value) * 0x100000001b3UL; }

static void mix_text(const char *text)
{
	while (*text)
		mix((unsigned char)*text++);
	if (tells)
		fputs(text, stdout);
}

static void see(const char *what, uint64_t a, uint64_t b, uint64_t c, long result, int error)
{
	mix_text(what);
	mix(a), mix(b), mix(c), mix(result), mix(error);
	if (tells)
		printf("%s %lx %lx %lx = %ld errno %d\n", what, (long)a, (long)b, (long)c, result, error);
}

struct vma {
	unsigned long start, end, offset;
	char perms[8], name[256];
};

/* Call `take` for each VMA. */
static void each_vma(void (*take)(const struct vma *))
{
	static char text[1 << 18];
	int file = open("/proc/self/maps", O_RDONLY);
	size_t length = 0;
	ssize_t count;

	while ((count = read(file, text + length, sizeof(text) - 1 - length)) > 0)
		length += count;
	close(file);
	text[length] = 0;
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		struct vma vma = { .name = "" };

		sscanf(line, "%lx-%lx %7s %lx %*s %*s %255[^\n]", &vma.start, &vma.end, vma.perms,
		       &vma.offset, vma.name);
		take(&vma);
	}
}

static uint64_t others;

static void see_vma(const struct vma *vma)
{
	if (vma->start >= ARENA && vma->start < ARENA + PAGES * PAGE) {
		mix(vma->start), mix(vma->end), mix(vma->offset);
		if (tells)
			printf("    %lx-%lx %lx ", vma->start - ARENA, vma->end - ARENA, vma->offset);
		mix_text(vma->perms), mix_text(vma->name), mix_text("\n");
	} else if (strcmp(vma->name, "[heap]") && strcmp(vma->name, "[stack]")) {
		others += vma->end - vma->start;
	}
}

/* The arena's VMAs, the heap's length, and how much has been added elsewhere. */
static void see_maps(void)
{
	others = 0;
	each_vma(see_vma);
	see("others, heap", in_arena ? 0 : others - others_before, (uintptr_t)sbrk(0) - heap, 0, 0, 0);
}

static void see_words(const struct vma *vma)
{
	int is_ours = (vma->start >= ARENA && vma->start < ARENA + PAGES * PAGE) ||
		      !strcmp(vma->name, "[heap]");

	if (!is_ours || vma->perms[0] != 'r')
		return;
	for (unsigned long at = vma->start; at < vma->end; at += PAGE)
		if (at < ARENA + PAGES * PAGE || at >= heap)
			mix(at < heap ? at : at - heap), mix(*(volatile uint64_t *)at);
}

static void see_content(void) { each_vma(see_words); }

static void fill(uintptr_t start, size_t nr_pages)
{
	size_t step = 1 + below(8);

	for (size_t k = 0; k < nr_pages; k += step)
		if (pread(pattern, (void *)(start + k * PAGE), 8, 8 * below(512)) != 8)
			mix(k);
}

static uintptr_t some_pages(size_t *nr_pages)
{
	size_t first = below(8) ? below(PAGES) : below(PAGES / 512) * 512;

	*nr_pages = 1 + (below(3) ? below(PAGES - first) : below(32) % (PAGES - first));
	return ARENA + first * PAGE;
}

static void map_some(void)
{
	static const int prots[] = { PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
				     PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE };
	size_t nr_pages;
	uintptr_t start = some_pages(&nr_pages);
	int kind = below(8), flags = MAP_FIXED, file = -1, prot = prots[below(5)];
	void *at;

	flags |= kind >= 6 ? MAP_SHARED : MAP_PRIVATE;
	if (kind == 5 || kind == 7)
		file = backing;
	else
		flags |= MAP_ANONYMOUS;
	flags |= below(6) ? 0 : MAP_NORESERVE;
	errno = 77;
	at = mmap((void *)start, nr_pages * PAGE, prot, flags, file, 0);
	see("mmap", start, nr_pages, flags, at == MAP_FAILED ? -1 : 0, errno);
}

static void unmap_some(void)
{
	size_t nr_pages;
	uintptr_t start = some_pages(&nr_pages);
	size_t length = nr_pages * PAGE;
	long told;

	if (!below(12))
		start += 1 + below(PAGE - 1);
	if (!below(12))
		length = (size_t[]){ 0, -PAGE, SIZE_MAX, 1UL << 62, length - 1, length + 1 }[below(6)];
	if (length >= 1UL << 40 && start % PAGE == 0 && below(2))
		length = SIZE_MAX - start; /* it wraps, or ends beyond what there is */
	errno = 77;
	told = munmap((void *)start, length);
	see("munmap", start, length, 0, told, errno);
}

static void advise_some(void)
{
	static const int advices[] = { MADV_DONTNEED, MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_FREE,
				       MADV_DONTFORK, MADV_DOFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE, 24,
				       MADV_WILLNEED, 999 };
	size_t nr_pages;
	uintptr_t start = some_pages(&nr_pages);
	int advice = advices[below(12)];
	size_t length = nr_pages * PAGE - (below(8) ? 0 : below(PAGE));
	long told;

	start += below(16) ? 0 : 8;
	errno = 77;
	told = madvise((void *)start, length, advice);
	see("madvise", start, length, advice, told, errno);
}

static void protect_some(void)
{
	size_t nr_pages;
	uintptr_t start = some_pages(&nr_pages);
	int prot = below(4) ? PROT_READ | PROT_WRITE : below(2) ? PROT_READ : PROT_NONE;
	long told;

	nr_pages = 1 + nr_pages / 8;
	errno = 77;
	told = mprotect((void *)start, nr_pages * PAGE, prot);
	see("mprotect", start, nr_pages, prot, told, errno);
}

static void lock_some(void)
{
	size_t nr_pages;
	uintptr_t start = some_pages(&nr_pages);
	int locks = below(2);
	long told;

	nr_pages = 1 + nr_pages / 16;
	errno = 77;
	told = locks ? mlock((void *)start, nr_pages * PAGE) : munlock((void *)start, nr_pages * PAGE);
	see(locks ? "mlock" : "munlock", start, nr_pages, 0, told, errno);
}

static void seal_some(void)
{
	size_t nr_pages;
	uintptr_t start = some_pages(&nr_pages);
	long told;

	nr_pages = 1 + below(8);
	errno = 77;
	told = syscall(MSEAL, start, nr_pages * PAGE, 0);
	see("mseal", start, nr_pages, 0, told, errno);
}

static void remap_some(void)
{
	size_t nr_pages, other;
	uintptr_t start = some_pages(&nr_pages), target = some_pages(&other);
	size_t old = nr_pages * PAGE, new = below(3) ? 1 + below(old) : old + below(8) * PAGE;
	int flags = below(5) ? 0 : MREMAP_MAYMOVE | MREMAP_FIXED;
	void *at;

	if (new <= old && !flags && below(2))
		flags = MREMAP_MAYMOVE;
	if (!below(12))
		new = below(2) ? 0 : old;
	if (new > old && flags == MREMAP_MAYMOVE)
		flags = 0;
	errno = 77;
	at = flags & MREMAP_FIXED ? mremap((void *)start, old, new, flags, target)
				  : mremap((void *)start, old, new, flags);
	see("mremap", start, old, new, at == MAP_FAILED ? -1 : (long)((uintptr_t)at - ARENA), errno);
	if (flags & MREMAP_FIXED && at == MAP_FAILED)
		is_over = 1; /* what is left at the target depends on the release: this life ends */
}

static void change_heap(void)
{
	intptr_t by = below(256) * PAGE + (below(4) ? 0 : below(PAGE));
	uintptr_t now = (uintptr_t)sbrk(0);
	long told;

	if (below(2)) {
		errno = 77;
		told = (long)sbrk(by);
		see("sbrk", by, 0, 0, told == -1 ? -1 : told - (long)heap, errno);
		fill((now + PAGE - 1) / PAGE * PAGE, by / PAGE);
		return;
	}
	by = (intptr_t)(now - heap) < by ? (intptr_t)(now - heap) : by;
	errno = 77;
	if (below(2)) {
		told = (long)sbrk(-by);
		see("sbrk", -by, 0, 0, told == -1 ? -1 : told - (long)heap, errno);
	} else {
		told = brk((void *)(now - by));
		see("brk", by, 0, 0, told, errno);
	}
}

static struct {
	unsigned char *at;
	size_t size;
	unsigned char mark;
} blocks[BLOCKS];

static void see_block(int k)
{
	for (size_t at = 0; at < blocks[k].size; at += PAGE)
		if (blocks[k].at[at] != blocks[k].mark)
			mix(at), see("LOST", k, at, blocks[k].at[at], 0, 0);
}

static void use_block(void)
{
	int k = below(BLOCKS);
	size_t size = (18 + below(512)) * PAGE - below(PAGE);

	errno = 77;
	if (!blocks[k].at) {
		blocks[k].at = below(2) ? malloc(size) : aligned_alloc(64 << below(7), size);
		blocks[k].size = size;
	} else if (below(2)) {
		size_t kept = size < blocks[k].size ? size : blocks[k].size;

		blocks[k].at = realloc(blocks[k].at, size);
		blocks[k].size = kept;
		see_block(k);
		blocks[k].size = size;
	} else {
		see_block(k);
		free(blocks[k].at);
		blocks[k].at = NULL;
	}
	see("block", k, size, 0, blocks[k].at != NULL, errno == 77);
	if (blocks[k].at)
		memset(blocks[k].at, blocks[k].mark = 1 + below(255), size);
}

/* What a child inherits; it dies of nothing that its parent had in hand. */
static void fork_one(void)
{
	int status, ends[2];
	uint64_t childs = 0;

	fflush(stdout);
	if (pipe(ends))
		exit(9);
	if (!fork()) {
		see_maps();
		see_content();
		_exit(write(ends[1], &hash, 8) != 8);
	}
	close(ends[1]);
	if (read(ends[0], &childs, 8) != 8)
		childs = 0;
	close(ends[0]);
	wait(&status);
	see("fork", childs, 0, 0, status, 0);
}

static void live(uint64_t seed, uint64_t number)
{
	int nr_calls;

	state = seed * 0x10001 + number * 0x9e3779b97f4a7c15UL;
	hash = 0xcbf29ce484222325UL;
	nr_calls = 4 + below(12);
	heap = ((uintptr_t)sbrk(0) + PAGE - 1) / PAGE * PAGE;
	brk((void *)heap);
	others_before = 0;
	see_maps();
	others_before = others;
	hash = 0;
	for (int k = 0; k < nr_calls; k++) {
		size_t nr_pages;
		uintptr_t start;
		unsigned kind = below(32);

		if (k < 2 || kind < 6)
			map_some();
		else if (kind < 13)
			unmap_some();
		else if (kind < 17)
			advise_some();
		else if (kind < 19)
			protect_some();
		else if (kind < 20)
			lock_some();
		else if (kind < 21)
			below(4) ? protect_some() : seal_some();
		else if (kind < 24)
			remap_some();
		else if (kind < 27)
			change_heap();
		else if (kind < 31)
			use_block();
		else
			fork_one();
		if (is_over)
			return;
		see_maps();
		start = some_pages(&nr_pages);
		fill(start, nr_pages);
	}
	see_content();
}

static void prepare(void)
{
	static uint64_t words[512];

	mallopt(M_MMAP_THRESHOLD, 64 << 10);
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	free(*(void *volatile *)&(void *){ malloc(1) }); /* its heap ends below ours from now on */
	pattern = memfd_create("pattern", 0);
	backing = memfd_create("backing", 0);
	for (int k = 0; k < 512; k++)
		words[k] = k * 0x9e3779b97f4a7c15UL;
	if (write(pattern, words, sizeof(words)) != sizeof(words) || ftruncate(backing, PAGES * PAGE))
		exit(9);
}

/* On the errors' stream: how many frees the library made by pieces, if it is there. */
static int lives(uint64_t seed, uint64_t first, uint64_t count)
{
	const unsigned long *released = zaplock_released;
	unsigned long by_pieces = 0;

	for (uint64_t k = first; k < first + count; k++) {
		int ends[2], status;
		uint64_t seen[2] = { 0, 0 };

		if (pipe(ends))
			return 9;
		fflush(stdout);
		if (!fork()) {
			prepare();
			live(seed, k);
			fflush(stdout);
			seen[0] = hash;
			seen[1] = released ? released[0] : 0;
			_exit(write(ends[1], seen, 16) != 16);
		}
		close(ends[1]);
		if (read(ends[0], seen, 16) != 16)
			seen[0] = seen[1] = 0;
		close(ends[0]);
		wait(&status);
		by_pieces += seen[1];
		printf("%lu %016lx %x\n", (unsigned long)k, (unsigned long)seen[0], status);
	}
	fprintf(stderr, "%lu by pieces\n", by_pieces);
	return 0;
}

/* Threads that free big memory beside threads that map, mark, look and unmap: no mapping of anybody's is
 * harmed, and no forked child has what is on its way.
 */
static volatile int over;
static volatile long harmed, freed, looked;

#define OURS (PROT_READ | PROT_WRITE | PROT_EXEC) /* as nothing else here is */

static void *frees(void *which)
{
	while (!over) {
		size_t length = (64 + ((uintptr_t)which * 37 + freed * 11) % 512) * PAGE;
		char *memory = mmap(NULL, length, OURS, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			continue;
		memset(memory, 1, length);
		if ((uintptr_t)which % 2) {
			mprotect(memory + length / 4, PAGE, PROT_READ); /* three VMAs */
		} else if (freed % 2) {
			madvise(memory, length, MADV_DONTNEED);
			for (size_t at = 0; at < length; at += PAGE)
				harmed += memory[at];
		}
		if (munmap(memory, length))
			harmed++;
		__atomic_fetch_add(&freed, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *looks(void *which)
{
	uint64_t mark = 0x1000 * ((uintptr_t)which + 1);

	while (!over) {
		size_t nr_words, length = (1 + mark % 256) * PAGE;
		uint64_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
					-1, 0);

		if (memory == MAP_FAILED)
			continue;
		nr_words = length / 8;
		mark++;
		for (size_t k = 0; k < nr_words; k += 512)
			memory[k] = mark;
		for (int round = 0; round < 20; round++)
			for (size_t k = 0; k < nr_words; k += 512)
				if (memory[k] != mark)
					harmed++;
		munmap(memory, length);
		__atomic_fetch_add(&looked, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Neither guards, nor more of the freers' VMAs than the one and the two that they have mapped. */
static int nothing_on_its_way(void)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	int guards = 0, of_freers = 0;

	while (fgets(line, sizeof(line), maps)) {
		guards += strstr(line, "---s") && strstr(line, "/dev/zero");
		of_freers += strstr(line, "rwxp") != NULL;
	}
	fclose(maps);
	return !guards && of_freers <= 3;
}

static int beside_threads(long milliseconds)
{
	struct timespec begin, now;
	pthread_t threads[4];
	int forks = 0, kept = 0, status;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (uintptr_t k = 0; k < 4; k++)
		pthread_create(&threads[k], NULL, k < 2 ? frees : looks, (void *)k);
	do {
		if (!fork())
			_exit(!nothing_on_its_way());
		wait(&status);
		kept += status != 0;
		forks++;
		usleep(2000);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < milliseconds);
	over = 1;
	for (int k = 0; k < 4; k++)
		pthread_join(threads[k], NULL);
	for (int k = 0; k < 1000 && !nothing_on_its_way(); k++)
		usleep(1000); /* in the background it may be */
	printf("harmed %ld kept %d forks %d freed %ld looked %ld left %d\n", harmed, kept, forks, freed,
	       looked, !nothing_on_its_way());
	return harmed || kept || !nothing_on_its_way();
}

/* As many VMAs as a process may have: a munmap in the middle of one is refused, one at its end not,
 * and what was refused has kept its content.
 */
static int crowded(void)
{
	const size_t length = 512 * PAGE;
	char *big = mmap((void *)ARENA, length, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	char *room = mmap(NULL, 200000 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long k, lost = 0;

	memset(big, 5, length);
	for (k = 1; !mprotect(room + k * PAGE, PAGE, PROT_READ); k += 2)
		;
	while (!mprotect(room + ++k * PAGE, PAGE, PROT_READ)) /* to the very last one */
		;
	errno = 77;
	printf("middle %d", munmap(big + 64 * PAGE, 256 * PAGE));
	printf(" errno %d", errno);
	for (size_t at = 0; at < length; at += PAGE)
		lost += !(k = big[at] == 5);
	printf(" lost %ld", lost);
	errno = 77;
	printf(" end %d", munmap(big + 256 * PAGE, 256 * PAGE));
	printf(" errno %d\n", errno);
	return 0;
}

int main(int argc, char **argv)
{
	static char out[1 << 16];

	setvbuf(stdout, out, _IOFBF, sizeof(out));
	if (argc > 2 && !strcmp(argv[2], "crowded"))
		return crowded();
	if (argc > 3 && !strcmp(argv[2], "threads"))
		return beside_threads(atol(argv[3]));
	tells = argc > 4 && !strcmp(argv[4], "tell");
	in_arena = argc > 4 && !strcmp(argv[4], "arena");
	return argc > 3 ? lives(atol(argv[1]), atol(argv[2]), atol(argv[3])) : 2;
}
