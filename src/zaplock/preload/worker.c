/* A thread that gives back what was moved away, so that whoever freed it goes on at once.
 *
 * Only where it was asked for: the memory is in use a little longer, and the process has a thread
 * more. A program that frees a big thing frees many at once (a hash of lists, an arena's extents), so
 * many wait here; where there are too many, or they are too much memory, the caller works itself, so
 * that who frees and maps in a loop can't fill the machine with what is on its way. A forked child
 * has neither the thread nor what was queued (it isn't inherited); a vfork child, which runs in its
 * parent's memory, works itself.
 */

#define QUEUED 1024

static size_t most_waiting = 1UL << 30;

static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct away queue[QUEUED]; /* a ring */
	int first, nr, process;
	size_t bytes;
} worker = { .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER };

static int in_background;

static int own_process(void) { return (int)kernel(SYS_getpid, 0, 0, 0, 0, 0); }

static void *work(void *unused)
{
	struct away away;

	pthread_mutex_lock(&worker.lock);
	for (;;) {
		while (!worker.nr)
			pthread_cond_wait(&worker.more, &worker.lock);
		away = worker.queue[worker.first];
		pthread_mutex_unlock(&worker.lock);
		give_back(&away);
		pthread_mutex_lock(&worker.lock);
		worker.first = (worker.first + 1) % QUEUED;
		worker.nr--;
		worker.bytes -= away.end - away.start;
	}
	return unused;
}

/* Begin anew in a forked child. */
static void forget_worker(void)
{
	pthread_mutex_init(&worker.lock, NULL);
	pthread_cond_init(&worker.more, NULL);
	worker.first = worker.nr = worker.process = 0;
	worker.bytes = 0;
}

static int start_worker(void)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int failed;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, 256 << 10);
	failed = pthread_create(&thread, &attributes, work, NULL);
	pthread_attr_destroy(&attributes);
	return !failed;
}

/* Signals are held: whoever has the lock is not interrupted by a handler that wants it as well. */
static int hand_over(const struct away *away)
{
	size_t length = away->end - away->start;
	int process = own_process(), taken = 0;

	if (worker.process && worker.process != process)
		return 0;
	pthread_mutex_lock(&worker.lock);
	if (!worker.process && start_worker())
		worker.process = process;
	if (worker.process == process && worker.nr < QUEUED &&
	    (!worker.nr || worker.bytes + length <= most_waiting)) {
		worker.queue[(worker.first + worker.nr++) % QUEUED] = *away;
		worker.bytes += length;
		pthread_cond_signal(&worker.more);
		taken = 1;
	}
	pthread_mutex_unlock(&worker.lock);
	return taken;
}

static void finish(struct away *away)
{
	if (!in_background || !hand_over(away))
		give_back(away);
}
