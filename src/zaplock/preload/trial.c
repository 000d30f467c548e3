/* Run with the preload library: whether it gives memory back by pieces here. Ends with 0 if so. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>

int main(void)
{
	const size_t length = 1UL << 20;
	unsigned long *released = dlsym(RTLD_DEFAULT, "zaplock_released");
	char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!released)
		return 2; /* it was not loaded */
	if (memory == MAP_FAILED)
		return 3;
	memset(memory, 1, length);
	return munmap(memory, length) || released[0] != 1;
}
