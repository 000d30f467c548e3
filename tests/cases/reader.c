/* Somebody outside who reads or changes another process's files in /proc, slowly.
 *
 *     reader NICE read FILE
 *     reader NICE write FILE TEXT
 *     reader NICE vm PID ADDRESS LENGTH     its memory, by process_vm_readv
 */
#include "common.h"
#include <sys/uio.h>

static char buffer[1 << 20];

static void through_proc(char **argv)
{
	int writes = !strcmp(argv[0], "write");
	int file = open(argv[1], writes ? O_WRONLY : O_RDONLY);

	if (file < 0) {
		perror(argv[1]);
		exit(1);
	}
	say("go");
	if (writes && write(file, argv[2], strlen(argv[2])) < 0)
		perror("write");
	while (!writes && read(file, buffer, sizeof(buffer)) > 0)
		;
}

static void through_memory(char **argv)
{
	char *from = (char *)strtoul(argv[1], 0, 0), *end = from + strtoul(argv[2], 0, 0);

	say("go");
	for (; from < end; from += sizeof(buffer)) {
		struct iovec here = { buffer, sizeof(buffer) }, there = { from, sizeof(buffer) };

		if (process_vm_readv(atoi(argv[0]), &here, 1, &there, 1, 0) < 0)
			perror("process_vm_readv");
	}
}

int main(int argc, char **argv)
{
	double begin;

	named("agent");
	on_a_crowded_cpu(atoi(argv[1]));
	begin = seconds();
	if (!strcmp(argv[2], "vm"))
		through_memory(argv + 3);
	else
		through_proc(argv + 2);
	printf("%s %.3f\n", argv[2], seconds() - begin);
	say("over");
	return argc < 4;
}
