"""The few pages that a bare process keeps: code, control words, program, observations.

One memfd, mapped at RING in every child and anywhere in the parent. Observations leave it through
a small buffer into a second memfd, so that it stays small: smaps walks it each time. RING lies
between mmap_base and the old stack, so no mapping whose address the kernel chooses can collide with
it. It is sealed (mseal, 6.10) where the kernel can: a test's wild munmap then fails instead of
sawing off the branch that it sits on.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from zaplock.errors import UserError
from zaplock.oracle import stub

PAGE = 4096
TASK_SIZE = 0x7FFF_FFFF_F000
RING = 0x7FFF_F900_0000

CONTROL = 0x1000  # words of the hand-shake, PAGEMAP_SCAN's argument, signal actions
GO, DONE, STATUS, FORK_STATUS = (CONTROL + 64 * i for i in range(4))
SCAN_ARG = CONTROL + 0x200
UNTOUCHED_SCAN_ARG = CONTROL + 0x280  # one that asks for no page's content
SIGACTION = CONTROL + 0x300
SIGSTACK = CONTROL + 0x380
CAPS = CONTROL + 0x400
RLIMIT = CONTROL + 0x480
OWN_LINE = CONTROL + 0x3A0  # how the ring's line of smaps begins, and what the stub keeps of it
MAP_QUERY = CONTROL + 0x490  # PROCMAP_QUERY's argument, and what the stub keeps beside it
BOOT = CONTROL + 0x500
MEETING = CONTROL + 0xB00  # where threads meet, the word of each one's id, and its signal stack
THREAD_IDS, THREAD_SIGSTACKS = MEETING + 0x40, MEETING + 0x80
STRINGS = 0x2000
CONTROL_SIZE = 0x2000  # the strings included
PATTERN = 0x4000  # one page: what is written to files and from buffers
STACK = 0x5000  # of the signal handler
STACK_SIZE = 0x4000
BUFFER = 0x9000  # observations on their way out
BUFFER_SIZE = 0x8000
KEPT = {"smaps": (0x11000, 0x6000), "pages": (0x17000, 0x1800), "status": (0x18800, 0x800)}
"""Where the last observation of each kind is kept, and the room: its length, its limit, itself."""
MAX_REGIONS = 1000  # of PAGEMAP_SCAN in one observation; what comes after them is not seen
LONG_REGION = 1 << 30  # bytes from which on a region is read by the first page of each 2 MiB only
SMAPS_LIMIT = 0x40000  # bytes, about 340 VMAs; the mappings above those are not compared
BUFFER_ROOM = BUFFER_SIZE - 8  # the stub ends what it compares with a word of zeros
SMAPS_HEAD = struct.Struct("<QQ")  # of what is observed of smaps: see observe
AS_BEFORE = -1  # the result of an entry that has observed the same again
NOTHING_KEPT = (1 << 64) - 1  # no length
PROGRAM = 0x19000
USUAL_ENTRIES = 4  # of an operation: itself, and the three that observe
RING_SIZE = 0x40000
SCRATCH_SIZE = 0x1000
SCRATCH = RING_SIZE - SCRATCH_SIZE  # mincore's vector and the like; one too long meets the end

MOST_THREADS = 4
THREAD_STACKS = SCRATCH - MOST_THREADS * STACK_SIZE
THREAD_PAGES = THREAD_STACKS - MOST_THREADS * PAGE  # no program of threads reaches up to here
THREAD_SCRATCH_SIZE = SCRATCH_SIZE // MOST_THREADS  # of each thread, from SCRATCH on

OUT_FD, SMAPS_FD, PAGEMAP_FD, STATUS_FD, MAPS_FD, FIRST_FILE_FD = 3, 4, 5, 6, 7, 8

# Categories of PAGEMAP_SCAN (include/uapi/linux/fs.h).
WRITTEN, PRESENT, SWAPPED, GUARD = 1 << 1, 1 << 3, 1 << 4, 1 << 8
"""WRITTEN is what no userfaultfd has write-protected, written to or not."""
FILE, ZERO, HUGE, SOFT_DIRTY = 1 << 2, 1 << 5, 1 << 6, 1 << 7
REPORTED = WRITTEN | FILE | PRESENT | SWAPPED | ZERO | HUGE | GUARD

_SYS = {
    "write": 1, "open": 2, "close": 3, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "ioctl": 16, "pread64": 17, "pwrite64": 18, "mincore": 27,
    "madvise": 28, "shmget": 29, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "clone": 56,
    "wait4": 61, "shmdt": 67, "fcntl": 72, "ftruncate": 77, "capset": 126, "sigaltstack": 131,
    "fstatfs": 138, "prctl": 157, "futex": 202, "sched_setaffinity": 203, "exit_group": 231,
    "openat": 257, "unlinkat": 263, "move_pages": 279, "fallocate": 285, "prlimit64": 302,
    "memfd_create": 319, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_register": 427,
    "pidfd_open": 434, "close_range": 436, "mseal": 462,
}  # fmt: skip


def require_room(program: bytes) -> None:
    """Raise UserError where a program is longer than the place for it."""
    room = SCRATCH - PROGRAM
    if len(program) > room:
        most = room // (USUAL_ENTRIES * stub.ENTRY)
        raise UserError(
            f"as a program the sequence has {len(program):,} bytes, and {room:,} fit, which are "
            f"about {most} operations: take some out of it"
        )


def call(name: str, *arguments: int) -> bytes:
    """Pack a system call of the machinery itself."""
    return stub.syscall(_SYS[name], *arguments)


def strings(texts: dict[str, str], offset: int) -> tuple[bytes, dict[str, int]]:
    """Lay out zero-terminated strings at an offset; return the bytes and each one's address."""
    data, where = b"", {}
    for name, text in texts.items():
        where[name] = RING + offset + len(data)
        data += text.encode() + b"\0"
    return data, where


PROC = {
    "smaps": "/proc/self/smaps", "pagemap": "/proc/self/pagemap", "status": "/proc/self/status",
    "maps": "/proc/self/maps",
    "clear_refs": "/proc/self/clear_refs", "oom_score_adj": "/proc/self/oom_score_adj",
}  # fmt: skip
PROC_STRINGS, PROC_AT = strings(PROC, STRINGS)
FILE_STRINGS = (STRINGS + len(PROC_STRINGS) + 63) & ~63


def control_words(has_scan_guard: bool = True) -> bytes:
    """Fill the control page: PAGEMAP_SCAN's argument, signal action and stack, no capability."""
    page = bytearray(CONTROL_SIZE)
    mask = REPORTED if has_scan_guard else REPORTED & ~GUARD
    any_of = mask & (PRESENT | SWAPPED | GUARD)
    told = (96, 0, 0, RING, 0, 0, MAX_REGIONS, 0, 0, 0, any_of)
    scan = struct.pack("<12Q", *told, mask)
    shown = mask & ~PRESENT | SOFT_DIRTY  # the stub reads what is PRESENT
    untouched = struct.pack("<12Q", *told, shown)
    flags = 0x4 | 0x0800_0000 | 0x0400_0000 | 0x4000_0000  # SIGINFO, ONSTACK, RESTORER, NODEFER
    action = struct.pack("<4Q", RING + stub.ON_SIGNAL, flags, 0, 0)  # which never returns
    own_line = f"{RING:x}-".encode().ljust(16)
    query = struct.pack("<13Q", 104, 0x10, *(0,) * 11)  # COVERING_OR_NEXT_VMA
    stack = struct.pack("<QQQ", RING + STACK, 0, STACK_SIZE)
    caps = struct.pack("<II", 0x2008_0522, 0) + bytes(24)
    for offset, data in (
        (SCAN_ARG, scan), (UNTOUCHED_SCAN_ARG, untouched), (SIGACTION, action), (SIGSTACK, stack),
        (CAPS, caps), (OWN_LINE, own_line), (MAP_QUERY, query), (STRINGS, PROC_STRINGS),
        (THREAD_SIGSTACKS, thread_stacks()),
    ):  # fmt: skip
        page[offset - CONTROL : offset - CONTROL + len(data)] = data
    return bytes(page)


def thread_stacks() -> bytes:
    """Pack a stack for each thread's signal handler, as sigaltstack takes them."""
    places = (RING + THREAD_STACKS + STACK_SIZE * number for number in range(MOST_THREADS))
    return b"".join(struct.pack("<QQQ", place, 0, STACK_SIZE) for place in places)


def boot(kept: Sequence[int]) -> bytes:
    """Make the program that turns a Python process into a bare one that runs what it is told.

    It installs the handler of SIGSEGV and SIGBUS, unmaps everything but the ring, gives up all
    capabilities (RLIMIT_MEMLOCK counts only then), and forks one runner per program. Of its
    descriptors beyond the small ones only those in `kept` stay open.
    """
    futex_wait, futex_wake, wall = 0, 1, 0x4000_0000
    before = [
        call("brk", 0),  # the heap ends where it began; the starter fills the address in
        call("prctl", 1, 9),  # PR_SET_PDEATHSIG SIGKILL: no orphan survives the parent
        call("sigaltstack", RING + SIGSTACK, 0),
        call("rt_sigaction", 11, RING + SIGACTION, 0, 8),
        call("rt_sigaction", 7, RING + SIGACTION, 0, 8),
        *(
            call("close_range", low + 1, high - 1, 0)
            for low, high in pairwise((SMAPS_FD - 1, *sorted(kept), 1 << 32))
            if low + 1 < high
        ),
        call("munmap", 0, RING),
        call("munmap", RING + RING_SIZE, TASK_SIZE - RING - RING_SIZE),
        call("capset", RING + CAPS, RING + CAPS + 8),
    ]
    top = RING + BOOT + len(before) * stub.ENTRY

    def at(index: int) -> int:
        return top + index * stub.ENTRY

    loop = [
        call("futex", RING + GO, futex_wait, 0, 0, 0, 0),
        stub.entry(stub.LOAD, RING + GO),
        stub.entry(stub.JUMP_IF_ZERO, at(0)),
        stub.entry(stub.STORE, RING + GO, 0),
        call("clone", 17, 0, 0, 0, 0),
        stub.entry(stub.JUMP_IF_ZERO, RING + PROGRAM),
        call("wait4", (1 << 64) - 1, RING + STATUS, wall, 0),
        stub.entry(stub.STORE, RING + DONE, 1),
        call("futex", RING + DONE, futex_wake, 1, 0, 0, 0),
        stub.entry(stub.JUMP, at(0)),
    ]
    program = b"".join(before + loop)
    assert len(program) <= MEETING - BOOT, "too many descriptors stay open"
    return program


POPULATE = call("madvise", RING, RING_SIZE, 22)
"""MADV_POPULATE_READ: a fault maps what lies around, and a shared page at once for writing too."""
PROC_FDS = (SMAPS_FD, PAGEMAP_FD, STATUS_FD, MAPS_FD)


def prelude() -> bytes:
    """Make the first entries of every program: map the ring's pages, seal it, open /proc/self."""
    return b"".join(
        [
            call("prctl", 1, 9),
            POPULATE,
            call("mseal", RING, RING_SIZE, 0),
            call("lseek", OUT_FD, 0, 0),
            keep_nothing(),
            open_proc(),
        ]
    )


def keep_nothing() -> bytes:
    """Forget what was observed last: whatever comes next is written down."""
    return b"".join(
        stub.entry(stub.STORE, RING + place, NOTHING_KEPT)
        + stub.entry(stub.STORE, RING + place + 8, room - 24)
        for place, room in KEPT.values()
    )


def open_proc() -> bytes:
    """Open what is observed, as the lowest free descriptors: PROC_FDS."""
    return b"".join(
        call("open", PROC_AT[name], 0) for name in ("smaps", "pagemap", "status", "maps")
    )


def observe(scan_arg: int = SCAN_ARG) -> bytes:
    """Make the three entries that write down the address space: counters, smaps, pages.

    Only what is not the same, byte for byte, as at the last time is written; the result of an entry
    is AS_BEFORE otherwise. Of smaps that is: how many bytes are as before at its beginning and at
    its end (SMAPS_HEAD), and what is between.
    """
    buffer, end, head = RING + BUFFER, RING + BUFFER + BUFFER_ROOM, SMAPS_HEAD.size
    smaps, pages, status = (RING + place for place, _ in KEPT.values())
    return b"".join(
        [
            stub.entry(
                stub.READ, STATUS_FD, BUFFER_ROOM, buffer, OUT_FD, 1, status, number=stub.OF_STATUS
            ),
            stub.entry(
                stub.SMAPS, SMAPS_FD, BUFFER_ROOM - head, buffer + head, OUT_FD, SMAPS_LIMIT, smaps,
                number=stub.IN_RECORDS,
            ),
            stub.entry(stub.SCAN, PAGEMAP_FD, RING + scan_arg, buffer, OUT_FD, end, pages),
        ]
    )  # fmt: skip


OBSERVE = observe()
OBSERVE_UNTOUCHED = observe(UNTOUCHED_SCAN_ARG)
"""The same, but that no page is read: it does not count as used."""
PRELUDE = prelude()
EXIT = call("exit_group", 0)
