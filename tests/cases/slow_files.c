/* A file system in user space (FUSE) with one file "f", which brings no page until it is ended.
 *
 * Until then not even SIGKILL ends those who wait for one, nor a ps that reads their memory: so it
 * ends by itself after half a minute, and with whoever started it.
 *
 *     slow_files MOUNTPOINT
 */
#include "common.h"
#include <errno.h>
#include <linux/fuse.h>
#include <sys/mount.h>

static int device;

static void answer(const struct fuse_in_header *asked, int error, const void *what, size_t length)
{
	char text[4096];
	struct fuse_out_header head = {
		.len = sizeof(head) + length, .error = -error, .unique = asked->unique,
	};

	memcpy(text, &head, sizeof(head));
	if (length)
		memcpy(text + sizeof(head), what, length);
	if (write(device, text, head.len) < 0 && errno != ENOENT)
		exit(1);
}

static struct fuse_attr node(int is_root)
{
	return (struct fuse_attr){
		.ino = is_root ? 1 : 2, .mode = is_root ? 040755 : 0100644, .nlink = 1,
		.size = is_root ? 4096 : 1 << 20, .blksize = 4096,
	};
}

static void serve(const struct fuse_in_header *asked)
{
	struct fuse_init_out begin = {.major = 7, .minor = 31, .max_write = 4096};
	struct fuse_entry_out entry = {.nodeid = 2, .attr = node(0), .entry_valid = 99, .attr_valid = 99};
	struct fuse_attr_out attributes = {.attr = node(asked->nodeid == 1), .attr_valid = 99};
	struct fuse_open_out opened = {.fh = 1};

	switch (asked->opcode) {
	case FUSE_INIT:
		return answer(asked, 0, &begin, sizeof(begin));
	case FUSE_LOOKUP:
		return answer(asked, 0, &entry, sizeof(entry));
	case FUSE_GETATTR:
		return answer(asked, 0, &attributes, sizeof(attributes));
	case FUSE_OPEN:
		return answer(asked, 0, &opened, sizeof(opened));
	case FUSE_RELEASE:
	case FUSE_FLUSH:
		return answer(asked, 0, 0, 0);
	case FUSE_READ:
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	default:
		answer(asked, ENOSYS, 0, 0);
	}
}

int main(int argc, char **argv)
{
	static char asked[1 << 17];
	char options[99];

	alarm(30);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	device = open("/dev/fuse", O_RDWR);
	sprintf(options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	if (argc < 2 || device < 0 || mount("slow_files", argv[1], "fuse", 0, options)) {
		say("no FUSE here");
		return 0;
	}
	say("go");
	while (read(device, asked, sizeof(asked)) > 0)
		serve((struct fuse_in_header *)asked);
	return 0;
}
