/* A thread that gives back what was moved away, so that whoever freed it goes on at once.
 *
 * Only where it was asked for: the memory is in use a little longer, and the process has a thread
 * more. Where the queue is full the caller works himself. A forked child has neither the thread nor
 * what was queued (it isn't inherited); a vfork child, which runs in its parent's memory, works
 * itself.
 */

#define QUEUED 8

static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct away queue[QUEUED];
	int nr, process;
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
		away = worker.queue[0];
		pthread_mutex_unlock(&worker.lock);
		give_back(&away);
		pthread_mutex_lock(&worker.lock);
		for (int k = 1; k < worker.nr; k++)
			worker.queue[k - 1] = worker.queue[k];
		worker.nr--;
	}
	return unused;
}

/* Begin anew in a forked child. */
static void forget_worker(void)
{
	pthread_mutex_init(&worker.lock, NULL);
	pthread_cond_init(&worker.more, NULL);
	worker.nr = worker.process = 0;
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
	int process = own_process(), taken = 0;

	if (worker.process && worker.process != process)
		return 0;
	pthread_mutex_lock(&worker.lock);
	if (!worker.process && start_worker())
		worker.process = process;
	if (worker.process == process && worker.nr < QUEUED) {
		worker.queue[worker.nr++] = *away;
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
