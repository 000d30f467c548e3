"""A program of threads as a C program, whose lines say what its threads' calls have returned.

Each round is a forked child, in which the set-up runs and then the threads, which meet and wait a
while of their own before each operation. It prints one line: what every operation returned, and
the mappings among the addresses that the program names, with what of them is in memory. Sorted and
counted (`sort | uniq -c`), the lines are the outcomes that the kernel has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zaplock.errors import UserError
from zaplock.oracle import ops
from zaplock.oracle.ops import FILE_PAGES, HOLES, Op
from zaplock.oracle.threaded import FORK_LOAD, ThreadedProgram, number_of

ROUNDS = 2000
_FILES = (0, 1)  # memfds
_SYSCALLS = {"pread": "pread64"}
_HERE_ALONE = ("brk",)
"""Calls whose addresses are those of the bare process."""
_NEXT_TO = 1 << 20  # bytes around what the program names

_PROGRAM = """\
/* {why}
 * cc -pthread -o reproducer reproducer.c && ./reproducer | sort | uniq -c
 * written by: zaplock oracle --threads --replay {name}.json --c reproducer.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

{numbers}#define UNUSED static __attribute__((unused))

enum {{ THREADS = {threads}, ROUNDS = {rounds}, MOST = 16 }};

static __thread sigjmp_buf back;
static atomic_int arrived;
static unsigned seed;
static long results[THREADS][MOST];
static int files[2];
static char page[1 << 16];

static void caught(int number)
{{
	siglongjmp(back, number);
}}

UNUSED long call(long result)
{{
	return result == -1 ? -errno : result;
}}

/* A signal is told as its number, in the upper half. */
UNUSED long access_to(unsigned long at, int writes, unsigned long tag)
{{
	volatile unsigned long *word = (unsigned long *)at;
	int number = sigsetjmp(back, 1);

	if (number)
		return -((long)number << 16);
	if (!writes)
		return *word;
	*word = tag;
	return 0;
}}

UNUSED long fork_load(unsigned long at)
{{
	int ends[2];
	long seen = 0;
	pid_t child;

	if (pipe(ends))
		return -errno;
	child = fork();
	if (!child) {{
		seen = access_to(at, 0, 0);
		_exit(write(ends[1], &seen, sizeof(seen)) != sizeof(seen));
	}}
	if (child < 0 || read(ends[0], &seen, sizeof(seen)) != sizeof(seen))
		seen = -errno;
	waitpid(child, NULL, 0);
	close(ends[0]);
	close(ends[1]);
	return seen;
}}

/* Of whole pages: what is read goes nowhere, what is written is the tag of each page. */
UNUSED long remote(long number, unsigned long at, unsigned long length, unsigned long tag)
{{
	struct iovec there = {{ (void *)at, length }}, here = {{ page, length }};

	for (unsigned long k = 0; k < length && k < sizeof(page); k += 4096)
		*(unsigned long *)(page + k) = tag;
	return call(syscall(number, getpid(), &here, 1UL, &there, 1UL, 0UL));
}}

UNUSED long advise(unsigned long at, unsigned long length, int advice)
{{
	struct iovec range = {{ (void *)at, length }};
	int process = syscall(SYS_pidfd_open, getpid(), 0);
	long done = call(syscall(SYS_process_madvise, process, &range, 1UL, advice, 0UL));

	close(process);
	return done;
}}

static void wait_a_while(void)
{{
	for (volatile int turns = rand_r(&seed) % (1 << rand_r(&seed) % 12); turns > 0; turns--)
		;
}}

static void meet(void)
{{
	arrived++;
	while (arrived < THREADS)
		;
}}

{bodies}
static void *(*const bodies[THREADS])(void *) = {{ {names} }};

UNUSED void file_of(int slot, int pages, int hole, int until)
{{
	files[slot] = memfd_create("file", 0);
	if (ftruncate(files[slot], pages * 4096L))
		exit(1);
	for (long k = 0; k < pages; k++) {{
		unsigned long tag = (slot + 1UL) << 32 | (k + 1);

		if ((k < hole || k >= until) && pwrite(files[slot], &tag, 8, k * 4096) != 8)
			exit(1);
	}}
}}

static void say_result(long result)
{{
	if (result <= -(1 << 16))
		printf("signal %ld", -result >> 16);
	else if (result < 0)
		printf("%s", strerror(-result));
	else
		printf("%#lx", result);
}}

static void say_mappings(void)
{{
	char line[512];
	unsigned long start, end, kb, within = 0;
	FILE *smaps = fopen("/proc/self/smaps", "r");

	printf(" leaves");
	while (smaps && fgets(line, sizeof(line), smaps)) {{
		char perms[8];

		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) == 3) {{
			within = start < {high:#x}UL && end > {low:#x}UL;
			if (within)
				printf(" %lx-%lx %s", start, end, perms);
		}} else if (within && sscanf(line, "Rss: %lu", &kb) == 1)
			printf(" Rss %lu kB", kb);
	}}
	puts("");
}}

static void round_of(int number)
{{
	struct sigaction action = {{ .sa_handler = caught }};
	pthread_t ids[THREADS];

	seed = number;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
{files}{setup}
	for (long k = 0; k < THREADS; k++)
		if (pthread_create(&ids[k], NULL, bodies[k], NULL))
			exit(1);
	for (int k = 0; k < THREADS; k++)
		pthread_join(ids[k], NULL);
{says}	say_mappings();
}}

int main(void)
{{
	setvbuf(stdout, NULL, _IOLBF, 1 << 16);
	for (int number = 1; number <= ROUNDS; number++) {{
		pid_t child = fork();

		if (!child) {{
			round_of(number);
			exit(0);
		}}
		waitpid(child, NULL, 0);
	}}
	return 0;
}}
"""


def lacks(threaded: ThreadedProgram) -> str:
    """Return which operations or file of a program C lacks here; "" where it can be written."""
    everything = _operations(threaded)
    if strange := sorted({op.name for op in everything if _is_strange(op)}):
        return ", ".join(strange)
    others = sorted(ops.slots_used(everything) - set(_FILES))
    return f"file {others[0]}, which is neither 0 nor 1," if others else ""


def write(threaded: ThreadedProgram, why: str, name: str) -> str:
    """Return the C program. Raises UserError where it `lacks` anything."""
    if lack := lacks(threaded):
        raise UserError(f"{name}: {lack} can't be written in C: replay it without --c")
    everything = _operations(threaded)
    slots = sorted(ops.slots_used(everything))
    addresses = [value for op in everything for value in _addresses(op)]
    numbered = range(len(threaded.threads))
    called = sorted({op.name for op in everything} & ops.CALLS.keys())
    return _PROGRAM.format(
        why=why.replace("*/", "* /"), name=name, threads=len(threaded.threads), rounds=ROUNDS,
        numbers="".join(map(_number_of_call, called)),
        bodies="\n".join(_body(number, threaded.threads[number]) for number in numbered),
        names=", ".join(f"thread_{number}" for number in numbered),
        files="".join(_file(slot) for slot in slots),
        setup="".join(f"\t{_call(index, op)};\n" for index, op in enumerate(threaded.setup)),
        says="".join(_says(number, len(threaded.threads[number])) for number in numbered),
        low=max(min(addresses, default=0) - _NEXT_TO, 0),
        high=max(addresses, default=0) + _NEXT_TO,
    )  # fmt: skip


def _operations(threaded: ThreadedProgram) -> list[Op]:
    return [*threaded.setup, *(op for thread in threaded.threads for op in thread)]


def _is_strange(op: Op) -> bool:
    return op.name.startswith("uffd") or op.name in _HERE_ALONE


def _addresses(op: Op) -> Iterator[int]:
    names = ("addr",) if op.name == FORK_LOAD else ops.arguments_of(op.name)
    for name, value in zip(names, op.args, strict=True):
        if name in ("addr", "new_addr") and isinstance(value, int) and value:
            yield value


def _number_of_call(name: str) -> str:
    """Say a call's number (x86-64) where a C library is older than the call."""
    named = _named(name)
    return f"#ifndef {named}\n#define {named} {ops.CALLS[name][0]}\n#endif\n"


def _named(name: str) -> str:
    return f"SYS_{_SYSCALLS.get(name, name)}"


def _file(slot: int) -> str:
    hole = HOLES.get(slot, range(0))
    return f"\tfile_of({slot}, {FILE_PAGES[slot]}, {hole.start}, {hole.stop});\n"


def _body(number: int, operations: Sequence[Op]) -> str:
    calls = (_call(number_of(number, index), op) for index, op in enumerate(operations))
    lines = "".join(
        f"\twait_a_while();\n\tresults[{number}][{index}] = {call};\n"
        for index, call in enumerate(calls)
    )
    return (
        f"static void *thread_{number}(void *unused)\n{{\n\tmeet();\n{lines}\treturn unused;\n}}\n"
    )


def _says(number: int, count: int) -> str:
    between = '\tfputs(" | ", stdout);\n' if number else ""
    said = (f"\tsay_result(results[{number}][{index}]);\n" for index in range(count))
    return between + '\tfputs(", ", stdout);\n'.join(said)


def _call(number: int, op: Op) -> str:
    arguments = [_number(value) for value in op.args if isinstance(value, int)]
    if op.name in ops.TAKES_FILE:
        place = ops.TAKES_FILE[op.name]
        slot = op.args[place]
        arguments[place] = f"(long)files[{slot}]" if slot in _FILES else f"{slot}L"
    inside = ", ".join(arguments)
    if op.name in ("load", "store"):
        return f"access_to({inside}, {int(op.name == 'store')}, {ops.store_tag(number):#x})"
    if op.name == FORK_LOAD:
        return f"fork_load({inside})"
    if op.name == "process_madvise":
        return f"advise({inside})"
    if op.name.startswith("process_vm"):
        return f"remote(SYS_{op.name}, {inside}, {ops.store_tag(number):#x})"
    return f"call(syscall({', '.join([_named(op.name), *arguments])}))"


def _number(value: int) -> str:
    return f"{value:#x}UL" if value > 9 else f"{value}L"
