/*
 * Levels of a breadth-first search: which states were met, and what steps do in them.
 *
 * A state is a word: the positions of the tasks in its low bits, above them the number of what the
 * store holds; the highest bit is 0. Words that were met stand in a table. They are explored in the
 * order in which they were met, and stand in a queue until then. What a step does is remembered by
 * those limbs of the state that it looks at. What is not remembered is asked of the caller, in the
 * order in which the states need it; so are violations, and states in which nobody can go on.
 *
 * With several cores, wide parts of the queue are cut into chunks. Threads take blocks of their
 * states and write down the words that steps lead to. What needs more than that (something not
 * remembered or not numbered, a violation, an end) leaves a gap. The caller's thread fills the gaps
 * of a chunk after another, in the order of the states, and asks as it does alone. The words of a
 * chunk that has none left are met in their order, by one thread at a time, whichever is free; so
 * the queue is as one core leaves it, and nobody else looks at the table. Up to CHUNKS chunks are
 * explored before they are met: so there is work while the caller asks, and while one thread meets.
 * Others pause only while the caller's thread changes what they look at.
 * Threads wait for work until `levels_free`.
 *
 * compiled_levels.py is the caller and says what must hold.
 */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t limb;

enum { DONE, ASK, BREAKS, STUCK, FULL, NO_MEMORY };

#define NONE UINT32_MAX
#define STAYS (-((int64_t)1 << 62))
#define WORD_BITS 63
#define ODD ((limb)1 << WORD_BITS)	/* no change: an event, or DONE where a step stays */
#define LATELY_BITS 12
#define RECENT_BITS 14
#define AHEAD 32		/* words to meet at once; memory is as far away as that */
#define BATCH 256		/* and so many are kept for that, alone */
#define BLOCK 128		/* states that a core takes at a time, at most */
#define CHUNKS 8
#define ALONE(chunks) (((uint64_t)1 << (chunks)) - 1)	/* so many, after others in a row */
#define LARGE_PAGE_BITS 18	/* so many limbs */
#define LARGE_PAGE (sizeof(limb) << LARGE_PAGE_BITS)
#define SPINS 2000		/* looks at whether there is work, before a thread sleeps */
#define RANGES 64		/* of slots, which go into others one by one */
#define PART_BITS 15		/* of the queue: so many states */
#define PART ((limb)1 << PART_BITS)
#define PARTS ((limb)1 << 17)
#define HOLE ODD		/* among the words of a chunk: none */

/* Keys of a fixed number of limbs, each once, numbered from 0 as they are met. */
struct pool {
	uint32_t width, count, room;
	uint32_t bits;		/* of the number of slots; none yet: 0 */
	limb *keys;
	uint32_t *slots;
};

/* Words, each once: a slot holds one and ODD, or 0. */
struct words {
	uint64_t count;
	uint32_t bits;		/* of the number of slots; none yet: 0 */
	limb *slots;
};

/* A position of a task: the limbs that its step looks at, and what it did for their values. */
struct row {
	int known, ended;
	uint32_t *which;
	limb *masks;
	struct pool memo;
	int64_t *does;		/* by number in memo: not positive as told, else 1 + a change */
	uint32_t room;
};

/* What a task was last seen to do at a position with some contents of the store. */
struct lately {
	limb at;		/* the word under the task's mask, or ODD bits: nothing */
	limb change;		/* old XOR new word, 0 where it waits; or ODD */
};

struct task {
	uint32_t shift, width, room;
	limb mask;		/* its position, and the number */
	struct row *rows;
};

struct levels;

/* A core at work: what it looks at, and what tasks were lately seen to do. No other writes there. */
struct core {
	limb *now, *after, *key;
	struct lately *lately;	/* those of the first task, of the second, ... */
	limb *recent;		/* behind: words that steps lately led to, met or written down before */
	int is_unpacked;	/* the state at hand, into `now` */
	int64_t code;		/* of the rule that a step breaks */
	struct levels *all;
	pthread_t thread;
	int is_apart;		/* in that thread; the caller's does what else there is */
	pthread_mutex_t at_work;	/* others don't change what it looks at */
};

/* A state that the caller's thread goes on with. */
struct gap {
	uint32_t state, index;
	uint32_t at;		/* where its next word goes, after the block's first */
	uint32_t own;		/* transitions of this state so far */
	uint64_t before;	/* and of those before it in the block */
	int stuck;
};

struct block {
	uint32_t count;		/* of what its states lead to */
	uint32_t gaps;
	uint64_t transitions;
	int is_stale;		/* a step in it looks at more by now: some states are explored again */
};

/* States that are next to each other in the queue. */
struct chunk {
	uint64_t first;		/* number of its first state */
	uint32_t states, room, blocks, of_block;
	uint32_t taken, done;	/* blocks that a core has begun with, and is done with */
	struct block *block;
	struct gap *gap;	/* each block's from its first state on */
	limb *words;		/* what steps lead to: each block's from tasks * its first state on */
	uint32_t block_at, gap_at;	/* the gap at hand */
	uint32_t put;		/* where its next word goes, after the block's first */
	int is_begun;
};

/* All cores. What stands here is looked at and changed under the lock, but `rounds`, `pauses`. */
struct team {
	pthread_mutex_t lock;
	pthread_cond_t news;
	pid_t process;		/* its threads are in this one */
	uint64_t rounds;	/* how often there was news */
	uint32_t asleep;	/* threads that wait for it */
	uint32_t exploring;	/* cores that have a block */
	int is_meeting;		/* one has a chunk to meet */
	struct words more;	/* to put those into that were met */
	limb ranges, range, moved;	/* of which so many are begun with, and done */
	limb dropped;		/* and of so many the memory went, but of the first */
	uint8_t is_moved[RANGES];	/* of the next ones */
	int has_failed;		/* there was no memory */
	int is_over;
	int pauses;		/* to let the caller's core change what others look at */
	uint64_t opened, filled, met;	/* chunks so far: each goes through all of that */
	uint64_t opened_to;	/* number of the first state behind them */
	uint64_t until, next;	/* the caller goes on up to the one, others up to the other */
	uint64_t there;		/* states that are in the queue for all */
	uint64_t alone_until;	/* chunks had so many gaps that one core goes on */
	uint32_t in_a_row;	/* such chunks, 3 at most */
	struct chunk chunks[CHUNKS];
};

struct levels {
	struct {		/* what the caller looks at when a call has returned */
		limb *now;	/* the state at hand */
		uint64_t index;	/* of the task at hand */
		uint64_t at;	/* number of the state at hand, in the order of meeting */
		uint64_t met, stores;
		uint64_t before;	/* transitions of the states before the one at hand */
		int64_t code;
	} seen;
	uint32_t tasks, limbs;	/* limbs of a state: one of positions, the others of the store */
	uint32_t low;
	struct task *task;
	struct words words;
	limb **queue;		/* in parts */
	uint64_t parts, forgotten;	/* so many there are, and so many went */
	struct pool stores;
	limb *changes;
	uint8_t *stores_change;
	uint32_t nr_changes, changes_room;
	uint32_t cores;
	uint32_t wide;		/* so many states are worth threads */
	uint32_t slice;		/* a call is for so many at most */
	struct core *core;
	limb *ahead;		/* words to meet, in this order */
	uint32_t nr_ahead;
	struct team team;
	uint64_t transitions;
	int stuck;
};

static inline limb hash(const limb *key, uint32_t width)
{
	limb mixed = 0x9E3779B97F4A7C15;

	for (uint32_t i = 0; i < width; i++) {
		mixed = (mixed ^ key[i]) * 0xD6E8FEB86659FD93;
		mixed ^= mixed >> 32;
	}
	return mixed * 0x9E3779B97F4A7C15;
}

static inline uint32_t *slot_of(const struct pool *pool, const limb *key, uint32_t width)
{
	limb last = ((limb)1 << pool->bits) - 1;
	limb at = hash(key, width) >> (64 - pool->bits);

	for (;; at = (at + 1) & last) {
		uint32_t number = pool->slots[at];
		const limb *there = pool->keys + (size_t)number * width;
		uint32_t i = 0;

		if (number == NONE)
			return pool->slots + at;
		while (i < width && there[i] == key[i])
			i++;
		if (i == width)
			return pool->slots + at;
	}
}

static int spread(struct pool *pool, uint32_t bits)
{
	uint32_t *slots = realloc(pool->slots, sizeof(*slots) << bits);

	if (!slots)
		return 0;
	pool->slots = slots;
	pool->bits = bits;
	memset(slots, 0xff, sizeof(*slots) << bits);
	for (uint32_t i = 0; i < pool->count; i++)
		*slot_of(pool, pool->keys + (size_t)i * pool->width, pool->width) = i;
	return 1;
}

/* Return of how many slots three quarters are as many. */
static uint32_t bits_for(uint32_t bits, uint64_t count)
{
	bits = bits ? bits : 4;
	while (count * 4 > (uint64_t)3 << bits)
		bits++;
	return bits;
}

static int holds(struct pool *pool, uint64_t count)
{
	uint64_t room = pool->room ? pool->room * (uint64_t)2 : 8;
	limb *keys;

	if (count <= pool->room)
		return 1;
	if (room < count)
		room = count;
	if (room > NONE)
		room = NONE;
	keys = realloc(pool->keys, sizeof(limb) * (room * pool->width + 1));
	if (!keys || count > room)
		return 0;
	pool->keys = keys;
	pool->room = room;
	return 1;
}

static int has_room(struct pool *pool, uint32_t more)
{
	uint64_t count = (uint64_t)pool->count + more;
	uint32_t bits = bits_for(pool->bits, count);

	return holds(pool, count) && (bits == pool->bits || spread(pool, bits));
}

/* Number a key; NONE without memory. A new one has the number that `count` had before. */
static inline uint32_t number(struct pool *pool, const limb *key, uint32_t width)
{
	uint32_t *slot;

	if (pool->bits) {
		slot = slot_of(pool, key, width);
		if (*slot != NONE)
			return *slot;
	}
	if (!has_room(pool, 1))
		return NONE;
	slot = slot_of(pool, key, width);
	for (uint32_t i = 0; i < width; i++)
		pool->keys[(size_t)pool->count * width + i] = key[i];
	*slot = pool->count;
	return pool->count++;
}

static void empty(struct pool *pool)
{
	free(pool->keys);
	free(pool->slots);
	memset(pool, 0, sizeof(*pool));
}

static inline limb *slot_of_word(const struct words *words, limb word)
{
	limb last = ((limb)1 << words->bits) - 1;
	limb at = hash(&word, 1) >> (64 - words->bits);

	while (words->slots[at] && words->slots[at] != (word | ODD))
		at = (at + 1) & last;
	return words->slots + at;
}

/* Return so many slots with 0, in large pages if they are many and the kernel has some. */
static limb *new_slots(uint32_t bits)
{
	const size_t size = sizeof(limb) << bits;
	char *slots, *aligned;

	if (size < LARGE_PAGE)
		return calloc(1, size);
	slots = mmap(NULL, size + LARGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		     -1, 0);
	if (slots == MAP_FAILED)
		return NULL;
	aligned = slots + (-(uintptr_t)slots & (LARGE_PAGE - 1));
	if (aligned > slots)
		munmap(slots, aligned - slots);
	if (aligned < slots + LARGE_PAGE)
		munmap(aligned + size, slots + LARGE_PAGE - aligned);
	madvise(aligned, size, MADV_HUGEPAGE);
	return (limb *)aligned;
}

static void free_slots(limb *slots, uint32_t bits)
{
	const size_t size = sizeof(limb) << bits;

	if (size < LARGE_PAGE || !slots)
		free(slots);
	else
		munmap(slots, size);
}

/* Return in how many ranges words go into other slots: large pages, if they are as many. */
static limb ranges_of(const struct words *words)
{
	limb slots = words->bits ? (limb)1 << words->bits : 0, size = slots * sizeof(limb);

	if (size >= LARGE_PAGE)
		return size / LARGE_PAGE;
	return slots < RANGES ? slots : RANGES;
}

/* Give back the memory of a range whose words, and those beside it, went elsewhere. */
static void drop_range(const struct words *words, limb range)
{
	limb size = ((limb)1 << words->bits) / ranges_of(words);

	if (sizeof(limb) << words->bits >= LARGE_PAGE)
		madvise(words->slots + range * size, LARGE_PAGE, MADV_DONTNEED);
}

/*
 * Put the words of a range into more slots. What stands between two empty slots comes between those
 * that these two become, so several ranges may be put there at once: each has what begins in it
 * behind an empty slot.
 */
static void move_range(const struct words *words, const struct words *more, limb range)
{
	const limb *slots = words->slots, last = ((limb)1 << words->bits) - 1;
	limb size = (last + 1) / ranges_of(words), at = range * size, end = at + size;

	if (slots[(at - 1) & last])
		while (at < end && slots[at])
			at++;
	if (at == end)
		return;
	for (; at < end || (slots[(at - 1) & last] && slots[at & last]); at++)
		if (slots[at & last])
			*slot_of_word(more, slots[at & last] & ~ODD) = slots[at & last];
}

/* Have slots for so many words in all, in `more` if there have to be more; 0 without memory. */
static int has_more_slots(const struct words *words, uint64_t count, struct words *more)
{
	*more = (struct words){ .count = words->count, .bits = bits_for(words->bits, count) };
	if (more->bits == words->bits)
		return 1;
	more->slots = new_slots(more->bits);
	return more->slots != NULL;
}

static void use_slots(struct words *words, const struct words *more)
{
	free_slots(words->slots, words->bits);
	*words = *more;
}

/* Have room for so many words in all. */
static int has_slots(struct words *words, uint64_t count)
{
	struct words more;

	if (!has_more_slots(words, count, &more))
		return 0;
	if (!more.slots)
		return 1;
	for (limb range = 0; range < ranges_of(words); range++) {
		move_range(words, &more, range);
		if (range > 1)	/* the last one looks at the first */
			drop_range(words, range - 1);
	}
	use_slots(words, &more);
	return 1;
}

static inline limb word_at(const struct levels *all, uint64_t number)
{
	return all->queue[number >> PART_BITS][number & (PART - 1)];
}

/* Have room in the queue for so many states in all. */
static int has_queue(struct levels *all, uint64_t count)
{
	for (; all->parts << PART_BITS < count; all->parts++) {
		if (all->parts == PARTS)
			return 0;
		all->queue[all->parts] = malloc(sizeof(limb) << PART_BITS);
		if (!all->queue[all->parts])
			return 0;
	}
	return 1;
}

/* Free what comes before a state in the queue. */
static void forget_queue(struct levels *all, uint64_t before)
{
	for (; all->forgotten < before >> PART_BITS; all->forgotten++) {
		free(all->queue[all->forgotten]);
		all->queue[all->forgotten] = NULL;
	}
}

static inline void fetch_slot(const struct words *words, limb word)
{
	__builtin_prefetch(words->slots + (hash(&word, 1) >> (64 - words->bits)), 1);
}

/* Meet words, in this order: put those that are new behind the queue. */
static int meet(struct levels *all, const limb *word, uint32_t count)
{
	struct words *words = &all->words;
	uint64_t met = words->count;	/* others look at what stands beside that */

	if (!has_slots(words, met + count) || !has_queue(all, met + count))
		return NO_MEMORY;
	for (uint32_t i = 0; i < count && i < AHEAD; i++)
		fetch_slot(words, word[i]);
	for (uint32_t i = 0; i < count; i++) {
		limb *slot;

		if (i + AHEAD < count)
			fetch_slot(words, word[i + AHEAD]);
		if (word[i] == HOLE)
			continue;
		slot = slot_of_word(words, word[i]);
		if (*slot)
			continue;
		*slot = word[i] | ODD;
		all->queue[met >> PART_BITS][met & (PART - 1)] = word[i];
		met++;
	}
	words->count = met;
	return DONE;
}

static void forget_row(struct row *row)
{
	free(row->which);
	free(row->masks);
	free(row->does);
	empty(&row->memo);
	memset(row, 0, sizeof(*row));
}

static void end_threads(struct levels *all);
static void hold_others(struct levels *all);
static void let_go(struct levels *all);
static int has_threads(const struct levels *all);
int levels_settle(struct levels *all);

/* Forget what a task was lately seen to do. */
static void forget_lately(const struct levels *all, uint32_t index)
{
	const size_t size = sizeof(struct lately) << LATELY_BITS;

	for (struct core *core = all->core; core < all->core + all->cores; core++)
		if (core->lately)
			memset(core->lately + ((size_t)index << LATELY_BITS), 0xff, size);
}

/* Forget what steps do: it is asked again. */
int levels_forget(struct levels *all)
{
	if (levels_settle(all))
		return NO_MEMORY;
	for (uint32_t index = 0; index < all->tasks; index++) {
		struct task *task = all->task + index;

		for (uint32_t at = 0; at < task->room; at++)
			forget_row(task->rows + at);
		forget_lately(all, index);
	}
	all->nr_changes = 0;
	return DONE;
}

static void forget_chunk(struct chunk *chunk)
{
	free(chunk->block);
	free(chunk->gap);
	free(chunk->words);
	memset(chunk, 0, sizeof(*chunk));
}

/*
 * Return what a core remembers with, as a number of limbs in bits. Where there are several cores it
 * is a large page at least: what stands there is looked up all over, for each state.
 */
static uint32_t bits_of_memory(const struct levels *all)
{
	size_t size = (all->tasks * sizeof(struct lately)) << LATELY_BITS;
	uint32_t bits = all->cores > 1 ? LARGE_PAGE_BITS : 0;

	size += sizeof(limb) << RECENT_BITS;
	while (sizeof(limb) << bits < size)
		bits++;
	return bits;
}

void levels_free(struct levels *all)
{
	if (!all)
		return;
	end_threads(all);
	for (uint32_t index = 0; all->task && index < all->tasks; index++) {
		struct task *task = all->task + index;

		for (uint32_t at = 0; at < task->room; at++)
			forget_row(task->rows + at);
		free(task->rows);
	}
	for (uint32_t i = 0; all->core && i < all->cores; i++) {
		free(all->core[i].now);
		free(all->core[i].after);
		free(all->core[i].key);
		free_slots((limb *)all->core[i].lately, bits_of_memory(all));
	}
	free(all->core);
	for (struct chunk *chunk = all->team.chunks; chunk < all->team.chunks + CHUNKS; chunk++)
		forget_chunk(chunk);
	free(all->task);
	free_slots(all->words.slots, all->words.bits);
	if (all->queue)
		forget_queue(all, all->parts << PART_BITS);
	free(all->queue);
	free(all->ahead);
	empty(&all->stores);
	free(all->changes);
	free(all->stores_change);
	free(all);
}

static int has_limbs(struct levels *all, uint32_t limbs)
{
	for (struct core *core = all->core; core < all->core + all->cores; core++) {
		limb **scratch[] = { &core->now, &core->after, &core->key };

		for (int i = 0; i < 3; i++) {
			limb *more = realloc(*scratch[i], sizeof(limb) * limbs);

			if (!more)
				return 0;
			*scratch[i] = more;
		}
	}
	all->seen.now = all->core->now;
	all->limbs = limbs;
	return 1;
}

static void forget_recent(const struct levels *all)
{
	for (struct core *core = all->core; core < all->core + all->cores; core++)
		if (core->recent)
			memset(core->recent, 0xff, sizeof(limb) << RECENT_BITS);
}

static int has_memory(struct levels *all, struct core *core)
{
	const size_t lately = (size_t)all->tasks << LATELY_BITS;

	core->lately = (struct lately *)new_slots(bits_of_memory(all));
	if (!core->lately)
		return 0;
	core->recent = (limb *)(core->lately + lately);
	memset(core->lately, 0xff, lately * sizeof(struct lately));
	memset(core->recent, 0xff, sizeof(limb) << RECENT_BITS);
	return 1;
}

static void lay_out(struct levels *all, const uint32_t *widths)
{
	all->low = 0;
	for (uint32_t index = 0; index < all->tasks; index++) {
		all->task[index].shift = all->low;
		all->task[index].width = widths[index];
		all->low += widths[index];
	}
	for (uint32_t index = 0; index < all->tasks; index++) {
		struct task *task = all->task + index;

		task->mask = ~(limb)0 << all->low | (((limb)1 << task->width) - 1) << task->shift;
	}
}

struct levels *levels_new(uint32_t tasks, uint32_t limbs, const uint32_t *widths, uint32_t cores,
			  uint32_t wide, uint32_t slice)
{
	struct levels *all = calloc(1, sizeof(*all));

	if (!all)
		return NULL;
	all->tasks = tasks;
	all->cores = cores;
	all->wide = wide;
	all->slice = slice;
	all->task = calloc(tasks, sizeof(*all->task));
	all->core = calloc(cores, sizeof(*all->core));
	all->queue = calloc(PARTS, sizeof(*all->queue));
	all->ahead = malloc(sizeof(limb) * (BATCH + tasks));
	if (!all->task || !all->core || !all->queue || !all->ahead || !has_limbs(all, limbs) ||
	    !has_memory(all, all->core)) {
		levels_free(all);
		return NULL;
	}
	for (uint32_t i = 0; i < cores; i++)
		all->core[i].all = all;
	all->stores.width = limbs - 1;
	all->stuck = 1;
	lay_out(all, widths);
	return all;
}

static limb positions_of(const struct levels *all, limb word)
{
	return word & (~(limb)0 >> (64 - all->low));
}

static void unpack(const struct levels *all, limb word, limb *state)
{
	const limb *store = all->stores.keys + (word >> all->low) * (all->limbs - 1);

	state[0] = positions_of(all, word);
	memcpy(state + 1, store, sizeof(limb) * (all->limbs - 1));
}

/* Positions of tasks that were laid out as in `old`, as they are now: of a word, mask or change. */
static limb moved(const struct levels *all, const struct task *old, limb positions)
{
	limb to = 0;

	for (uint32_t index = 0; index < all->tasks; index++) {
		limb mask = ((limb)1 << old[index].width) - 1;

		to |= (positions >> old[index].shift & mask) << all->task[index].shift;
	}
	return to;
}

/* Move the positions that rows look at; a mask has all bits of a position or none. */
static int move_row(struct levels *all, const struct task *old, struct row *row)
{
	struct pool *memo = &row->memo;
	limb mask = 0;

	if (!row->known || row->ended || !memo->width || row->which[0])
		return 1;
	for (uint32_t index = 0; index < all->tasks; index++)
		if (row->masks[0] >> old[index].shift & 1)
			mask |= (((limb)1 << all->task[index].width) - 1) << all->task[index].shift;
	row->masks[0] = mask;
	for (uint32_t at = 0; at < memo->count; at++) {
		limb *key = memo->keys + (size_t)at * memo->width;

		*key = moved(all, old, *key);
	}
	return !memo->bits || spread(memo, memo->bits);
}

static int move_words(struct levels *all, const struct task *old, uint32_t low)
{
	struct words before = all->words;
	limb *slots;

	if (!before.bits)
		return 1;
	slots = new_slots(before.bits);
	if (!slots)
		return 0;
	all->words.slots = slots;
	for (limb at = 0; at < (limb)1 << before.bits; at++)
		if (before.slots[at]) {
			limb word = before.slots[at] & ~ODD;

			word = (word >> low) << all->low | moved(all, old, word);
			*slot_of_word(&all->words, word) = word | ODD;
		}
	free_slots(before.slots, before.bits);
	for (uint64_t at = all->forgotten << PART_BITS; at < all->words.count; at++) {
		limb *word = all->queue[at >> PART_BITS] + (at & (PART - 1));

		*word = (*word >> low) << all->low | moved(all, old, *word);
	}
	return 1;
}

/* Give positions other widths in all states. The step that was asked for is asked again. */
int levels_lay_out(struct levels *all, const uint32_t *widths)
{
	uint32_t low = all->low;
	struct task *old = malloc(sizeof(*old) * all->tasks);
	int failed;

	if (!old)
		return NO_MEMORY;
	failed = levels_settle(all);
	memcpy(old, all->task, sizeof(*old) * all->tasks);
	lay_out(all, widths);
	failed = failed || !move_words(all, old, low);
	for (uint32_t index = 0; index < all->tasks; index++) {
		struct task *task = all->task + index;

		for (uint32_t at = 0; at < task->room; at++)
			failed = failed || !move_row(all, old, task->rows + at);
		forget_lately(all, index);
	}
	for (uint32_t i = 0; i < all->nr_changes; i++) {
		limb *change = all->changes + (size_t)i * all->limbs;

		*change = moved(all, old, *change);
	}
	free(old);
	forget_recent(all);
	return failed ? NO_MEMORY : DONE;
}

/* Give the store more limbs. */
int levels_widen(struct levels *all, uint32_t limbs)
{
	uint32_t before = all->limbs, width = limbs - 1;
	struct pool *stores = &all->stores;
	limb *keys, *changes;

	if (levels_settle(all))
		return NO_MEMORY;
	keys = calloc(stores->room * (size_t)width + 1, sizeof(limb));
	changes = calloc(all->changes_room * (size_t)limbs + 1, sizeof(limb));
	if (!keys || !changes || !has_limbs(all, limbs)) {
		free(keys);
		free(changes);
		return NO_MEMORY;
	}
	for (uint32_t at = 0; at < stores->count; at++)
		memcpy(keys + (size_t)at * width, stores->keys + (size_t)at * (before - 1),
		       sizeof(limb) * (before - 1));
	for (uint32_t at = 0; at < all->nr_changes; at++)
		memcpy(changes + (size_t)at * limbs, all->changes + (size_t)at * before,
		       sizeof(limb) * before);
	free(stores->keys);
	free(all->changes);
	stores->keys = keys;
	stores->width = width;
	all->changes = changes;
	if (stores->bits && !spread(stores, stores->bits))
		return NO_MEMORY;
	if (all->seen.at < all->words.count)
		unpack(all, word_at(all, all->seen.at), all->seen.now);
	return DONE;
}

static int numbers_fit(const struct levels *all, uint32_t store)
{
	return !((uint64_t)store >> (WORD_BITS - all->low));
}

/* Take states in that were met before, one after another. */
int levels_take(struct levels *all, const limb *state, uint64_t count)
{
	for (; count; count--, state += all->limbs) {
		uint32_t store = number(&all->stores, state + 1, all->limbs - 1);
		limb word = (limb)store << all->low | state[0];

		if (store == NONE)
			return NO_MEMORY;
		if (!numbers_fit(all, store))
			return FULL;
		if (meet(all, &word, 1))
			return NO_MEMORY;
	}
	all->seen.met = all->words.count;
	return DONE;
}

/* Of the states that were taken in, those before this one have been explored. */
void levels_begin(struct levels *all, uint64_t at)
{
	all->seen.at = at;
}

static struct row *row_of(struct levels *all, uint32_t index, limb position)
{
	struct task *task = all->task + index;

	if (position >= task->room) {
		uint32_t room = position * 2 + 16;
		struct row *rows = realloc(task->rows, sizeof(*rows) * room);

		if (!rows)
			return NULL;
		memset(rows + task->room, 0, sizeof(*rows) * (room - task->room));
		task->rows = rows;
		task->room = room;
	}
	return task->rows + position;
}

static struct row *row_now(struct levels *all, uint32_t index)
{
	const struct task *task = all->task + index;

	return row_of(all, index, all->seen.now[0] >> task->shift & (((limb)1 << task->width) - 1));
}

static void make_key(const struct core *core, const struct row *row)
{
	for (uint32_t i = 0; i < row->memo.width; i++)
		core->key[i] = core->now[row->which[i]] & row->masks[i];
}

/* The task whose step was asked for has ended. */
int levels_ended(struct levels *all)
{
	struct row *row;

	hold_others(all);
	row = row_now(all, all->seen.index);
	if (row)
		row->known = row->ended = 1;
	let_go(all);
	return row ? DONE : NO_MEMORY;
}

static int is_masked_by(const struct levels *all, const struct row *row, const limb *mask)
{
	uint32_t at = 0;

	for (uint32_t i = 0; i < all->limbs; i++) {
		limb mine = at < row->memo.width && row->which[at] == i ? row->masks[at++] : 0;

		if (mine != mask[i])
			return 0;
	}
	return 1;
}

static int set_mask(struct levels *all, struct row *row, const limb *mask)
{
	forget_row(row);
	row->which = malloc(sizeof(*row->which) * all->limbs);
	row->masks = malloc(sizeof(*row->masks) * all->limbs);
	if (!row->which || !row->masks)
		return 0;
	for (uint32_t i = 0; i < all->limbs; i++)
		if (mask[i]) {
			row->which[row->memo.width] = i;
			row->masks[row->memo.width++] = mask[i];
		}
	row->known = 1;
	return 1;
}

/*
 * The step at a position looks at more bits, which were 0 until now in all states: what it did for
 * their values it still does.
 */
int levels_widen_row(struct levels *all, uint32_t index, uint32_t position, const limb *mask)
{
	struct row *row = all->task[index].rows + position, wider = { 0 };

	if (!set_mask(all, &wider, mask))
		return NO_MEMORY;
	for (uint32_t at = 0; at < row->memo.count; at++) {
		const limb *key = row->memo.keys + (size_t)at * row->memo.width;

		for (uint32_t i = 0, old = 0; i < wider.memo.width; i++) {
			int had = old < row->memo.width && row->which[old] == wider.which[i];

			all->core->key[i] = had ? key[old] : 0;
			old += had;
		}
		if (number(&wider.memo, all->core->key, wider.memo.width) == NONE) {
			forget_row(&wider);
			return NO_MEMORY;
		}
	}
	hold_others(all);
	wider.does = row->does;
	wider.room = row->room;
	row->does = NULL;
	forget_row(row);
	*row = wider;
	let_go(all);
	return DONE;
}

static int64_t new_change(struct levels *all, const limb *change)
{
	size_t size = sizeof(limb) * all->limbs;

	if (all->nr_changes == all->changes_room) {
		uint32_t room = all->changes_room * 2 + 64;
		limb *changes = realloc(all->changes, size * room);
		uint8_t *flags;

		if (!changes)
			return 0;
		all->changes = changes;
		flags = realloc(all->stores_change, room);
		if (!flags)
			return 0;
		all->stores_change = flags;
		all->changes_room = room;
	}
	memcpy(all->changes + (size_t)all->nr_changes * all->limbs, change, size);
	all->stores_change[all->nr_changes] = 0;
	for (uint32_t i = 1; i < all->limbs; i++)
		all->stores_change[all->nr_changes] |= change[i] != 0;
	return ++all->nr_changes;
}

static int learn(struct levels *all, const limb *mask, int64_t code, const limb *change)
{
	struct row *row = row_now(all, all->seen.index);
	uint32_t at;

	if (!row->known || !is_masked_by(all, row, mask)) {
		if (row->known)
			forget_lately(all, all->seen.index);
		if (!set_mask(all, row, mask))
			return NO_MEMORY;
	}
	if (code > 0) {
		code = new_change(all, change);
		if (!code)
			return NO_MEMORY;
	}
	make_key(all->core, row);
	at = number(&row->memo, all->core->key, row->memo.width);
	if (at == NONE)
		return NO_MEMORY;
	if (at >= row->room) {
		uint32_t room = row->memo.room;
		int64_t *does = realloc(row->does, sizeof(*does) * room);

		if (!does)
			return NO_MEMORY;
		row->does = does;
		row->room = room;
	}
	row->does[at] = code;
	return DONE;
}

static inline struct chunk *chunk_of(struct levels *all, uint64_t number)
{
	return all->team.chunks + number % CHUNKS;
}

/* Return which state of a chunk is behind those of a block. */
static uint32_t end_of_block(const struct chunk *chunk, uint32_t number)
{
	uint32_t end = (number + 1) * chunk->of_block;

	return end < chunk->states ? end : chunk->states;
}

/*
 * A task's step at a position looks at more than it did: have those states explored again in which
 * the task is there, and that others have explored ahead. What was found of the others holds.
 */
static void make_stale(struct levels *all, const struct task *task, limb position)
{
	const limb mask = (((limb)1 << task->width) - 1) << task->shift;
	struct team *team = &all->team;

	if (!has_threads(all))
		return;
	pthread_mutex_lock(&team->lock);
	for (uint64_t number = team->filled; number < team->opened; number++) {
		struct chunk *chunk = chunk_of(all, number);

		for (uint32_t i = 0; i < chunk->taken; i++) {
			uint64_t state = chunk->first + i * chunk->of_block;
			uint64_t end = chunk->first + end_of_block(chunk, i);

			while (state < end && (word_at(all, state) & mask) != position << task->shift)
				state++;
			chunk->block[i].is_stale |= state < end;
		}
	}
	pthread_mutex_unlock(&team->lock);
}

/*
 * Remember what the step that was asked for does: `code` if that is not positive, else `change`, as
 * old XOR new state. `mask` has the bits that it looks at.
 */
int levels_learn(struct levels *all, const limb *mask, int64_t code, const limb *change)
{
	const struct task *task = all->task + all->seen.index;
	limb position = all->seen.now[0] >> task->shift & (((limb)1 << task->width) - 1);
	const struct row *row = position < task->room ? task->rows + position : NULL;
	int failed;

	hold_others(all);
	if (row && row->known && !is_masked_by(all, row, mask))
		make_stale(all, task, position);
	failed = learn(all, mask, code, change);
	let_go(all);
	return failed;
}

/* Have the state that a core looks at in limbs, too. */
static inline void unpack_once(const struct levels *all, struct core *core, limb word)
{
	if (!core->is_unpacked)
		unpack(all, word, core->now);
	core->is_unpacked = 1;
}

/* Find out where a change leads from the state that a core looks at: old XOR new word, or ODD. */
static limb change_of_word(struct levels *all, struct core *core, limb word, int64_t does,
			   int may_number)
{
	const limb *change = all->changes + (size_t)(does - 1) * all->limbs;
	uint32_t store;

	if (!all->stores_change[does - 1])
		return change[0];
	for (uint32_t i = 1; i < all->limbs; i++)
		core->after[i] = core->now[i] ^ change[i];
	store = *slot_of(&all->stores, core->after + 1, all->limbs - 1);
	if (store == NONE) {
		if (!may_number)
			return ODD | ASK;
		hold_others(all);
		store = number(&all->stores, core->after + 1, all->limbs - 1);
		let_go(all);
		if (store == NONE)
			return ODD | NO_MEMORY;
	}
	if (!numbers_fit(all, store))
		return ODD | (may_number ? FULL : ASK);
	return change[0] | (word >> all->low ^ store) << all->low;
}

/* Look up what a task does in the state that a core looks at, and remember that if it may be. */
static limb find_out(struct levels *all, struct core *core, limb word, uint32_t index,
		     int may_number, struct lately *lately)
{
	const struct task *task = all->task + index;
	limb position = word >> task->shift & (((limb)1 << task->width) - 1), change = 0;
	const struct row *row = task->rows + position;
	uint32_t number;

	if (position >= task->room || !row->known)
		return ODD | ASK;
	if (!row->ended) {
		unpack_once(all, core, word);
		make_key(core, row);
		number = row->memo.bits ? *slot_of(&row->memo, core->key, row->memo.width) : NONE;
		if (number == NONE)
			return ODD | ASK;
		core->code = row->does[number];
		if (core->code > 0)
			change = change_of_word(all, core, word, core->code, may_number);
		else if (core->code)
			change = ODD | (core->code == STAYS ? DONE : BREAKS);
		if (change > ODD)
			return change;
		if (row->memo.width && !row->which[0])
			return change;	/* it goes by where others stand */
	}
	*lately = (struct lately){ word & task->mask, change };
	return change;
}

/* What a task does in a state: as seen lately, or as remembered. */
static inline limb look_up(struct levels *all, struct core *core, limb word, uint32_t index,
			   int may_number)
{
	limb at = word & all->task[index].mask;
	struct lately *lately = core->lately + ((size_t)index << LATELY_BITS);

	lately += at * 0x9E3779B97F4A7C15 >> (64 - LATELY_BITS);
	if (lately->at == at)
		return lately->change;
	return find_out(all, core, word, index, may_number, lately);
}

/* Keep those of the words that steps have not led to lately; return how many. */
static inline uint32_t keep_fresh(struct core *core, limb *words, uint32_t count)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < count; i++) {
		limb word = words[i];
		limb *recent = core->recent + (hash(&word, 1) & ((1 << RECENT_BITS) - 1));

		words[kept] = word;
		kept += *recent != word;
		*recent = word;
	}
	return kept;
}

/*
 * Write down what the tasks from `*index` on lead to, `*count` words; `*can` of them can go on.
 * Returns an event of the task `*index`, or DONE.
 */
static inline int expand(struct levels *all, struct core *core, limb word, uint32_t *index,
			 uint32_t *can, int may_number, limb *words, uint32_t *count)
{
	uint32_t last = 0;
	limb change = 0;

	core->is_unpacked = 0;
	for (*can = 0; *index < all->tasks; ++*index) {
		change = look_up(all, core, word, *index, may_number);
		if (change > ODD)
			break;
		*can += change != 0;
		words[last] = word ^ change;
		last += change - 1 < ODD - 1;
	}
	*count = last;
	return change > ODD ? (int)(change & ~ODD) : DONE;
}

/*
 * Go on with the state at hand in the caller's thread. `before`: transitions of states before it
 * that are not among all others yet.
 */
static int go_on(struct levels *all, uint64_t before, limb *words, uint32_t *count)
{
	struct core *core = all->core;
	limb word = word_at(all, all->seen.at);
	uint32_t index = all->seen.index, can;
	int event = expand(all, core, word, &index, &can, 1, words, count);

	if (event == BREAKS) {
		all->seen.code = core->code;
		index++;
		can++;
	}
	all->transitions += can;
	all->stuck &= !can;
	if (!event) {
		all->seen.at++;
		index = 0;
		all->seen.before = all->transitions + before;
		event = all->stuck ? STUCK : DONE;
		all->stuck = 1;
	}
	all->seen.index = index;
	if (event)
		unpack_once(all, core, word);
	return event;
}

/* Go on alone up to `until`; all words that steps led to are met then. */
static int go(struct levels *all, uint64_t until)
{
	int event = DONE;

	while (all->seen.at < until && !event) {
		uint32_t count;
		limb *words = all->ahead + all->nr_ahead;

		event = go_on(all, 0, words, &count);
		all->nr_ahead += keep_fresh(all->core, words, count);
		if (all->nr_ahead >= BATCH || event || all->seen.at >= until) {
			if (meet(all, all->ahead, all->nr_ahead))
				return NO_MEMORY;
			all->nr_ahead = 0;
		}
	}
	return event;
}

static inline void wait_a_moment(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

/* Return whether chunks are open. Only the caller's thread opens one where there is none. */
static int has_chunks(struct team *team)
{
	int has;

	pthread_mutex_lock(&team->lock);
	has = team->met < team->opened;
	pthread_mutex_unlock(&team->lock);
	return has;
}

static inline int is_explored(const struct chunk *chunk)
{
	return chunk->done == chunk->blocks;
}

/* Have whoever waits look again; under the lock. */
static void tell(struct team *team)
{
	__atomic_store_n(&team->rounds, team->rounds + 1, __ATOMIC_RELEASE);
	if (team->asleep)
		pthread_cond_broadcast(&team->news);
}

/* Wait until there is news; with the lock, which is let go meanwhile. */
static void wait_for_news(struct team *team)
{
	uint64_t rounds = team->rounds;
	int spins = 0;

	pthread_mutex_unlock(&team->lock);
	while (spins < SPINS && __atomic_load_n(&team->rounds, __ATOMIC_ACQUIRE) == rounds) {
		spins++;
		wait_a_moment();
	}
	pthread_mutex_lock(&team->lock);
	team->asleep++;
	while (team->rounds == rounds)
		pthread_cond_wait(&team->news, &team->lock);
	team->asleep--;
}

static int has_chunk(struct chunk *chunk, uint32_t states, uint32_t tasks)
{
	if (states <= chunk->room)
		return 1;
	forget_chunk(chunk);
	chunk->block = malloc(sizeof(*chunk->block) * states);
	chunk->gap = malloc(sizeof(*chunk->gap) * states);
	chunk->words = malloc(sizeof(*chunk->words) * states * tasks);
	if (!chunk->block || !chunk->gap || !chunk->words)
		return 0;
	chunk->room = states;
	return 1;
}

/* Return where a chunk from `first` on ends: of states up to `until` it gets an even part. */
static uint64_t end_of_chunk(const struct levels *all, uint64_t first, uint64_t until)
{
	uint64_t most = 3 * (uint64_t)all->wide, left = until - first;
	uint64_t parts = (left + most - 1) / most;

	return parts ? first + (left + parts - 1) / parts : until;
}

/* Return which state is behind those that a call is for that a state is for; under the lock. */
static uint64_t end_of_slice(const struct levels *all, uint64_t state)
{
	const struct team *team = &all->team;
	uint64_t end = team->until;

	while (end <= state && end < team->next)
		end += all->slice;
	return end < team->next ? end : team->next;
}

/* Open a chunk of the states behind the last, if they are worth it; under the lock. */
static int opens_chunk(struct levels *all)
{
	struct team *team = &all->team;
	struct chunk *chunk = chunk_of(all, team->opened);
	uint64_t first = team->opened_to, end = end_of_slice(all, first);
	uint64_t least = team->opened == team->met ? all->wide : all->wide / 4 + 1;
	uint32_t states;

	if (end > team->there)
		end = team->there;
	else if (team->opened > team->met)
		least = 1;
	if (end < first + least || first < team->alone_until ||
	    team->opened - team->met == CHUNKS || team->has_failed)
		return 0;
	states = end_of_chunk(all, first, end) - first;
	if (!has_chunk(chunk, states, all->tasks)) {
		team->has_failed = 1;
		return 0;
	}
	chunk->first = first;
	chunk->states = states;
	chunk->of_block = states / (4 * all->cores) + 1;
	if (chunk->of_block > BLOCK)
		chunk->of_block = BLOCK;
	chunk->blocks = (states + chunk->of_block - 1) / chunk->of_block;
	chunk->taken = chunk->done = chunk->block_at = chunk->gap_at = 0;
	chunk->is_begun = 0;
	team->opened++;
	team->opened_to = first + states;
	return 1;
}

/* Pause, if the caller's core wants that. */
static inline void give_way(struct core *core)
{
	const int *pauses = &core->all->team.pauses;

	if (!__atomic_load_n(pauses, __ATOMIC_RELAXED) || !core->is_apart)
		return;
	pthread_mutex_unlock(&core->at_work);
	for (int i = 0; i < SPINS && __atomic_load_n(pauses, __ATOMIC_RELAXED); i++)
		wait_a_moment();
	pthread_mutex_lock(&core->at_work);
}

/*
 * Explore a block from a state on; what its states before lead to is written down.
 * `again`: words that were written down lately may be of states behind these.
 */
static void explore_rest(struct core *core, struct chunk *chunk, uint32_t number, uint32_t state,
			 int again)
{
	struct levels *all = core->all;
	struct block *block = chunk->block + number;
	uint32_t first = number * chunk->of_block, end = end_of_block(chunk, number);
	limb *words = chunk->words + (size_t)first * all->tasks;
	struct block now = *block;	/* others look at what stands beside that */

	for (; state < end; state++) {
		uint32_t index = 0, can, count;
		int event;

		give_way(core);
		event = expand(all, core, word_at(all, chunk->first + state), &index, &can, 0,
			       words + now.count, &count);
		now.count += again ? count : keep_fresh(core, words + now.count, count);
		if (!event && can) {
			now.transitions += can;
			continue;
		}
		chunk->gap[first + now.gaps++] = (struct gap){
			.state = state, .index = index, .at = now.count, .own = can,
			.before = now.transitions, .stuck = !can,
		};
		for (; index < all->tasks; index++)
			words[now.count++] = HOLE;
	}
	block->count = now.count;
	block->gaps = now.gaps;
	block->transitions = now.transitions;
}

static void explore_block(struct core *core, struct chunk *chunk, uint32_t number)
{
	if (core->is_apart)
		pthread_mutex_lock(&core->at_work);
	chunk->block[number] = (struct block){ 0 };
	explore_rest(core, chunk, number, number * chunk->of_block, 0);
	if (core->is_apart)
		pthread_mutex_unlock(&core->at_work);
}

/* Put a range of the words that were met into more slots, if one is left to do; with the lock. */
static int moves_range(struct levels *all)
{
	struct team *team = &all->team;
	limb range = team->range;
	int had_to_wait;

	if (range == team->ranges || range == team->dropped + RANGES)
		return 0;
	team->range++;
	pthread_mutex_unlock(&team->lock);
	move_range(&all->words, &team->more, range);
	pthread_mutex_lock(&team->lock);
	had_to_wait = team->range == team->dropped + RANGES;
	team->is_moved[range % RANGES] = 1;
	while (team->is_moved[team->dropped % RANGES]) {
		team->is_moved[team->dropped % RANGES] = 0;
		if (team->dropped > 1)	/* the last one looks at the first */
			drop_range(&all->words, team->dropped - 1);
		team->dropped++;
	}
	if (++team->moved == team->ranges || had_to_wait)
		tell(team);
	return 1;
}

/* Return how many words are left to meet, and gaps among them. */
static uint64_t words_of(const struct chunk *chunk)
{
	uint64_t count = 0;

	for (uint32_t i = 0; i < chunk->blocks; i++)
		count += chunk->block[i].count;
	return count;
}

/* Have room for the words of a chunk; others help; with the lock. */
static int has_slots_for(struct levels *all, const struct chunk *chunk)
{
	struct team *team = &all->team;
	uint64_t count = all->words.count + words_of(chunk);

	if (!has_more_slots(&all->words, count, &team->more))
		return 0;
	if (!team->more.slots)
		return 1;
	team->ranges = ranges_of(&all->words);
	team->range = team->moved = team->dropped = 0;
	tell(team);
	while (team->moved < team->ranges)
		if (!moves_range(all))
			wait_for_news(team);
	team->ranges = team->range = 0;
	use_slots(&all->words, &team->more);
	return 1;
}

static int meet_block(struct levels *all, const struct chunk *chunk, uint32_t number,
		      uint32_t count)
{
	return meet(all, chunk->words + (size_t)number * chunk->of_block * all->tasks, count);
}

static int meet_chunk(struct levels *all, const struct chunk *chunk)
{
	for (uint32_t i = 0; i < chunk->blocks; i++)
		if (meet_block(all, chunk, i, chunk->block[i].count))
			return NO_MEMORY;
	return DONE;
}

/*
 * Do a piece of work, if there is one; with the lock, which is let go meanwhile. To meet the words
 * of a chunk comes first: that makes work for others.
 */
static int does_some(struct core *core)
{
	struct levels *all = core->all;
	struct team *team = &all->team;
	struct chunk *chunk;
	int failed;

	if (moves_range(all))
		return 1;
	if (!team->is_meeting && team->met < team->filled && !team->has_failed) {
		chunk = chunk_of(all, team->met);
		team->is_meeting = 1;
		failed = !has_slots_for(all, chunk);
		pthread_mutex_unlock(&team->lock);
		failed = failed || meet_chunk(all, chunk);
		pthread_mutex_lock(&team->lock);
		team->is_meeting = 0;
		team->has_failed |= failed;
		team->there = all->words.count;
		team->met++;
		tell(team);
		return 1;
	}
	for (uint64_t number = team->filled;; number++) {
		uint32_t block;

		if (number == team->opened && (number == team->met || !opens_chunk(all)))
			return 0;
		chunk = chunk_of(all, number);
		if (chunk->taken == chunk->blocks)
			continue;
		block = chunk->taken++;
		team->exploring++;
		pthread_mutex_unlock(&team->lock);
		explore_block(core, chunk, block);
		pthread_mutex_lock(&team->lock);
		team->exploring--;
		chunk->done++;
		if (is_explored(chunk) || !team->exploring)
			tell(team);
		return 1;
	}
}

static void *work(void *at)
{
	struct core *core = at;
	struct team *team = &core->all->team;

	pthread_mutex_lock(&team->lock);
	while (!team->is_over)
		if (!does_some(core))
			wait_for_news(team);
	pthread_mutex_unlock(&team->lock);
	return NULL;
}

/* Have the threads of all cores wait for work. Signals are for the caller's thread. */
static void begin_threads(struct levels *all)
{
	struct team *team = &all->team;
	sigset_t every, before;

	if (team->process)
		return;
	pthread_mutex_init(&team->lock, NULL);
	pthread_cond_init(&team->news, NULL);
	team->process = getpid();
	sigfillset(&every);
	pthread_sigmask(SIG_SETMASK, &every, &before);
	for (struct core *core = all->core + 1; core < all->core + all->cores; core++) {
		if (!has_memory(all, core))
			continue;
		pthread_mutex_init(&core->at_work, NULL);
		core->is_apart = 1;
		if (pthread_create(&core->thread, NULL, work, core)) {
			core->is_apart = 0;
			pthread_mutex_destroy(&core->at_work);
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void end_threads(struct levels *all)
{
	struct team *team = &all->team;

	if (!team->process || team->process != getpid())
		return;		/* a forked process has none of them */
	pthread_mutex_lock(&team->lock);
	team->is_over = 1;
	tell(team);
	pthread_mutex_unlock(&team->lock);
	for (struct core *core = all->core; core < all->core + all->cores; core++)
		if (core->is_apart) {
			pthread_join(core->thread, NULL);
			pthread_mutex_destroy(&core->at_work);
		}
	pthread_mutex_destroy(&team->lock);
	pthread_cond_destroy(&team->news);
}

static int has_threads(const struct levels *all)
{
	return all->team.process && all->team.process == getpid();
}

/* Let no other core explore until `let_go`. */
static void hold_others(struct levels *all)
{
	if (!has_threads(all))
		return;
	__atomic_store_n(&all->team.pauses, 1, __ATOMIC_RELAXED);
	for (struct core *core = all->core; core < all->core + all->cores; core++) {
		int spins = 0;

		if (!core->is_apart)
			continue;
		while (spins < SPINS && pthread_mutex_trylock(&core->at_work)) {
			spins++;
			wait_a_moment();
		}
		if (spins == SPINS)
			pthread_mutex_lock(&core->at_work);
	}
}

static void let_go(struct levels *all)
{
	if (!has_threads(all))
		return;
	__atomic_store_n(&all->team.pauses, 0, __ATOMIC_RELAXED);
	for (struct core *core = all->core; core < all->core + all->cores; core++)
		if (core->is_apart)
			pthread_mutex_unlock(&core->at_work);
}

/* Meet what the gap at hand and the states before it in its chunk lead to. */
static int meet_begun(struct levels *all, const struct chunk *chunk)
{
	all->transitions += chunk->gap[chunk->block_at * chunk->of_block + chunk->gap_at].before;
	for (uint32_t i = 0; i < chunk->block_at; i++)
		if (meet_block(all, chunk, i, chunk->block[i].count))
			return NO_MEMORY;
	return meet_block(all, chunk, chunk->block_at, chunk->put);
}

/*
 * Meet what the states before the one at hand lead to. Those after it that others have explored are
 * explored once more.
 */
int levels_settle(struct levels *all)
{
	struct team *team = &all->team;
	int failed = DONE;

	if (!has_threads(all) || !has_chunks(team)) {
		all->seen.met = all->words.count;
		return DONE;
	}
	pthread_mutex_lock(&team->lock);
	for (uint64_t number = team->filled; number < team->opened; number++) {
		struct chunk *chunk = chunk_of(all, number);

		chunk->done += chunk->blocks - chunk->taken;
		chunk->taken = chunk->blocks;
	}
	team->until = team->next = 0;
	while (team->exploring || team->is_meeting)
		wait_for_news(team);
	while (team->met < team->filled && !failed)
		failed = meet_chunk(all, chunk_of(all, team->met++));
	if (!failed && team->filled < team->opened && chunk_of(all, team->filled)->is_begun)
		failed = meet_begun(all, chunk_of(all, team->filled));
	team->opened = team->filled = team->met;
	team->there = all->seen.met = all->words.count;
	team->has_failed |= failed != DONE;
	pthread_mutex_unlock(&team->lock);
	forget_recent(all);
	return team->has_failed ? NO_MEMORY : DONE;
}

/* Go on with those states of a chunk that need the caller's thread. */
static int fill_gaps(struct levels *all, struct chunk *chunk)
{
	for (; chunk->block_at < chunk->blocks; chunk->block_at++, chunk->gap_at = 0) {
		struct block *block = chunk->block + chunk->block_at;
		uint32_t first = chunk->block_at * chunk->of_block;
		limb *words = chunk->words + (size_t)first * all->tasks;

		if (block->is_stale && !chunk->is_begun) {
			*block = (struct block){ 0 };
			explore_rest(all->core, chunk, chunk->block_at, first, 1);
		}
		for (; chunk->gap_at < block->gaps; chunk->gap_at++) {
			const struct gap *gap = chunk->gap + first + chunk->gap_at;
			uint64_t state = chunk->first + gap->state;

			if (!chunk->is_begun) {
				all->seen.at = state;
				all->seen.index = gap->index;
				all->seen.before = all->transitions + gap->before;
				all->stuck = gap->stuck;
				all->transitions += gap->own;
				chunk->put = gap->at;
				chunk->is_begun = 1;
			}
			while (all->seen.at == state) {
				uint32_t count;
				int event = go_on(all, gap->before, words + chunk->put, &count);

				chunk->put += count;
				if (event)
					return event;
			}
			chunk->is_begun = 0;
			if (block->is_stale) {
				*block = (struct block){
					.count = chunk->put, .gaps = chunk->gap_at + 1,
					.transitions = gap->before,
				};
				explore_rest(all->core, chunk, chunk->block_at, gap->state + 1, 1);
			}
		}
		all->transitions += block->transitions;
	}
	all->seen.at = chunk->first + chunk->states;
	all->seen.before = all->transitions;
	return DONE;
}

/* One core goes on for a while after a chunk that had many gaps; under the lock. */
static void count_gaps(struct team *team, const struct chunk *chunk)
{
	uint64_t gaps = 0, end = chunk->first + chunk->states;

	for (uint32_t i = 0; i < chunk->blocks; i++)
		gaps += chunk->block[i].gaps;
	if (gaps * 4 > chunk->states) {
		team->alone_until = end + ALONE(team->in_a_row) * chunk->states;
		team->in_a_row += team->in_a_row < 3;
	} else {
		team->in_a_row = 0;
	}
}

/* Return how many states have been met, less those of a chunk that is being met; with the lock. */
static uint64_t met_so_far(const struct levels *all)
{
	const struct team *team = &all->team;

	return team->met < team->opened ? team->there : all->words.count;
}

/* Return how many states there are at most once the chunks are met that are filled; with the lock. */
static uint64_t met_at_most(struct levels *all)
{
	const struct team *team = &all->team;
	uint64_t count = met_so_far(all);

	for (uint64_t number = team->met; number < team->filled; number++)
		count += words_of(chunk_of(all, number));
	return count;
}

/* Return how many states have been met, as `met_so_far`. */
static uint64_t met_by_now(struct levels *all)
{
	struct team *team = &all->team;
	uint64_t met;

	if (!has_threads(all))
		return all->words.count;
	pthread_mutex_lock(&team->lock);
	met = met_so_far(all);
	pthread_mutex_unlock(&team->lock);
	return met;
}

/* Return whether chunks up to `until` are left to fill, or others to meet (see `levels_go`). */
static int is_due(struct levels *all, uint64_t until, uint64_t most)
{
	const struct team *team = &all->team;

	if (team->filled < team->opened && chunk_of(all, team->filled)->first < until)
		return 1;
	return team->met < team->filled && (all->seen.at < until || met_at_most(all) > most);
}

/* Fill the chunks up to `until`, and help the others meanwhile; with the lock. */
static int go_with_others(struct levels *all, uint64_t until, uint64_t most)
{
	struct team *team = &all->team;

	while (is_due(all, until, most)) {
		struct chunk *chunk = chunk_of(all, team->filled);
		int event;

		if (team->has_failed)
			return NO_MEMORY;
		if (team->filled == team->opened || !is_explored(chunk) || chunk->first >= until) {
			if (!does_some(all->core))
				wait_for_news(team);
			continue;
		}
		if (!chunk->block_at && !chunk->gap_at && !chunk->is_begun)
			count_gaps(team, chunk);
		pthread_mutex_unlock(&team->lock);
		event = fill_gaps(all, chunk);
		pthread_mutex_lock(&team->lock);
		if (event)
			return event;
		team->filled++;
		tell(team);
	}
	return team->has_failed ? NO_MEMORY : DONE;
}

/* Return up to where one core goes on alone: until there are chunks, if other cores may help. */
static uint64_t end_alone(struct levels *all, uint64_t until)
{
	struct team *team = &all->team;
	int opens;

	if (all->seen.index)
		return all->seen.at + 1;
	if (all->cores == 1 || until < all->seen.at + all->wide)
		return until;
	begin_threads(all);
	if (!has_threads(all))
		return until;
	pthread_mutex_lock(&team->lock);
	team->until = until;
	team->opened_to = all->seen.at;
	team->there = all->words.count;
	opens = opens_chunk(all);
	if (opens)
		tell(team);
	pthread_mutex_unlock(&team->lock);
	if (opens)
		return all->seen.at;
	return end_of_chunk(all, all->seen.at, until);
}

static int go_some(struct levels *all, uint64_t until, uint64_t next, uint64_t most)
{
	struct team *team = &all->team;
	int event = DONE;

	if (team->process && !has_threads(all) && team->met < team->opened)
		return NO_MEMORY;	/* forked amid work of threads that are not here */
	if (has_threads(all)) {
		pthread_mutex_lock(&team->lock);
		if (team->until != until || team->next != next) {
			team->until = until;
			team->next = next;
			tell(team);
		}
		event = go_with_others(all, until, most);
		pthread_mutex_unlock(&team->lock);
	}
	return event || all->seen.at >= until ? event : go(all, end_alone(all, until));
}

/*
 * Explore the states from where it stopped up to `until`. DONE: all; ASK: what the task `index`
 * does in the state at hand; BREAKS: it breaks the rule `code`; STUCK: nobody can go on there.
 * From `until` up to `next` is what the next calls will be for, as far as there are such states by
 * then, a slice each; others may begin with those that have been met.
 * What the states before `until` lead to has all been met then, or is left to others where there
 * are not more than `most` states in all with that; `seen.met` are there already.
 */
int levels_go(struct levels *all, uint64_t until, uint64_t next, uint64_t most)
{
	int event;

	do
		event = go_some(all, until, next, most);
	while (!event && all->seen.at < until);
	if (!event) {
		all->seen.met = met_by_now(all);
		forget_queue(all, all->seen.at);
	}
	all->seen.stores = all->stores.count;
	return event;
}

/* Write states of the queue down, those with the numbers `first` to `last` - 1. */
void levels_show(const struct levels *all, uint64_t first, uint64_t last, limb *states)
{
	for (; first < last; first++, states += all->limbs)
		unpack(all, word_at(all, first), states);
}

/* Write down states that were met, `most` at most, from a slot on; return how many. */
uint64_t levels_visited(const struct levels *all, uint64_t *slot, uint64_t most, limb *states)
{
	uint64_t count = 0;

	for (; all->words.bits && *slot >> all->words.bits == 0 && count < most; ++*slot)
		if (all->words.slots[*slot]) {
			unpack(all, all->words.slots[*slot] & ~ODD, states);
			states += all->limbs;
			count++;
		}
	return count;
}

/* Return how many states there are at most once all is met that is left to others; see `levels_go`. */
static uint64_t met_after_all(struct levels *all)
{
	struct team *team = &all->team;
	uint64_t count;

	if (!has_threads(all))
		return all->words.count;
	pthread_mutex_lock(&team->lock);
	while (team->ranges)	/* more slots would count twice */
		if (!moves_range(all))
			wait_for_news(team);
	count = met_at_most(all);
	pthread_mutex_unlock(&team->lock);
	return count;
}

/* Return how many bytes more this takes at most while `more` states are met. */
uint64_t levels_bytes_to_come(struct levels *all, uint64_t more)
{
	const struct pool *stores = &all->stores;
	uint64_t count = met_after_all(all) + more;
	uint32_t bits = bits_for(all->words.bits, count);
	uint64_t bytes = more * sizeof(limb) * (1 + stores->width);

	if (bits > all->words.bits)	/* those that there are go on the way, if they are many */
		bytes += sizeof(limb) << bits;
	bits = bits_for(stores->bits, stores->count + more);
	if (bits > stores->bits)
		bytes += sizeof(uint32_t) << bits;
	if (all->cores > 1) {	/* whether chunks are there or not */
		uint64_t states = 3 * (uint64_t)all->wide * CHUNKS;

		bytes += states * (all->tasks * sizeof(limb) + sizeof(struct gap) + sizeof(struct block));
		bytes += (uint64_t)(all->cores - 1) * sizeof(limb) << bits_of_memory(all);
	}
	return bytes;
}
