/* The capsule: what a probe hands over, as named records in one flat piece of memory.
 *
 * In a guest the memory is the BAR of an ivshmem device, which is a file of the host: a page of the
 * trace leaves the guest as a memcpy, without a driver, a file system or a serial line. On the host
 * it is that file itself. Layout, little endian, every part aligned to 8 bytes:
 *
 *   header   "ZAPCAPS1", u64 bytes used (0 until the probe has finished), u64 phase, u64 0
 *   record   u32 length of the name, u32 0, u64 length of the data, name, data
 *
 * zaplock/measure/guest/capsule.py reads it.
 */

static unsigned char *capsule;
static size_t capsule_room, capsule_used;

static size_t aligned(size_t n) { return (n + 7) & ~(size_t)7; }

static void capsule_open(const char *path, size_t room)
{
	int fd = open(path, O_RDWR);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		die("cannot open the capsule %s", path);
	capsule_room = room && (off_t)room < st.st_size ? room : (size_t)st.st_size;
	capsule = mmap(NULL, capsule_room, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (capsule == MAP_FAILED)
		die("cannot map the capsule %s", path);
	close(fd);
	capsule_used = 32;
}

/* Say what the probe is at, for whoever watches the file: 1 populates, 2 runs, 3 saves. */
static void capsule_phase(uint64_t phase)
{
	memcpy(capsule + 16, &phase, 8);
}

/* Begin a record: returns where its data goes; capsule_end says how much of it came. */
static unsigned char *capsule_begin(const char *name, size_t *room)
{
	size_t head = 16 + aligned(strlen(name));

	if (capsule_used + head >= capsule_room)
		die("the capsule of %zu bytes is full at %s", capsule_room, name);
	*room = (capsule_room - capsule_used - head) & ~(size_t)7;
	return capsule + capsule_used + head;
}

static void capsule_end(const char *name, size_t length)
{
	unsigned char *record = capsule + capsule_used;
	uint32_t name_length = strlen(name), zero = 0;
	uint64_t data_length = length;

	memcpy(record, &name_length, 4);
	memcpy(record + 4, &zero, 4);
	memcpy(record + 8, &data_length, 8);
	memcpy(record + 16, name, name_length);
	capsule_used += 16 + aligned(name_length) + aligned(length);
}

static void capsule_put(const char *name, const void *data, size_t length)
{
	size_t room;
	unsigned char *to = capsule_begin(name, &room);

	if (length > room)
		die("the capsule of %zu bytes is full at %s", capsule_room, name);
	memcpy(to, data, length);
	capsule_end(name, length);
}

static void capsule_printf(const char *name, const char *format, ...)
{
	size_t room;
	char *to = (char *)capsule_begin(name, &room);
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(to, room, format, arguments);
	va_end(arguments);
	capsule_end(name, (size_t)length < room ? (size_t)length : room);
}

/* Copy a file of procfs or tracefs, whose size stat does not know. `unit` is the size of one read:
 * a tracefs ring buffer wants a sub-buffer, and says EAGAIN when it is empty. False if absent. */
static int capsule_file(const char *name, const char *path, size_t unit)
{
	static char bounce[1 << 16]; /* tracefs copies to user memory only, not to a device's BAR */
	size_t room, length = 0;
	unsigned char *to;
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	ssize_t n;

	if (fd < 0)
		return 0;
	to = capsule_begin(name, &room);
	while ((n = read(fd, bounce, unit)) > 0) {
		if (length + n > room)
			die("the capsule of %zu bytes is full at %s", capsule_room, name);
		memcpy(to + length, bounce, n);
		length += n;
	}
	close(fd);
	capsule_end(name, length);
	return 1;
}

static void capsule_close(void)
{
	uint64_t used = capsule_used;

	memcpy(capsule, "ZAPCAPS1", 8);
	__sync_synchronize();
	memcpy(capsule + 8, &used, 8);
}
