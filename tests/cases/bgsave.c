/* A database with one thread that forks to save itself: it stands while the page tables are copied.
 *
 *     bgsave GIB
 */
#include "common.h"
#include <sys/wait.h>

int main(int argc, char **argv)
{
	filled(atof(argv[argc - 1]) * GIB);
	say("ready");
	getchar();
	double begin = seconds();
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	printf("fork %.6f\n", seconds() - begin);
	waitpid(child, 0, 0);
	say("over");
	getchar();
	return 0;
}
