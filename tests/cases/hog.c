/* A process that never stops, on cpu 0, until its parent is gone. */
#include "common.h"

int main(void)
{
	pid_t parent = getppid();

	beside_the_hog(0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (getppid() == parent)
		for (volatile int i = 0; i < 1000000; i++)
			;
	return 0;
}
