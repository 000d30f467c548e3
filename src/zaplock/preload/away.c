/* Take pages away from where they are, at once; give them back later, by pieces.
 *
 * mremap moves page tables, so it holds the mmap_lock for a fraction of a millisecond where munmap
 * holds it until the last page is free. For everybody else the range is gone in that moment, as
 * after a munmap: nobody sees zeroes in it, nobody's write comes too late, and its addresses are
 * free. What was moved lies where nobody knows of it, between guards of a kind that merges with
 * nothing (a shared mapping is a file of its own), and is not inherited by a fork.
 */

struct away {
	uintptr_t reserved, reserved_end; /* all that was mapped to hold it */
	uintptr_t start, end;
};

static int forking, reserving;

/* Whoever forks waits until no reservation is on its way that the child would have. */
static void before_fork(void)
{
	__atomic_fetch_add(&forking, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&reserving, __ATOMIC_SEQ_CST))
		kernel(SYS_sched_yield, 0, 0, 0, 0, 0);
}

static void after_fork(void) { __atomic_fetch_sub(&forking, 1, __ATOMIC_SEQ_CST); }

static void in_child(void) { forking = reserving = 0; }

/* Map addresses that a fork does not inherit; 0 where there are none, or while somebody forks. */
static uintptr_t reserve(size_t length)
{
	long at = 0;

	__atomic_fetch_add(&reserving, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&forking, __ATOMIC_SEQ_CST)) {
		at = map_nothing(length);
		if (at < 0 && at > -4096)
			at = 0;
		else if (advise(at, length, MADV_DONTFORK)) {
			unmap(at, length);
			at = 0;
		}
	}
	__atomic_fetch_sub(&reserving, 1, __ATOMIC_SEQ_CST);
	return at;
}

/* Give the pages of a moved range back, then its addresses. */
static void give_back(struct away *away)
{
	struct pace pace = new_pace();

	by_pieces(away->start, away->end, MADV_DONTNEED, &pace);
	rest(&pace);
	unmap(away->reserved, away->reserved_end - away->reserved);
}

/* Drop a reservation into which nothing was moved. A failed move may have left a hole in it, which
 * may be another thread's mapping by now: that part is then left alone.
 */
static void drop(int maps, struct away *away)
{
	struct vma vma;

	if (find_vma(maps, away->reserved, &vma) == 1 && vma.start == away->reserved &&
	    vma.end == away->reserved_end) {
		unmap(away->reserved, away->reserved_end - away->reserved);
		return;
	}
	unmap(away->reserved, away->start - away->reserved);
	unmap(away->end, away->reserved_end - away->end);
}

/* Map a place for a range of this length, so that its page tables move whole; say whether it is there. */
static int set_aside(size_t length, uintptr_t start, struct away *away)
{
	size_t unit = length >= GIB ? GIB : HUGE, reserved = length + unit + 2 * page;
	uintptr_t at = reserve(reserved);

	away->reserved = at;
	away->reserved_end = at + reserved;
	away->start = down(at + page, unit) + start % unit;
	if (away->start < at + page)
		away->start += unit;
	away->end = away->start + length;
	return at != 0;
}

/* Move a range of one plain VMA away; say whether that was done. With MREMAP_DONTUNMAP the addresses
 * stay mapped, without pages.
 *
 * Not inherited by a fork from before the move on: a child between the two would keep the pages for
 * as long as it lives, and nobody would give them back. This is also what fails, before anything is
 * lost, where there are too many VMAs.
 */
static int take_away(int maps, uintptr_t start, uintptr_t end, int flags, struct away *away)
{
	size_t length = end - start;

	if (!set_aside(length, start, away))
		return 0;
	if (advise(start, length, MADV_DONTFORK) ||
	    move(start, length, MREMAP_MAYMOVE | MREMAP_FIXED | flags, away->start) !=
		    (long)away->start) {
		drop(maps, away);
		return 0;
	}
	return 1;
}

/* Take the pages of a range away and leave it mapped, as MADV_DONTNEED does; say whether that was done.
 *
 * Here the range itself stays as inheritable as it was, so whoever forks waits until what was moved
 * is not.
 */
static int take_content(int maps, uintptr_t start, uintptr_t end, struct away *away)
{
	int taken = 0;

	__atomic_fetch_add(&reserving, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&forking, __ATOMIC_SEQ_CST) && set_aside(end - start, start, away)) {
		taken = move(start, end - start, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP_,
			     away->start) == (long)away->start;
		if (taken)
			advise(away->start, end - start, MADV_DONTFORK);
		else
			drop(maps, away);
	}
	__atomic_fetch_sub(&reserving, 1, __ATOMIC_SEQ_CST);
	return taken;
}

/* Move back what was moved with MREMAP_DONTUNMAP: the caller keeps it after all. */
static void bring_back(struct away *away, uintptr_t start)
{
	move(away->start, away->end - away->start, MREMAP_MAYMOVE | MREMAP_FIXED, start);
	advise(start, away->end - away->start, MADV_DOFORK);
	unmap(away->reserved, away->start - away->reserved);
	unmap(away->end, away->reserved_end - away->end);
}
