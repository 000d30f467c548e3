"""A sequence as a C program of a few lines, to show a kernel's own accounting to its developers.

The program does the sequence in forked children, each of which unmaps everything it has mapped and
ends. It prints what each call returns in the first of them, and whether that is what the model of
Linux 6.18 expects (`expected`); a place that the kernel chooses may be any. Then it prints what a
child has in huge pages when it is through, VmLck of a child when nothing is mapped any more, and by
how much Committed_AS of the machine has grown when all are gone (and HugePages_Rsvd, where it maps
huge pages of the pool). All but the first would be 0. Where a userfaultfd moves pages, it says of
each whether it is still write-protected there. A child that uses up a second of CPU time is killed,
and is the last.
"""

from __future__ import annotations

from collections.abc import Sequence

from zaplock.errors import UserError
from zaplock.model import flags as f
from zaplock.oracle import expected, ops
from zaplock.oracle.ops import Argument, Op, Ref, slots_used

ROUNDS = 16
_FLAGS = {
    "prot": ("PROT_", (1, 2, 4)),
    "flags": ("MAP_", (1, 2, 0x10, 0x20, 0x100, 0x2000, 0x4000, 0x8000, 0x4_0000, 0x8_0000)),
}
_REMAPS = {1: "MREMAP_MAYMOVE", 2: "MREMAP_FIXED", 4: "MREMAP_DONTUNMAP"}
_KNOWN = (
    "mmap", "munmap", "mprotect", "mremap", "madvise", "mlock", "munlock", "store", "store_value",
    "load", "uffd_register", "uffd_writeprotect", "uffd_move",
)  # fmt: skip

_PROGRAM = """\
/* {why}
 * cc -o reproducer reproducer.c && ./reproducer
 * written by: zaplock oracle --replay {name}.json --c reproducer.c
 * What is expected is what Linux 6.18 gives by zaplock's model; ANYWHERE: where it chooses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
{includes}#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define ANYWHERE LONG_MAX

static long field(const char *path, const char *name)
{{
	char line[256];
	long kb = -1;
	FILE *file = fopen(path, "r");

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			kb = atol(line + strlen(name) + 1);
	if (file)
		fclose(file);
	return kb;
}}

static void print_result(long result)
{{
	if (result == ANYWHERE)
		printf("a place that the kernel chooses");
	else if (result < 0 && result >= -4095)
		printf("%ld (%s)", result, strerror(-result));
	else
		printf(result > 9 ? "%#lx" : "%ld", result);
}}

static void tell(int tells, const char *call, char *got, long expected)
{{
	long result = got == MAP_FAILED ? -errno : (long)got;

	if (!tells)
		return;
	printf("%s = ", call);
	print_result(result);
	if (expected == ANYWHERE ? result > 0 : result == expected) {{
		puts(", as expected");
	}} else {{
		printf(", expected ");
		print_result(expected);
		puts("");
	}}
	fflush(stdout);
}}

{helpers}static long sequence(int tells)
{{
	char *r[{count}];
	long before = field("/proc/self/status", "VmLck");
{files}
{body}

{moved}	if (tells)
		printf("AnonHugePages in the end: %ld kB\\n",
			field("/proc/self/smaps_rollup", "AnonHugePages"));
{unmaps}
	return field("/proc/self/status", "VmLck") - before;
}}

int main(void)
{{
	long before = field("/proc/meminfo", "Committed_AS");
{before}
	for (int round = 0, status = 0; round < {rounds} && !status; round++) {{
		if (!fork()) {{
			struct rlimit second = {{ 1, 1 }};
			long locked;

			setrlimit(RLIMIT_CPU, &second);
			locked = sequence(!round);
			if (!round)
				printf("VmLck with nothing mapped: %ld kB\\n", locked);
			exit(0);
		}}
		wait(&status);
		if (status)
			puts("VmLck with nothing mapped: not known, after a second of CPU time it goes on");
	}}
	printf("Committed_AS after {rounds} rounds: %+ld kB\\n",
		field("/proc/meminfo", "Committed_AS") - before);
{after}	return 0;
}}
"""

_RESERVED_BEFORE = """\
	long reserved = field("/proc/meminfo", "HugePages_Rsvd");
"""
_RESERVED_AFTER = """\
	printf("HugePages_Rsvd when all are gone: %+ld\\n",
		field("/proc/meminfo", "HugePages_Rsvd") - reserved);
"""


_UFFD_INCLUDES = """\
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
"""
_UFFD_HELPERS = """\
static int uffd = -1;

static long uffd_register(char *start, unsigned long length, unsigned long mode)
{
	struct uffdio_register range = { { (unsigned long)start, length }, mode, 0 };

	return ioctl(uffd, UFFDIO_REGISTER, &range);
}

"""
_PROTECT_HELPER = """\
static long uffd_writeprotect(char *start, unsigned long length, unsigned long mode)
{
	struct uffdio_writeprotect range = { { (unsigned long)start, length }, mode };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &range);
}

"""
_MOVE_INCLUDES = """\
#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 5, struct uffdio_move)
#endif
"""
_MOVE_HELPERS = """\
static long uffd_move(char *start, unsigned long length, unsigned long source, unsigned long mode)
{
	struct uffdio_move range = { (unsigned long)start, source, length, mode, 0 };

	return ioctl(uffd, UFFDIO_MOVE, &range);
}

static void tell_moved(char *start, unsigned long length)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	__u64 entry;

	for (char *page = start; page < start + length; page += 4096) {
		if (pread(pagemap, &entry, sizeof(entry), (unsigned long)page / 4096 * 8) != 8)
			break;
		printf("%p is %s and %swrite-protected\\n", page,
			entry >> 62 & 1 ? "in swap" : entry >> 63 ? "present" : "empty",
			entry >> 57 & 1 ? "" : "not ");
	}
	close(pagemap);
}

"""
_UFFD_OPENED = """\
	struct uffdio_api api = { UFFD_API, UFFD_FEATURE_SIGBUS, 0 };

	uffd = syscall(SYS_userfaultfd, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	ioctl(uffd, UFFDIO_API, &api);
"""


def write(sequence: Sequence[Op], why: str, name: str) -> str:
    """Return the program of a sequence. Raises UserError where it has an operation C lacks here."""
    strange = sorted({op.name for op in sequence} - set(_KNOWN))
    if slots_used(sequence) & (ops.HUGE_FILES.keys() | ops.TMPFS_FILES.keys()):
        strange.append("files of huge pages")
    if strange:
        raise UserError(f"{name}: {', '.join(strange)} can't be written in C; use the .py script")
    found = expected.results(sequence)
    body = "\n".join(
        f"\tr[{k}] = (char *)(long){_call(op)};{_tell(k, op, found)}"
        for k, op in enumerate(sequence)
    )
    uses_file = any(op.name == "mmap" and op.args[4] != ops.NO_FILE for op in sequence)
    files = '\tint file = open("/var/tmp", O_RDWR | O_TMPFILE, 0600);\n' if uses_file else ""
    files += "\tftruncate(file, 64 * 4096);\n" if uses_file else ""
    watches = any(op.name.startswith("uffd") for op in sequence)
    protects = any(op.name == "uffd_writeprotect" for op in sequence)
    moves = [op for op in sequence if op.name == "uffd_move"]
    reserves = any(op.name == "mmap" and _flags_of(op) & f.MAP_HUGETLB for op in sequence)
    return _PROGRAM.format(
        why=why, name=name, count=len(sequence), body=body, rounds=ROUNDS,
        files=files + (_UFFD_OPENED if watches else ""),
        includes=(_UFFD_INCLUDES if watches else "") + (_MOVE_INCLUDES if moves else ""),
        helpers=(_UFFD_HELPERS if watches else "")
        + (_PROTECT_HELPER if protects else "")
        + (_MOVE_HELPERS if moves else ""),
        moved="".join(map(_tell_moved, moves)) + _tell_loaded(sequence, found),
        unmaps="\n".join(_unmaps(sequence)),
        before=_RESERVED_BEFORE if reserves else "",
        after=_RESERVED_AFTER if reserves else "",
    )  # fmt: skip


def _flags_of(op: Op) -> int:
    flags = op.args[3]
    return flags if isinstance(flags, int) else 0


def _call(op: Op) -> str:
    a = [_value(value) for value in op.args]
    if op.name == "mmap":
        file = "-1" if op.args[4] == ops.NO_FILE else "file"
        return f"mmap((void *){a[0]}, {a[1]}, {_named('prot', op.args[2])}, " + (
            f"{_named('flags', op.args[3])}, {file}, {a[5]})"
        )
    if op.name == "mremap":
        flags = _joined([name for bit, name in _REMAPS.items() if _number(op.args[3]) & bit])
        return f"mremap((void *){a[0]}, {a[1]}, {a[2]}, {flags}, (void *){a[4]})"
    if op.name == "store":
        return f"(*(volatile char *){a[0]} = 1)"
    if op.name == "store_value":
        return f"(*(volatile char *){a[0]} = {a[1]})"
    if op.name == "load":
        return f"*(volatile char *){a[0]}"
    return f"{op.name}((void *){', '.join(a)})"


def _tell(k: int, op: Op, found: Sequence[int]) -> str:
    """Let a call say what it has returned; accesses return nothing that the model has too."""
    if op.name in ("store", "store_value", "load") or k >= len(found):
        return ""
    return f'\n\ttell(tells, "{op}", r[{k}], {_expectation(op, found, found[k])});'


def _expectation(op: Op, found: Sequence[int], result: int) -> str:
    """Return a result in C: an errno, a number, a place that was asked for or any place."""
    if result < 0:
        return f"-{ops.ERRNO_NAMES.get(-result, -result)}"
    if op.name not in ("mmap", "mremap"):
        return _value(result)
    asked = [value for value in (op.args[0], *op.args[4:5]) if not isinstance(value, int) or value]
    for value in asked:
        place = found[value.op] + value.delta if isinstance(value, Ref) else value
        if place == result:
            return f"(long){_value(value)}"
    return "ANYWHERE"


def _tell_moved(op: Op) -> str:
    start, length = (_value(value) for value in op.args[:2])
    return f"\tif (tells)\n\t\ttell_moved((void *){start}, {length});\n"


def _tell_loaded(sequence: Sequence[Op], found: Sequence[int]) -> str:
    return "".join(
        f'\tif (tells)\n\t\tprintf("a load of %p gives %ld%s\\n", (void *){_value(op.args[0])}, '
        f"(long)r[{k}], {_verdict(k, found)});\n"
        for k, op in enumerate(sequence)
        if op.name == "load"
    )


def _verdict(k: int, found: Sequence[int]) -> str:
    """Return in C what to say of the byte that a load has found, where the model has it too."""
    value = found[k] if k < len(found) else -1
    if 0 <= value - ops.store_tag(0) < len(found):
        value = 1  # what a store writes here
    if not 0 <= value < 128:
        return '""'
    return f'(long)r[{k}] == {value} ? ", as expected" : ", expected {value}"'


def _unmaps(sequence: Sequence[Op]) -> list[str]:
    """Unmap where anything can be: what was asked for, and what was returned."""
    lines = []
    for k, op in enumerate(sequence):
        if op.name in ("mmap", "mremap"):
            length = max(_number(value) for value in op.args[1 : 3 if op.name == "mremap" else 2])
            lines.append(f"\tif (r[{k}] != MAP_FAILED)\n\t\tmunmap(r[{k}], {length:#x});")
            if op.name == "mremap":
                lines.append(f"\tmunmap((void *){_value(op.args[0])}, {length:#x});")
    return lines


def _number(value: Argument) -> int:
    return 0 if isinstance(value, Ref) else value


def _value(value: Argument) -> str:
    if isinstance(value, Ref):
        return f"(r[{value.op}] + {value.delta:#x})"
    return hex(value) if value > 9 else str(value)


def _named(kind: str, value: Argument) -> str:
    prefix, bits = _FLAGS[kind]
    number = _number(value)
    names = {
        bit: name
        for name, bit in vars(f).items()
        if name.startswith(prefix) and isinstance(bit, int) and bit in bits
    }
    found = [names[bit] for bit in bits if number & bit]
    rest = number & ~sum(bits)
    return _joined(found + ([hex(rest)] if rest else []))


def _joined(names: Sequence[str]) -> str:
    return " | ".join(names) or "0"
