/*
 * Levels of a breadth-first search: which states were met, and what steps do in them.
 *
 * A state is a word: the positions of the tasks in its low bits, above them the number of what the
 * store holds. What a step does is remembered by those limbs of the state that it looks at. What is
 * not remembered is asked of the caller, in the order in which the states need it; so are
 * violations, and states in which nobody can go on.
 *
 * compiled_levels.py is the caller and says what must hold.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t limb;

enum { DONE, ASK, BREAKS, STUCK, FULL, NO_MEMORY, ASIDE };

#define NONE UINT32_MAX
#define STAYS (-((int64_t)1 << 62))
#define LATELY_BITS 12
#define AHEAD 16

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
	limb at;		/* the word under the task's mask */
	limb change;		/* old XOR new word, where it goes on */
	int64_t does;
	uint64_t since;		/* it holds if this is the task's */
};

struct task {
	uint32_t shift, width, room;
	limb mask;		/* its position, and the number */
	uint64_t since;		/* how often what it did lately was forgotten, from 1 on */
	struct row *rows;
	struct lately *lately;
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
	limb *after, *key;
	uint64_t transitions;
	int stuck;
	limb ahead[AHEAD];	/* states that steps lead to, to be met in this order */
	uint32_t nr_ahead;
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
	free(pool->slots);
	pool->slots = malloc(sizeof(uint32_t) << bits);
	pool->bits = pool->slots ? bits : 0;
	if (!pool->slots)
		return 0;
	memset(pool->slots, 0xff, sizeof(uint32_t) << bits);
	for (uint32_t number = 0; number < pool->count; number++)
		*slot_of(pool, pool->keys + (size_t)number * pool->width, pool->width) = number;
	return 1;
}

static uint32_t bits_for(const struct pool *pool, uint64_t count)
{
	uint32_t bits = pool->bits ? pool->bits : 4;

	while (count * 3 > (uint64_t)2 << bits)
		bits++;
	return bits;
}

static int has_room(struct pool *pool)
{
	uint32_t bits = bits_for(pool, (uint64_t)pool->count + 1);

	if (pool->count == pool->room) {
		uint32_t room = pool->room > NONE / 2 ? NONE : pool->room ? pool->room * 2 : 8;
		limb *keys = realloc(pool->keys, sizeof(limb) * (room * (size_t)pool->width + 1));

		if (!keys || room == pool->room)
			return 0;
		pool->keys = keys;
		pool->room = room;
	}
	return bits == pool->bits || spread(pool, bits);
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
	if (!has_room(pool))
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

/* Forget what steps do: it is asked again. */
void levels_forget(struct levels *all)
{
	for (uint32_t index = 0; index < all->tasks; index++) {
		struct task *task = all->task + index;

		for (uint32_t at = 0; at < task->room; at++)
			forget_row(task->rows + at);
		task->since++;
	}
	all->nr_changes = 0;
}

void levels_free(struct levels *all)
{
	if (!all)
		return;
	for (uint32_t index = 0; all->task && index < all->tasks; index++) {
		struct task *task = all->task + index;

		for (uint32_t at = 0; at < task->room; at++)
			forget_row(task->rows + at);
		free(task->rows);
		free(task->lately);
	}
	free(all->task);
	empty(&all->states);
	empty(&all->stores);
	free(all->changes);
	free(all->stores_change);
	free(all->seen.now);
	free(all->after);
	free(all->key);
	free(all);
}

static int has_limbs(struct levels *all, uint32_t limbs)
{
	limb **scratch[] = { &all->seen.now, &all->after, &all->key };

	for (int i = 0; i < 3; i++) {
		limb *more = realloc(*scratch[i], sizeof(limb) * limbs);

		if (!more)
			return 0;
		*scratch[i] = more;
	}
	all->limbs = limbs;
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

struct levels *levels_new(uint32_t tasks, uint32_t limbs, const uint32_t *widths)
{
	struct levels *all = calloc(1, sizeof(*all));

	if (!all)
		return NULL;
	all->tasks = tasks;
	all->task = calloc(tasks, sizeof(*all->task));
	if (!all->task || !has_limbs(all, limbs)) {
		levels_free(all);
		return NULL;
	}
	for (uint32_t index = 0; index < tasks; index++) {
		struct task *task = all->task + index;

		task->since = 1;
		task->lately = calloc((size_t)1 << LATELY_BITS, sizeof(*task->lately));
		if (!task->lately) {
			levels_free(all);
			return NULL;
		}
	}
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
	struct levels before = *all;
	struct task *old = malloc(sizeof(*old) * all->tasks);

	if (!old)
		return NO_MEMORY;
	memcpy(old, all->task, sizeof(*old) * all->tasks);
	lay_out(all, widths);
	levels_forget(all);
	for (uint32_t at = 0; at < all->states.count; at++) {
		limb word = all->states.keys[at];
		limb moved = (word >> before.low) << all->low;

		for (uint32_t index = 0; index < all->tasks; index++) {
			limb mask = ((limb)1 << old[index].width) - 1;

			moved |= (word >> old[index].shift & mask) << all->task[index].shift;
		}
		all->states.keys[at] = moved;
	}
	free(old);
	return !all->states.bits || spread(&all->states, all->states.bits) ? DONE : NO_MEMORY;
}

/* Give the store more limbs. All steps are asked for again. */
int levels_widen(struct levels *all, uint32_t limbs)
{
	uint32_t before = all->limbs - 1, width = limbs - 1;
	struct pool *stores = &all->stores;
	limb *keys = calloc(stores->room * (size_t)width + 1, sizeof(limb));

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
	return !((uint64_t)store >> (64 - all->low));
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

static void make_key(struct levels *all, const struct row *row)
{
	for (uint32_t i = 0; i < row->memo.width; i++)
		all->key[i] = all->seen.now[row->which[i]] & row->masks[i];
}

/* The task whose step was asked for has ended. */
int levels_ended(struct levels *all)
{
	struct row *row = row_now(all, all->seen.index);

	row->known = row->ended = 1;
	return DONE;
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

			all->key[i] = had ? key[old] : 0;
			old += had;
		}
		if (number(&wider.memo, all->key, wider.memo.width) == NONE) {
			forget_row(&wider);
			return NO_MEMORY;
		}
	}
	wider.does = row->does;
	wider.room = row->room;
	row->does = NULL;
	forget_row(row);
	*row = wider;
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

/*
 * Remember what the step that was asked for does: `code` if that is not positive, else `change`, as
 * old XOR new state. `mask` has the bits that it looks at.
 */
int levels_learn(struct levels *all, const limb *mask, int64_t code, const limb *change)
{
	struct row *row = row_now(all, all->seen.index);
	uint32_t at;

	if (!row->known || !is_masked_by(all, row, mask)) {
		if (row->known)
			all->task[all->seen.index].since++;
		if (!set_mask(all, row, mask))
			return NO_MEMORY;
	}
	if (code > 0) {
		code = new_change(all, change);
		if (!code)
			return NO_MEMORY;
	}
	make_key(all, row);
	at = number(&row->memo, all->key, row->memo.width);
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

/* Find out where a change leads from the state at hand: old XOR new word. */
static int change_of_word(struct levels *all, int64_t does, limb *changed)
{
	const limb *change = all->changes + (size_t)(does - 1) * all->limbs;
	limb word = all->states.keys[all->seen.at];
	uint32_t store;

	*changed = change[0];
	if (!all->stores_change[does - 1])
		return DONE;
	for (uint32_t i = 1; i < all->limbs; i++)
		all->after[i] = all->seen.now[i] ^ change[i];
	store = number(&all->stores, all->after + 1, all->limbs - 1);
	if (store == NONE)
		return NO_MEMORY;
	if (!numbers_fit(all, store))
		return FULL;
	*changed |= (word >> all->low ^ store) << all->low;
	return DONE;
}

/* Look up what the task at hand does in the state at hand. */
static int find_out(struct levels *all, struct lately *found)
{
	struct row *row = row_now(all, all->seen.index);
	uint32_t number;
	int failed = DONE;

	if (!row)
		return NO_MEMORY;
	found->change = 0;
	if (row->ended) {
		found->does = 0;
		return DONE;
	}
	if (!row->known)
		return ASK;
	make_key(all, row);
	number = row->memo.bits ? *slot_of(&row->memo, all->key, row->memo.width) : NONE;
	if (number == NONE)
		return ASK;
	found->does = row->does[number];
	if (found->does > 0)
		failed = change_of_word(all, found->does, &found->change);
	if (!failed && row->memo.width && !row->which[0])
		return ASIDE;	/* it goes by where others stand */
	return failed;
}

/* Meet the states that steps have led to. By now their slots have come from memory. */
static int meet(struct levels *all)
{
	uint32_t many = all->nr_ahead;

	all->nr_ahead = 0;
	for (uint32_t i = 0; i < many; i++)
		if (number(&all->states, all->ahead + i, 1) == NONE)
			return NO_MEMORY;
	return DONE;
}

static int meet_later(struct levels *all, limb word)
{
	const struct pool *states = &all->states;

	__builtin_prefetch(states->slots + (hash(&word, 1) >> (64 - states->bits)));
	all->ahead[all->nr_ahead++] = word;
	return all->nr_ahead == AHEAD ? meet(all) : DONE;
}

static int go(struct levels *all, uint64_t until)
{
	while (all->seen.at < until) {
		limb word = all->states.keys[all->seen.at];
		int is_unpacked = 0;

		for (; all->seen.index < all->tasks; all->seen.index++) {
			struct task *task = all->task + all->seen.index;
			limb at = word & task->mask;
			struct lately *lately = task->lately + (hash(&at, 1) >> (64 - LATELY_BITS));
			struct lately found = *lately;

			if (found.at != at || found.since != task->since) {
				int failed;

				if (!is_unpacked)
					unpack(all, word, all->seen.now);
				is_unpacked = 1;
				failed = find_out(all, &found);
				if (failed && failed != ASIDE)
					return failed;
				found.at = at;
				found.since = task->since;
				if (!failed)
					*lately = found;
			}
			if (!found.does)
				continue;
			if (found.does > 0 && meet_later(all, word ^ found.change))
				return NO_MEMORY;
			all->stuck = 0;
			all->transitions++;
			if (found.does < 0 && found.does != STAYS) {
				if (!is_unpacked)
					unpack(all, word, all->seen.now);
				all->seen.code = found.does;
				all->seen.index++;
				return BREAKS;
			}
		}
		all->seen.at++;
		all->seen.index = 0;
		all->seen.before = all->transitions;
		if (all->stuck) {
			if (!is_unpacked)
				unpack(all, word, all->seen.now);
			return STUCK;
		}
		all->stuck = 1;
	}
	return DONE;
}

/*
 * Explore the states from where it stopped up to `until`. DONE: all; ASK: what the task `index`
 * does in the state at hand; BREAKS: it breaks the rule `code`; STUCK: nobody can go on there.
 */
int levels_go(struct levels *all, uint64_t until)
{
	int event = go(all, until);

	if (meet(all))
		event = NO_MEMORY;
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
	uint64_t bytes = 0;

	for (int i = 0; i < 2; i++) {
		uint32_t bits = bits_for(pools[i], pools[i]->count + more);

		bytes += more * pools[i]->width * sizeof(limb);
		if (bits > pools[i]->bits)
			bytes += sizeof(uint32_t) << bits;
	}
	return bytes;
}
