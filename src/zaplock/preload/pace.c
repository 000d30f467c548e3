/* How much at a time: what zaplock/release/pace.py does, with the same figures.
 *
 * A piece holds a lock for about as long as it uses the CPU. The next one is as long as the last
 * one's cost allows for a third of the bound, and no longer than the bound allows if all its pages
 * are there, at the price of the dearest seen so far. A rest comes whenever some work was done: an
 * empty range, of which there are many and huge ones, costs no rests.
 */

#define SHARE 3
#define PAUSE_NS 50000
#define LEAST (256UL << 10)

static int64_t bound_ns = 5000000;

struct pace {
	size_t length;
	int64_t page_ns, since_rest_ns;
};

static struct pace new_pace(void)
{
	struct pace pace = { HUGE, 150, 0 };

	return pace;
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

static void learn(struct pace *pace, size_t length, int64_t took_ns)
{
	int64_t took = took_ns > 0 ? took_ns : 1;
	int64_t each = took * (int64_t)page / (int64_t)length;
	size_t allowed, unit;

	if (each > pace->page_ns)
		pace->page_ns = each;
	allowed = least(length / SHARE * bound_ns / took, bound_ns * page / pace->page_ns);
	allowed = least(allowed, 2 * pace->length);
	unit = allowed >= HUGE ? HUGE : LEAST;
	pace->length = allowed >= LEAST ? down(allowed, unit) : LEAST;
	pace->since_rest_ns += took;
}

/* Sleep, so that whoever waits gets the lock before the next piece. */
static void rest(struct pace *pace)
{
	struct timespec t = { 0, PAUSE_NS };

	if (pace->since_rest_ns < PAUSE_NS)
		return;
	kernel(SYS_nanosleep, (long)&t, 0, 0, 0, 0);
	pace->since_rest_ns = 0;
}

/* Give one advice on a range, by pieces; a hole (ENOMEM) is passed over and told at the end. */
static long by_pieces(uintptr_t start, uintptr_t end, int advice, struct pace *pace)
{
	long told = 0;

	while (start < end) {
		size_t length = up(pace->length, page);
		uintptr_t stop = start + least(length, end - start);
		int64_t began = cpu_ns();
		long failed;

		if (stop < end && length >= HUGE)
			stop = down(stop, HUGE); /* whole page-table pages, and no huge page is cut */
		failed = advise(start, stop - start, advice);
		learn(pace, stop - start, cpu_ns() - began);
		if (failed == -ENOMEM)
			told = failed;
		else if (failed)
			return failed;
		start = stop;
		if (start < end)
			rest(pace);
	}
	return told;
}
