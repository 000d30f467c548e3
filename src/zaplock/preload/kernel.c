/* The system calls of a release, made without libc: no errno, no cancellation, no other preload.
 *
 * So they may be made in a signal handler, in a vfork child and before any constructor has run.
 * Each returns what the kernel returns: a negative errno for an error.
 */

#define PROCMAP_QUERY _IOC(_IOC_READ | _IOC_WRITE, 'f', 17, sizeof(struct query))
#define COVERING_OR_NEXT 0x10
#define MADV_COLD_ 20
#define MREMAP_DONTUNMAP_ 4
#define HUGE (2UL << 20)
#define GIB (1UL << 30)

struct query { /* struct procmap_query, 6.11 */
	uint64_t size, flags, address;
	uint64_t start, end, vma_flags, page_size, offset, inode;
	uint32_t major, minor, name_size, build_id_size;
	uint64_t name, build_id;
};

static size_t page = 4096;

static long kernel6(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
#error "zaplock's preload library knows x86-64 and arm64"
#endif
}

static long kernel(long number, long a, long b, long c, long d, long e)
{
	return kernel6(number, a, b, c, d, e, 0);
}

/* Addresses without memory, as a shared mapping: it merges with nothing of the program's. */
static long map_nothing(size_t length)
{
	return kernel6(SYS_mmap, 0, length, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static long unmap(uintptr_t start, size_t length)
{
	return kernel(SYS_munmap, start, length, 0, 0, 0);
}

static long advise(uintptr_t start, size_t length, int advice)
{
	return kernel(SYS_madvise, start, length, advice, 0, 0);
}

static long move(uintptr_t start, size_t length, int flags, uintptr_t target)
{
	return kernel(SYS_mremap, start, length, length, flags, target);
}

/* Open a file of this thread's: /proc/self is not there once the first thread has ended. */
static int open_own(const char *path)
{
	return kernel(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0);
}

static void shut(int file) { kernel(SYS_close, file, 0, 0, 0, 0); }

static int64_t cpu_ns(void)
{
	struct timespec t = { 0 };

	kernel(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, (long)&t, 0, 0, 0);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static uintptr_t up(uintptr_t address, size_t unit) { return (address + unit - 1) / unit * unit; }

static uintptr_t down(uintptr_t address, size_t unit) { return address / unit * unit; }

/* Let no signal in, as no handler runs in the middle of a system call; return who was let in. */
static uint64_t hold_signals(void)
{
	uint64_t all = ~0UL, before = 0;

	kernel(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&before, sizeof(all), 0);
	return before;
}

static void let_signals(uint64_t before)
{
	kernel(SYS_rt_sigprocmask, SIG_SETMASK, (long)&before, 0, sizeof(before), 0);
}
