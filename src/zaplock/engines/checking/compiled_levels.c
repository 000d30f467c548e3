/*
 * Levels of a breadth-first search: which states were met, and what steps do in them.
 *
 * A state is a word: the positions of the tasks in its low bits, above them the number of what the
 * store holds; the highest bit is 0. What a step does is remembered by those limbs of the state
 * that it looks at. What is not remembered is asked of the caller, in the order in which the states
 * need it; so are violations, and states in which nobody can go on.
 *
 * With several cores, threads share a wide level, a chunk after another. They take blocks of the
 * chunk's states and put the words that steps lead to into the table, each with its place in the
 * order of meeting; of two that are equal the earlier stays. What needs more than that (something
 * not remembered or not numbered, a violation, an end) leaves a gap. When all blocks are done the
 * other cores begin with the next chunk, of this level or of what is met of the next, while the
 * caller's thread fills the gaps, in the order of the states, and asks as it does alone; then it
 * numbers the new words as one core does, and helps with the next chunk. Others pause only while it
 * changes what they look at.
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
#define LATELY_BITS 11
#define RECENT_BITS 14
#define AHEAD 32		/* words to meet at once; memory is as far away as that */
#define BLOCK 128		/* states that a core takes at a time, at most */
#define SPREAD 4096		/* and states whose numbers it puts into another table */
#define ALONE(chunks) (((uint64_t)1 << (chunks)) - 1)	/* so many, after others in a row */
#define LARGE_PAGE ((size_t)2 << 20)
#define SPINS 2000		/* looks at whether there is work, before a thread sleeps */
#define PENDING ((uint32_t)1 << 31)	/* in a slot: where a word stands that has no number yet */

/* Keys of a fixed number of limbs, each once, numbered from 0 as they are met. */
struct pool {
	uint32_t width, count, room;
	uint32_t bits;		/* of the number of slots; none yet: 0 */
	limb *keys;
	uint32_t *slots;
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
	limb *recent;		/* words that steps lately led to: met, or listed before */
	limb *ahead;		/* those to be met or listed, in this order */
	uint32_t nr_ahead;
	int is_unpacked;	/* the state at hand, into `now` */
	int64_t code;		/* of the rule that a step breaks */
	struct levels *all;
	pthread_t thread;
	int is_apart;		/* in that thread; the caller's does what else there is */
	uint64_t rounds;	/* of the team, when it began */
	pthread_mutex_t at_work;	/* others don't change what it looks at */
};

/* A state that one thread goes on with: what others have found out, and where the rest goes. */
struct gap {
	uint32_t state, index, at;
	uint32_t own;		/* transitions of this state so far */
	uint64_t before;	/* and of those before it in the block */
	int stuck;
};

struct block {
	uint32_t first, count;	/* of what its states lead to, in the lists */
	uint32_t first_gap, gaps;
	uint32_t number;	/* of the first new state among them */
	uint64_t transitions;
};

enum { GONE, LED_TO };

/* States that all cores explore at once. */
struct chunk {
	uint32_t base, size;	/* places of its words in the order of meeting */
	uint64_t first;		/* number of its first state */
	uint32_t states, room, blocks, of_block;
	uint32_t taken;		/* blocks that a core has begun with */
	struct block *block;
	struct gap *gap;
	limb *words;		/* what steps lead to, and for each */
	uint32_t *slot;		/* where it goes in the table */
	uint8_t *kind;		/* and whether it does */
	uint32_t block_at, gap_at;	/* the gap at hand, and whether it is begun */
	int is_begun, is_explored;
	uint32_t put;		/* where its next word goes */
};

/* The threads of all cores but the caller's. */
struct team {
	pthread_mutex_t lock;
	pthread_cond_t begun, done;
	pid_t process;		/* they are in this one */
	uint64_t rounds;	/* pieces that were begun with */
	uint32_t busy;		/* cores that are not done with the last */
	void (*piece)(struct core *);	/* what they do until `wait_for_each`; NULL: end */
	uint32_t taken;		/* parts of it that a core has begun with */
	int is_at_work;
	int pauses, is_held;	/* to let the caller's core change what they look at */
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
	struct pool states, stores;
	limb *changes;
	uint8_t *stores_change;
	uint32_t nr_changes, changes_room;
	uint32_t cores;
	uint32_t wide;		/* so many states are worth threads */
	struct core *core;
	struct team team;
	struct chunk chunks[2];
	struct chunk *chunk, *next;	/* the one at hand, and the one that is begun with */
	uint32_t explored;	/* which one cores explore */
	uint64_t alone_until;	/* chunks had so many gaps that one core goes on */
	uint32_t in_a_row;	/* such chunks, 3 at most */
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

/* Get slots for `spread` to put numbers in; many come in large pages, if the kernel has some. */
static int has_slots(struct pool *pool, uint32_t bits)
{
	const size_t size = sizeof(uint32_t) << bits;
	void *slots;

	free(pool->slots);
	pool->slots = NULL;
	pool->bits = 0;
	if (posix_memalign(&slots, size < LARGE_PAGE ? sizeof(limb) : LARGE_PAGE, size))
		return 0;
	if (size >= LARGE_PAGE)
		madvise(slots, size, MADV_HUGEPAGE);
	pool->slots = slots;
	pool->bits = bits;
	return 1;
}

/* Put the numbers from `first` up to `end` into slots; with other cores, which put others in. */
static inline void put_in(const struct pool *pool, uint64_t first, uint64_t end, int is_shared)
{
	limb last = ((limb)1 << pool->bits) - 1, slot[AHEAD];
	uint32_t width = pool->width;

	while (first < end) {
		uint32_t many = end - first < AHEAD ? end - first : AHEAD;

		for (uint32_t i = 0; i < many; i++) {
			slot[i] = hash(pool->keys + (first + i) * width, width) >> (64 - pool->bits);
			__builtin_prefetch(pool->slots + slot[i], 1);
		}
		for (uint32_t i = 0; i < many; i++, first++)
			for (limb at = slot[i];; at = (at + 1) & last) {
				uint32_t none = NONE;

				if (!is_shared && pool->slots[at] == NONE) {
					pool->slots[at] = first;
					break;
				}
				if (is_shared &&
				    __atomic_compare_exchange_n(pool->slots + at, &none, first, 0,
								__ATOMIC_RELAXED, __ATOMIC_RELAXED))
					break;
			}
	}
}

static int spread(struct pool *pool, uint32_t bits)
{
	if (!has_slots(pool, bits))
		return 0;
	memset(pool->slots, 0xff, sizeof(uint32_t) << bits);
	put_in(pool, 0, pool->count, 0);
	return 1;
}

static uint32_t bits_for(const struct pool *pool, uint64_t count)
{
	uint32_t bits = pool->bits ? pool->bits : 4;

	while (count * 3 > (uint64_t)2 << bits)
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
	uint32_t bits = bits_for(pool, count);

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
void levels_settle(struct levels *all);

/* Forget what a task was lately seen to do. */
static void forget_lately(const struct levels *all, uint32_t index)
{
	const size_t size = sizeof(struct lately) << LATELY_BITS;

	for (struct core *core = all->core; core < all->core + all->cores; core++)
		if (core->lately)
			memset(core->lately + ((size_t)index << LATELY_BITS), 0xff, size);
}

/* Forget what steps do: it is asked again. */
void levels_forget(struct levels *all)
{
	levels_settle(all);
	for (uint32_t index = 0; index < all->tasks; index++) {
		struct task *task = all->task + index;

		for (uint32_t at = 0; at < task->room; at++)
			forget_row(task->rows + at);
		forget_lately(all, index);
	}
	all->nr_changes = 0;
}

static void forget_chunk(struct chunk *chunk)
{
	free(chunk->block);
	free(chunk->gap);
	free(chunk->words);
	free(chunk->slot);
	free(chunk->kind);
	memset(chunk, 0, sizeof(*chunk));
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
		free(all->core[i].lately);
		free(all->core[i].recent);
		free(all->core[i].ahead);
	}
	free(all->core);
	for (struct chunk *chunk = all->chunks; chunk < all->chunks + 2; chunk++)
		forget_chunk(chunk);
	free(all->task);
	empty(&all->states);
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
	size_t size = (all->tasks * sizeof(*core->lately)) << LATELY_BITS;

	core->lately = malloc(size);
	core->recent = malloc(sizeof(limb) << RECENT_BITS);
	core->ahead = malloc(sizeof(limb) * (AHEAD + all->tasks));
	if (!core->lately || !core->recent || !core->ahead)
		return 0;
	memset(core->lately, 0xff, size);
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
			  uint32_t wide)
{
	struct levels *all = calloc(1, sizeof(*all));

	if (!all)
		return NULL;
	all->tasks = tasks;
	all->cores = cores;
	all->wide = wide;
	all->task = calloc(tasks, sizeof(*all->task));
	all->core = calloc(cores, sizeof(*all->core));
	if (!all->task || !all->core || !has_limbs(all, limbs) || !has_memory(all, all->core)) {
		levels_free(all);
		return NULL;
	}
	for (uint32_t i = 0; i < cores; i++)
		all->core[i].all = all;
	all->states.width = 1;
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

/* Give positions other widths in all states. The step that was asked for is asked again. */
int levels_lay_out(struct levels *all, const uint32_t *widths)
{
	uint32_t low = all->low;
	struct task *old = malloc(sizeof(*old) * all->tasks);

	if (!old)
		return NO_MEMORY;
	levels_forget(all);
	memcpy(old, all->task, sizeof(*old) * all->tasks);
	lay_out(all, widths);
	for (uint32_t at = 0; at < all->states.count; at++) {
		limb word = all->states.keys[at];
		limb moved = (word >> low) << all->low;

		for (uint32_t index = 0; index < all->tasks; index++) {
			limb mask = ((limb)1 << old[index].width) - 1;

			moved |= (word >> old[index].shift & mask) << all->task[index].shift;
		}
		all->states.keys[at] = moved;
	}
	free(old);
	forget_recent(all);
	return !all->states.bits || spread(&all->states, all->states.bits) ? DONE : NO_MEMORY;
}

/* Give the store more limbs. All steps are asked for again. */
int levels_widen(struct levels *all, uint32_t limbs)
{
	uint32_t before = all->limbs - 1, width = limbs - 1;
	struct pool *stores = &all->stores;
	limb *keys = calloc(stores->room * (size_t)width + 1, sizeof(limb));

	levels_settle(all);
	if (!keys || !has_limbs(all, limbs)) {
		free(keys);
		return NO_MEMORY;
	}
	for (uint32_t at = 0; at < stores->count; at++)
		memcpy(keys + (size_t)at * width, stores->keys + (size_t)at * before,
		       sizeof(limb) * before);
	free(stores->keys);
	stores->keys = keys;
	stores->width = width;
	levels_forget(all);
	free(all->changes);
	free(all->stores_change);
	all->changes = NULL;
	all->stores_change = NULL;
	all->changes_room = 0;
	if (stores->bits && !spread(stores, stores->bits))
		return NO_MEMORY;
	if (all->seen.at < all->states.count)
		unpack(all, all->states.keys[all->seen.at], all->seen.now);
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
		if (number(&all->states, &word, 1) == NONE)
			return NO_MEMORY;
	}
	all->seen.met = all->states.count;
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
		if (row->known) {
			levels_settle(all);
			forget_lately(all, all->seen.index);
		}
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

/*
 * Remember what the step that was asked for does: `code` if that is not positive, else `change`, as
 * old XOR new state. `mask` has the bits that it looks at.
 */
int levels_learn(struct levels *all, const limb *mask, int64_t code, const limb *change)
{
	int failed;

	hold_others(all);
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

/* Keep those words from `first` on that steps have not led to lately; fetch their slots. */
static inline void keep_fresh(const struct levels *all, struct core *core, uint32_t first)
{
	for (uint32_t i = first; i < core->nr_ahead; i++) {
		limb word = core->ahead[i], mixed = hash(&word, 1);
		limb *recent = core->recent + (mixed & ((1 << RECENT_BITS) - 1));

		__builtin_prefetch(all->states.slots + (mixed >> (64 - all->states.bits)));
		core->ahead[first] = word;
		first += *recent != word;
		*recent = word;
	}
	core->nr_ahead = first;
}

/*
 * Put what the tasks from `*index` on lead to behind `ahead`; `*can` of them can go on. Returns an
 * event of the task `*index`, or DONE.
 */
static inline int expand(struct levels *all, struct core *core, limb word, uint32_t *index,
			 uint32_t *can, int may_number)
{
	uint32_t last = core->nr_ahead;
	limb change = 0;

	core->is_unpacked = 0;
	for (*can = 0; *index < all->tasks; ++*index) {
		change = look_up(all, core, word, *index, may_number);
		if (change > ODD)
			break;
		*can += change != 0;
		core->ahead[last] = word ^ change;
		last += change - 1 < ODD - 1;
	}
	core->nr_ahead = last;
	return change > ODD ? (int)(change & ~ODD) : DONE;
}

/* Have the keys come from memory that stand in the slots of the words ahead. */
static inline void fetch_keys(const struct levels *all, const struct core *core)
{
	const struct pool *states = &all->states;

	for (uint32_t i = 0; i < core->nr_ahead; i++) {
		limb slot = hash(core->ahead + i, 1) >> (64 - states->bits);
		uint32_t number = __atomic_load_n(states->slots + slot, __ATOMIC_RELAXED);

		__builtin_prefetch(states->keys + (number & PENDING ? 0 : number));
	}
}

/* Meet the states that steps have led to. By now their slots have come from memory. */
static int meet(struct levels *all)
{
	struct core *core = all->core;
	struct pool *states = &all->states;

	if (!has_room(states, core->nr_ahead))
		return NO_MEMORY;
	fetch_keys(all, core);
	for (uint32_t i = 0; i < core->nr_ahead; i++) {
		uint32_t *slot = slot_of(states, core->ahead + i, 1);

		if (*slot != NONE)
			continue;
		states->keys[states->count] = core->ahead[i];
		*slot = states->count++;
	}
	core->nr_ahead = 0;
	return DONE;
}

static struct chunk *chunk_of(struct levels *all, uint32_t place)
{
	return all->chunks + (place - all->chunks->base >= all->chunks->size);
}

static inline limb word_of(struct levels *all, uint32_t value)
{
	const struct chunk *chunk;

	if (!(value & PENDING))
		return all->states.keys[value];
	value -= PENDING;
	chunk = chunk_of(all, value);
	return chunk->words[value - chunk->base];
}

/* List a word that was not met before, or later than here; return where the next one goes. */
static uint32_t list(struct levels *all, struct chunk *chunk, limb word, uint32_t at)
{
	limb last = ((limb)1 << all->states.bits) - 1;
	limb slot = hash(&word, 1) >> (64 - all->states.bits);
	uint32_t mine = PENDING + chunk->base + at;

	for (;; slot = (slot + 1) & last) {
		uint32_t *there = all->states.slots + slot;
		uint32_t value = __atomic_load_n(there, __ATOMIC_ACQUIRE);

		while (value == NONE || word_of(all, value) == word) {
			if (value < mine)
				return at;	/* numbers are less than PENDING */
			chunk->words[at] = word;
			chunk->slot[at] = slot;
			chunk->kind[at] = LED_TO;
			if (!__atomic_compare_exchange_n(there, &value, mine, 0, __ATOMIC_ACQ_REL,
							 __ATOMIC_ACQUIRE))
				continue;
			if (value != NONE) {
				struct chunk *other = chunk_of(all, value - PENDING);

				other->kind[value - PENDING - other->base] = GONE;
			}
			return at + 1;
		}
	}
}

/* List what steps have led to; return where the next word goes. */
static uint32_t list_all(struct levels *all, struct core *core, struct chunk *chunk, uint32_t at)
{
	fetch_keys(all, core);
	for (uint32_t i = 0; i < core->nr_ahead; i++)
		at = list(all, chunk, core->ahead[i], at);
	core->nr_ahead = 0;
	return at;
}

/*
 * Go on up to `until`; all words that steps led to are met or listed then. In a gap of a chunk all
 * are listed, since those led to lately may be of later states.
 */
static int go(struct levels *all, uint64_t until)
{
	struct core *core = all->core;
	struct chunk *chunk = all->chunk;
	int event = DONE;

	while (all->seen.at < until && !event) {
		limb word = all->states.keys[all->seen.at];
		uint32_t index = all->seen.index, first = core->nr_ahead, can;

		event = expand(all, core, word, &index, &can, 1);
		if (event == BREAKS) {
			all->seen.code = core->code;
			index++;
			can++;
		}
		all->transitions += can;
		all->stuck &= !can;
		if (chunk) {
			chunk->put = list_all(all, core, chunk, chunk->put);
		} else {
			keep_fresh(all, core, first);
			if (core->nr_ahead >= AHEAD && meet(all))
				return NO_MEMORY;
		}
		if (!event) {
			all->seen.at++;
			index = 0;
			all->seen.before = all->transitions;
			event = all->stuck ? STUCK : DONE;
			all->stuck = 1;
		}
		all->seen.index = index;
		if (event)
			unpack_once(all, core, word);
	}
	return core->nr_ahead && meet(all) ? NO_MEMORY : event;
}

static inline void wait_a_moment(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

/* A thread: do its part of each piece. */
static void *work(void *at)
{
	struct core *core = at;
	struct team *team = &core->all->team;
	uint64_t rounds = core->rounds;

	for (;; rounds++) {
		for (int i = 0; i < SPINS; i++) {
			if (__atomic_load_n(&team->rounds, __ATOMIC_ACQUIRE) != rounds)
				break;
			wait_a_moment();
		}
		if (__atomic_load_n(&team->rounds, __ATOMIC_ACQUIRE) == rounds) {
			pthread_mutex_lock(&team->lock);
			while (team->rounds == rounds)
				pthread_cond_wait(&team->begun, &team->lock);
			pthread_mutex_unlock(&team->lock);
		}
		if (!team->piece)
			return NULL;
		pthread_mutex_lock(&core->at_work);
		team->piece(core);
		pthread_mutex_unlock(&core->at_work);
		if (__atomic_sub_fetch(&team->busy, 1, __ATOMIC_ACQ_REL))
			continue;
		pthread_mutex_lock(&team->lock);
		pthread_cond_signal(&team->done);
		pthread_mutex_unlock(&team->lock);
	}
}

/* Have the threads of all cores wait for work. Signals are for the caller's thread. */
static void begin_threads(struct levels *all)
{
	struct team *team = &all->team;
	sigset_t every, before;

	if (team->process)
		return;
	pthread_mutex_init(&team->lock, NULL);
	pthread_cond_init(&team->begun, NULL);
	pthread_cond_init(&team->done, NULL);
	team->process = getpid();
	sigfillset(&every);
	pthread_sigmask(SIG_SETMASK, &every, &before);
	for (struct core *core = all->core + 1; core < all->core + all->cores; core++) {
		if (!has_memory(all, core))
			continue;
		pthread_mutex_init(&core->at_work, NULL);
		core->rounds = team->rounds;
		core->is_apart = !pthread_create(&core->thread, NULL, work, core);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Have the threads begin with a piece, which cores take parts of until there are no more. */
static void begin_each(struct levels *all, void (*piece)(struct core *))
{
	struct team *team = &all->team;

	team->piece = piece;
	team->taken = 0;
	team->busy = 0;
	for (uint32_t i = 0; i < all->cores; i++)
		team->busy += all->core[i].is_apart;
	team->is_at_work = 1;
	pthread_mutex_lock(&team->lock);
	__atomic_store_n(&team->rounds, team->rounds + 1, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&team->begun);
	pthread_mutex_unlock(&team->lock);
}

/* Take parts as well; return once all are done. */
static void wait_for_each(struct levels *all)
{
	struct team *team = &all->team;

	if (!team->is_at_work)
		return;
	team->piece(all->core);
	for (int i = 0; i < SPINS && __atomic_load_n(&team->busy, __ATOMIC_ACQUIRE); i++)
		wait_a_moment();
	if (__atomic_load_n(&team->busy, __ATOMIC_ACQUIRE)) {
		pthread_mutex_lock(&team->lock);
		while (__atomic_load_n(&team->busy, __ATOMIC_ACQUIRE))
			pthread_cond_wait(&team->done, &team->lock);
		pthread_mutex_unlock(&team->lock);
	}
	team->is_at_work = 0;
}

static void each(struct levels *all, void (*piece)(struct core *))
{
	begin_each(all, piece);
	wait_for_each(all);
}

/* Take a part of what all cores do. */
static inline uint32_t take(struct levels *all)
{
	return __atomic_fetch_add(&all->team.taken, 1, __ATOMIC_RELAXED);
}

/* Let no other core go on until `let_go`. */
static void hold_others(struct levels *all)
{
	if (!all->team.is_at_work || all->team.is_held)
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
	all->team.is_held = 1;
}

static void let_go(struct levels *all)
{
	if (!all->team.is_held)
		return;
	all->team.is_held = 0;
	__atomic_store_n(&all->team.pauses, 0, __ATOMIC_RELAXED);
	for (struct core *core = all->core; core < all->core + all->cores; core++)
		if (core->is_apart)
			pthread_mutex_unlock(&core->at_work);
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

/* Have cores take no more of the blocks that they explore, and wait until those begun are done. */
static void stop_exploring(struct levels *all)
{
	let_go(all);
	__atomic_store_n(&all->team.taken, PENDING, __ATOMIC_RELAXED);
	wait_for_each(all);
}

static void end_threads(struct levels *all)
{
	struct team *team = &all->team;

	if (!team->process || team->process != getpid())
		return;		/* a forked process has none of them */
	stop_exploring(all);
	begin_each(all, NULL);
	for (struct core *core = all->core; core < all->core + all->cores; core++)
		if (core->is_apart) {
			pthread_join(core->thread, NULL);
			pthread_mutex_destroy(&core->at_work);
		}
	pthread_mutex_destroy(&team->lock);
	pthread_cond_destroy(&team->begun);
	pthread_cond_destroy(&team->done);
}

static void clear_slots(struct core *core)
{
	const struct pool *states = &core->all->states;
	limb slots = (limb)1 << states->bits, first;

	while ((first = (limb)take(core->all) * 16 * SPREAD) < slots) {
		limb count = slots - first < 16 * SPREAD ? slots - first : 16 * SPREAD;

		memset(states->slots + first, 0xff, sizeof(uint32_t) * count);
	}
}

static void put_into_slots(struct core *core)
{
	const struct pool *states = &core->all->states;
	uint64_t first;

	while ((first = (uint64_t)take(core->all) * SPREAD) < states->count)
		put_in(states, first,
		       first + SPREAD < states->count ? first + SPREAD : states->count, 1);
}

/* As `spread`, by all cores, with the words of the chunk at hand. */
static int spread_states(struct levels *all, uint32_t bits)
{
	struct pool *states = &all->states;
	struct chunk *chunk = all->chunk;

	if (!has_slots(states, bits))
		return 0;
	each(all, clear_slots);
	each(all, put_into_slots);
	for (uint32_t i = 0; chunk && i < chunk->blocks; i++) {
		const struct block *block = chunk->block + i;

		for (uint32_t at = block->first; at < block->first + block->count; at++)
			if (chunk->kind[at] == LED_TO) {
				limb slot = hash(chunk->words + at, 1) >> (64 - bits);

				while (states->slots[slot] != NONE)
					slot = (slot + 1) & (((limb)1 << bits) - 1);
				states->slots[slot] = PENDING + chunk->base + at;
				chunk->slot[at] = slot;
			}
	}
	return 1;
}

static void explore_block(struct core *core, struct chunk *chunk, uint32_t number)
{
	struct levels *all = core->all;
	struct block *block = chunk->block + number;
	uint32_t state = number * chunk->of_block, end = state + chunk->of_block;
	uint32_t at = state * all->tasks;

	if (end > chunk->states)
		end = chunk->states;
	block->first = at;
	block->first_gap = state;
	for (; state < end; state++) {
		limb word = all->states.keys[chunk->first + state];
		uint32_t index = 0, first = core->nr_ahead, can;
		int event;

		give_way(core);
		event = expand(all, core, word, &index, &can, 0);
		keep_fresh(all, core, first);
		if (core->nr_ahead >= AHEAD || event || !can)
			at = list_all(all, core, chunk, at);
		if (!event && can) {
			block->transitions += can;
			continue;
		}
		chunk->gap[block->first_gap + block->gaps++] = (struct gap){
			.state = state, .index = index, .at = at, .own = can,
			.before = block->transitions, .stuck = !can,
		};
		for (; index < all->tasks; index++, at++)
			chunk->kind[at] = GONE;
	}
	block->count = list_all(all, core, chunk, at) - block->first;
}

static void explore_blocks(struct core *core)
{
	struct levels *all = core->all;
	struct chunk *chunk = all->chunks + all->explored;
	uint32_t number;

	while ((number = take(all)) < chunk->blocks)
		explore_block(core, chunk, number);
}

/* Give a new word its number. */
static inline void put_number(struct levels *all, const struct chunk *chunk, uint32_t at,
			      uint32_t number)
{
	all->states.keys[number] = chunk->words[at];
	__atomic_store_n(all->states.slots + chunk->slot[at], number, __ATOMIC_RELEASE);
}

static void number_block(struct levels *all, const struct chunk *chunk, const struct block *block)
{
	uint32_t number = block->number;

	for (uint32_t at = block->first; at < block->first + block->count; at++)
		if (chunk->kind[at] == LED_TO)
			put_number(all, chunk, at, number++);
}

static void number_blocks(struct core *core)
{
	const struct chunk *chunk = core->all->chunk;
	uint32_t i;

	while ((i = take(core->all)) < chunk->blocks)
		number_block(core->all, chunk, chunk->block + i);
}

/* Number new words in the order of meeting. */
static void close_chunk(struct levels *all)
{
	struct chunk *chunk = all->chunk;
	uint32_t number = all->states.count;

	for (uint32_t i = 0; i < chunk->blocks; i++) {
		struct block *block = chunk->block + i;

		block->number = number;
		for (uint32_t at = block->first; at < block->first + block->count; at++)
			number += chunk->kind[at] == LED_TO;
		all->transitions += block->transitions;
	}
	if (all->next)
		for (uint32_t i = 0; i < chunk->blocks; i++)
			number_block(all, chunk, chunk->block + i);
	else
		each(all, number_blocks);
	all->states.count = number;
	all->seen.at = chunk->first + chunk->states;
	all->seen.before = all->transitions;
	all->chunk = all->next;
	all->next = NULL;
}

/* Take a word that has no number out of the table; those behind it move up. */
static void take_out(struct levels *all, limb slot)
{
	uint32_t *slots = all->states.slots;
	limb last = ((limb)1 << all->states.bits) - 1, behind = slot;

	for (;;) {
		uint32_t value;
		limb word, home;

		behind = (behind + 1) & last;
		value = slots[behind];
		if (value == NONE)
			break;
		word = word_of(all, value);
		home = hash(&word, 1) >> (64 - all->states.bits);
		if (((behind - home) & last) < ((behind - slot) & last))
			continue;
		slots[slot] = value;
		if (value & PENDING) {
			struct chunk *chunk = chunk_of(all, value - PENDING);

			chunk->slot[value - PENDING - chunk->base] = slot;
		}
		slot = behind;
	}
	slots[slot] = NONE;
}

/* Forget what a chunk's states from a place on lead to. */
static void forget_words(struct levels *all, struct chunk *chunk, uint32_t from)
{
	for (uint32_t i = 0; all->states.slots && i < chunk->blocks; i++) {
		const struct block *block = chunk->block + i;

		for (uint32_t at = block->first; at < block->first + block->count; at++)
			if (at >= from && chunk->kind[at] == LED_TO)
				take_out(all, chunk->slot[at]);
	}
}

/* Number what the states before the gap at hand lead to; return where the rest begins. */
static uint32_t settle_first(struct levels *all, struct chunk *chunk)
{
	const struct gap *gap = chunk->gap + chunk->block[chunk->block_at].first_gap + chunk->gap_at;
	uint32_t end = gap->at + all->tasks - gap->index;
	uint64_t transitions = gap->before;

	for (uint32_t i = 0; i <= chunk->block_at; i++) {
		const struct block *block = chunk->block + i;
		uint32_t last = i == chunk->block_at ? end : block->first + block->count;

		for (uint32_t at = block->first; at < last; at++)
			if (chunk->kind[at] == LED_TO)
				put_number(all, chunk, at, all->states.count++);
		if (i < chunk->block_at)
			transitions += block->transitions;
	}
	all->transitions += transitions;
	all->seen.before += transitions;
	all->seen.met = all->states.count;
	return end;
}

/*
 * Meet what the states before the one at hand lead to, if a chunk is open. The states after it are
 * explored once more.
 */
void levels_settle(struct levels *all)
{
	struct chunk *chunk = all->chunk;

	if (!chunk)
		return;
	stop_exploring(all);
	if (all->states.slots)
		forget_words(all, chunk, chunk->is_begun ? settle_first(all, chunk) : 0);
	if (all->next)
		forget_words(all, all->next, 0);
	all->chunk = all->next = NULL;
	forget_recent(all);
}

/* Go on with the states that need one thread. */
static int fill_gaps(struct levels *all)
{
	struct chunk *chunk = all->chunk;

	for (; chunk->block_at < chunk->blocks; chunk->block_at++, chunk->gap_at = 0) {
		const struct block *block = chunk->block + chunk->block_at;

		for (; chunk->gap_at < block->gaps; chunk->gap_at++) {
			const struct gap *gap = chunk->gap + block->first_gap + chunk->gap_at;
			uint64_t state = chunk->first + gap->state;
			int event;

			if (!chunk->is_begun) {
				all->seen.at = state;
				all->seen.index = gap->index;
				all->stuck = gap->stuck;
				all->transitions += gap->own;
				chunk->put = gap->at;
				chunk->is_begun = 1;
			}
			event = go(all, state + 1);
			if (event)
				return event;
			chunk->is_begun = 0;
		}
	}
	return DONE;
}

static int has_chunk(struct chunk *chunk, uint32_t states, uint32_t tasks)
{
	size_t room = (size_t)states * tasks;

	if (states <= chunk->room)
		return 1;
	forget_chunk(chunk);
	chunk->block = malloc(sizeof(*chunk->block) * states);
	chunk->gap = malloc(sizeof(*chunk->gap) * states);
	chunk->words = malloc(sizeof(*chunk->words) * room);
	chunk->slot = malloc(sizeof(*chunk->slot) * room);
	chunk->kind = malloc(room);
	if (!chunk->block || !chunk->gap || !chunk->words || !chunk->slot || !chunk->kind)
		return 0;
	chunk->room = states;
	return 1;
}

/* Have the threads explore the states from `first` up to `until`. */
static int open_chunk(struct levels *all, uint64_t first, uint64_t until)
{
	const struct chunk *before = all->chunk;
	uint32_t states = until - first, is_second = before == all->chunks;
	struct chunk *chunk = all->chunks + is_second;
	uint64_t most = all->states.count + (until - (before ? before->first : first)) * all->tasks;
	uint32_t bits = bits_for(&all->states, most);

	begin_threads(all);
	if (!has_chunk(chunk, states, all->tasks) || !holds(&all->states, most) ||
	    (bits != all->states.bits && !spread_states(all, bits)))
		return NO_MEMORY;
	chunk->base = before ? before->base + before->size : 0;
	chunk->size = states * all->tasks;
	chunk->first = first;
	chunk->states = states;
	chunk->of_block = states / (16 * all->cores) + 1;
	if (chunk->of_block > BLOCK)
		chunk->of_block = BLOCK;
	chunk->blocks = (states + chunk->of_block - 1) / chunk->of_block;
	memset(chunk->block, 0, sizeof(*chunk->block) * chunk->blocks);
	chunk->block_at = chunk->gap_at = 0;
	chunk->is_begun = chunk->is_explored = 0;
	*(before ? &all->next : &all->chunk) = chunk;
	all->explored = is_second;
	begin_each(all, explore_blocks);
	return DONE;
}

/* Return whether threads are worth it, and slots and numbers are wide enough for a chunk. */
static int is_for_all_cores(const struct levels *all, uint64_t first, uint64_t until)
{
	uint64_t most = all->states.count + (until - all->seen.at) * all->tasks;
	uint64_t place = all->chunk ? (uint64_t)all->chunk->base + all->chunk->size : 0;

	return all->cores > 1 && until >= first + all->wide && first >= all->alone_until &&
	       most < PENDING && bits_for(&all->states, most) <= 32 &&
	       place + (until - first) * all->tasks < PENDING - 1 &&
	       (!all->team.process || all->team.process == getpid());
}

/* Return where a chunk from `first` on ends: of states up to `until` it gets an even part. */
static uint64_t end_of_chunk(const struct levels *all, uint64_t first, uint64_t until)
{
	uint64_t most = 3 * (uint64_t)all->wide, left = until - first;
	uint64_t parts = (left + most - 1) / most;

	return parts ? first + (left + parts - 1) / parts : until;
}

/* Wait until the chunk at hand is explored, and begin with the next, if that is worth it. */
static int finish_exploring(struct levels *all, uint64_t until, uint64_t next)
{
	struct chunk *chunk = all->chunk;
	uint64_t end = chunk->first + chunk->states;
	uint32_t gaps = 0;

	wait_for_each(all);
	chunk->is_explored = 1;
	for (uint32_t i = 0; i < chunk->blocks; i++)
		gaps += chunk->block[i].gaps;
	if ((uint64_t)gaps * 4 > chunk->states) {
		all->alone_until = end + ALONE(all->in_a_row) * chunk->states;
		all->in_a_row += all->in_a_row < 3;
		return DONE;
	}
	all->in_a_row = 0;
	if (end < until)
		next = until;
	else if (next > all->states.count)
		next = all->states.count;
	next = end_of_chunk(all, end, next);
	return is_for_all_cores(all, end, next) ? open_chunk(all, end, next) : DONE;
}

static int go_some(struct levels *all, uint64_t until, uint64_t next)
{
	int event = DONE;

	if (all->chunk) {
		if (!all->chunk->is_explored)
			event = finish_exploring(all, until, next);
		if (event)
			return event;
		event = fill_gaps(all);
		if (!event)
			close_chunk(all);
		return event;
	}
	if (all->seen.index)
		return go(all, all->seen.at + 1);
	until = end_of_chunk(all, all->seen.at, until);
	return is_for_all_cores(all, all->seen.at, until) ? open_chunk(all, all->seen.at, until) :
							    go(all, until);
}

/* Have the other cores begin with the states up to `until`, which `levels_go` goes on with. */
int levels_ahead(struct levels *all, uint64_t until)
{
	until = end_of_chunk(all, all->seen.at, until);
	if (all->chunk || !is_for_all_cores(all, all->seen.at, until))
		return DONE;
	return open_chunk(all, all->seen.at, until);
}

/*
 * Explore the states from where it stopped up to `until`. DONE: all; ASK: what the task `index`
 * does in the state at hand; BREAKS: it breaks the rule `code`; STUCK: nobody can go on there.
 * From `until` up to `next` is what the next call will be for, as far as there are such states by
 * then; those that have been met may be begun with.
 */
int levels_go(struct levels *all, uint64_t until, uint64_t next)
{
	int event;

	do
		event = go_some(all, until, next);
	while (!event && all->seen.at < until);
	all->seen.met = all->states.count;
	all->seen.stores = all->stores.count;
	return event;
}

/* Write states down, those with the numbers `first` to `last` - 1, one after another. */
void levels_show(const struct levels *all, uint64_t first, uint64_t last, limb *states)
{
	for (; first < last; first++, states += all->limbs)
		unpack(all, all->states.keys[first], states);
}

/* Return how many bytes more this takes at most while `more` states are met. */
uint64_t levels_bytes_to_come(const struct levels *all, uint64_t more)
{
	const struct pool *pools[] = { &all->states, &all->stores };
	uint64_t chunks = all->cores > 1 ? 2 : 1, bytes = 0;

	more *= chunks;		/* the second is begun with while the first is at hand */

	for (int i = 0; i < 2; i++) {
		uint32_t bits = bits_for(pools[i], pools[i]->count + more);

		bytes += more * pools[i]->width * sizeof(limb);
		if (bits > pools[i]->bits)
			bytes += sizeof(uint32_t) << bits;
	}
	if (all->cores > 1 && !all->chunks[1].room) {
		bytes += more * (sizeof(limb) + sizeof(uint32_t) + 1);
		bytes += more / all->tasks * (sizeof(struct gap) + sizeof(struct block));
		bytes += (uint64_t)(all->cores - 1) * all->tasks * sizeof(struct lately) << LATELY_BITS;
	}
	return bytes;
}
