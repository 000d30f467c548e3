"""From a sequence of operations to the program that a bare process runs, and back to outcomes.

Every operation becomes a few entries of the stub and three that observe the address space after it.
The places of all results are known when the program is built, so reading them is indexing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from zaplock import advice
from zaplock.model.flags import MAP_HUGE_SHIFT
from zaplock.oracle import ops, ring, stub
from zaplock.oracle.ksm import SETTINGS
from zaplock.oracle.ops import Op, Ref
from zaplock.protocols.memory_group import BY_ADVICE, BY_MMAP

_E = stub.ENTRY
_MASK = (1 << 64) - 1
_OPEN, _CLOSE, _MEMFD, _PWRITE, _FTRUNCATE, _WRITE = 2, 3, 319, 18, 77, 1
_CLONE, _WAIT4, _PRLIMIT, _IOCTL, _UFFD, _PIDFD, _GETPID = 56, 61, 302, 16, 323, 434, 39
_MMAP = 9
_DUP, _DUP2, _NANOSLEEP, _FCNTL, _PRCTL = 32, 33, 35, 72, 157
_F_ADD_SEALS, _MFD_ALLOW_SEALING, _MFD_HUGETLB = 1033, 2, 4
_SET_AFFINITY = 203
_PREAD, _FUTEX, _FUTEX_CMP_REQUEUE = 17, 202, 4
OPTIONS = {"set_mdwe": 65, "set_thp_disable": 41, "set_memory_merge": 67}
"""The options of prctl that are operations."""
_RDWR, _CREAT, _EXCL = 2, 0o100, 0o200
_OPENAT, _UNLINKAT, _FALLOCATE, _FSTATFS = 257, 263, 285, 138
_BFREE = 24  # where statfs says it, in bytes
MAX_SEEN = ring.SCRATCH_SIZE
MOST_COPIED = 8 * ring.PAGE  # bytes that process_vm_readv and _writev have a place for

UFFD_FD = ring.FIRST_FILE_FD + len(ops.FILES)
PID_FD = UFFD_FD + 1
RING_FD = PID_FD + 1
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_UFFDIO_COPY, _UFFDIO_MOVE = 0xC028AA03, 0xC028AA05
_FILLS = {"uffd_zeropage": 0xC020AA04, "uffd_continue": 0xC020AA07, "uffd_poison": 0xC020AA08,
          "uffd_writeprotect": 0xC018AA06}  # fmt: skip
_UFFD_FEATURE_SIGBUS = 1 << 7
_SHMGET, _SHMAT, _SHMCTL, _SHMDT = 29, 30, 31, 67
_IPC_PRIVATE, _IPC_RMID = 0, 0
_URING_SETUP, _URING_REGISTER, _URING_PARAMETERS = 425, 427, 120
_IORING_REGISTER_BUFFERS, _IORING_UNREGISTER_BUFFERS = 0, 1


MARK = stub.syscall(12, 0) + stub.syscall(27, ring.RING, 1, ring.RING + ring.SCRATCH)
"""brk(0) and a mincore of the ring: the lock for write, then for read, and nothing is changed."""


class Place(NamedTuple):
    """Where an operation's results are: offsets of entries in the program, in bytes.

    `seen`: the entry that copies mincore's vector; `child`: the first of the three that observe
    in a forked child; `after`: the first of the three that observe afterwards. -1: there is none.
    """

    result: int
    seen: int
    child: int
    after: int


class BareProgram(NamedTuple):
    """The bytes of a program and where in it each operation's results will be."""

    code: bytes
    places: tuple[Place, ...]
    baseline: int


class KsmNames(NamedTuple):
    """Where in the ring the names of KSM's files are."""

    run: int
    scans: int
    zero_pages: int
    most: int


class ProgramNames(NamedTuple):
    """What programs must know: where in the ring the files' names are, and max_map_count.

    `huge_files`: the names of those of huge pages, by slot. `mounts`: descriptors of ops.MOUNTS.
    `filled`: the name of the descriptor by which the read-only file is filled. `cpu`: where a
    sequence runs whose lazily free or used pages are counted; -1: none are. `settles`: there is
    swap, so pages go on being written after MADV_PAGEOUT has returned.
    """

    files: tuple[int, ...]
    filled: int
    meminfo: int
    ksm: KsmNames
    max_map_count: int
    huge_files: dict[int, int]
    mounts: tuple[int, ...] = ()
    cpu: int = -1
    settles: bool = False


class Look(NamedTuple):
    """What a program does to show something before its operations, and after each of them."""

    before: bytes
    after: bytes
    needs_meminfo: bool = False


OBSERVING = Look(ring.OBSERVE, ring.OBSERVE)
UNTOUCHED = Look(ring.OBSERVE_UNTOUCHED, ring.OBSERVE_UNTOUCHED)
"""As OBSERVING, where it is compared which pages were used."""
MARKING = Look(stub.syscall(_GETPID), MARK)
"""Nothing but the operations takes the mmap_lock, except that MARK after each shows its end."""

HUGE_FILE_FDS = 47  # and the slot
KSM_ZERO_PAGES_FD, KSM_MOST_FD, MEMINFO_FD, KSM_RUN_FD, KSM_SCANS_FD, CLEAR_REFS_FD = range(58, 64)
SCANS, SCANS_OF_HUGE = 3, 8
"""How often ksmd scans: once for the checksums, once to merge, and once more to be sure.

It splits one huge page of zeros in each scan; more of them wait for the next.
"""
PAUSE_NS = 200_000
_MEMINFO = stub.entry(
    stub.READ, MEMINFO_FD, ring.BUFFER_ROOM, ring.RING + ring.BUFFER, ring.OUT_FD, 1
)
COMMITTED = Look(_MEMINFO, _MEMINFO, True)
"""The whole machine's /proc/meminfo, for Committed_AS."""


class Builder:
    """Append entries; `here` is where the next one will be (an offset from the program's start)."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.here = 0
        self.segment = -1  # the entry that has made System V shared memory, if one has
        self.observes = ring.OBSERVE  # how a forked child looks at itself
        self.scans = SCANS  # of ksmd's, in each operation
        self.has_pidfd = False

    def add(self, *entries: bytes) -> int:
        """Append entries (each a multiple of an entry long); return where the first one is."""
        first = self.here
        for part in entries:
            self.parts.append(part)
            self.here += len(part)
        return first

    def add_one(self, entry: bytes) -> int:
        """Append one entry; return where it is."""
        first = self.here
        self.parts.append(entry)
        self.here = first + _E
        return first


def address(offset: int) -> int:
    """Return where an entry of the program is in the child."""
    return ring.RING + ring.PROGRAM + offset


def build(sequence: Sequence[Op], names: ProgramNames, look: Look = OBSERVING) -> BareProgram:
    """Make the program of a sequence: set-up, operations, each looked at, and the exit."""
    references = ops.shows_references(sequence)
    if look is not OBSERVING or not (references or ops.shows_lazyfree(sequence)):
        names = names._replace(cpu=-1)
    build_into = Builder()
    if look is OBSERVING and references:
        look, build_into.observes = UNTOUCHED, ring.OBSERVE_UNTOUCHED
    used = {op.name for op in sequence}
    if not used.isdisjoint(_OF_KSM) and any(ops.makes_huge(op) for op in sequence):
        build_into.scans = SCANS_OF_HUGE
    begin(build_into, sequence, names, look)
    baseline = build_into.add(look.before)
    results: list[int] = []
    places = []
    after = (DRAIN if names.cpu >= 0 else b"") + look.after
    drained = len(after) - len(look.after)
    for index, op in enumerate(sequence):
        result, seen, child = operation(build_into, index, op, results, names)
        results.append(result)
        places.append(Place(result, seen, child, build_into.add(after) + drained))
    if build_into.segment >= 0:
        _of_segment(build_into, Op("shmctl", (0, _IPC_RMID, 0)), _SHMCTL, results)
    if not used.isdisjoint(ops.KSM_WRITES):
        _begin_ksm(build_into)
    build_into.add(ring.EXIT)
    return BareProgram(b"".join(build_into.parts), tuple(places), baseline)


def begin(build_into: Builder, sequence: Sequence[Op], names: ProgramNames, look: Look) -> None:
    """Append the set-up: the ring, and the files that operations of the sequence need.

    Descriptors are always the same: where nothing is needed, the number is kept for it.
    """
    build_into.add(ring.PRELUDE)
    if names.cpu >= 0:
        _stay_on(build_into, names.cpu)
    used = {op.name for op in sequence}
    filled = ops.slots_used(sequence)
    needed = {fd for name, fd in _ON_DESCRIPTOR.items() if name in used}
    if filled or needed:
        build_into.add(_open_files(names.files, names.filled, filled))
    for fd, opening in _OPENINGS.items():
        if fd in needed:
            opening(build_into)
        elif fd < max(needed, default=0):
            build_into.add(_KEEP_NUMBER)
    for slot in sorted(filled & ops.HUGE_FILES.keys()):
        _open_huge(build_into, slot, names)
    if used & {"shmat", "shmdt"}:
        size = ops.SEGMENT_PAGES * ring.PAGE
        build_into.segment = build_into.add(stub.syscall(_SHMGET, _IPC_PRIVATE, size, 0o700))
    if look.needs_meminfo:
        _open_as(build_into, MEMINFO_FD, names.meminfo, 0)
    if used & _OF_KSM:
        _open_as(build_into, KSM_RUN_FD, names.ksm.run, 1)
        _open_as(build_into, KSM_SCANS_FD, names.ksm.scans, 0)
        _open_as(build_into, KSM_ZERO_PAGES_FD, names.ksm.zero_pages, 1)
        _open_as(build_into, KSM_MOST_FD, names.ksm.most, 1)
        _begin_ksm(build_into)


_OF_KSM = {"ksm_scan", *ops.KSM_WRITES}


def _begin_ksm(b: Builder) -> None:
    """Append what lets KSM be as every sequence finds it, also where an earlier one was killed."""
    for run in "20":  # what was merged is undone and forgotten, and ksmd at rest
        _write_number(b, KSM_RUN_FD, run)
    _write_number(b, KSM_ZERO_PAGES_FD, str(SETTINGS["use_zero_pages"]))
    _write_number(b, KSM_MOST_FD, str(SETTINGS["max_page_sharing"]))


def _write_number(b: Builder, fd: int, number: str) -> int:
    """Append what writes a number to a file; return where its result is."""
    text, place = number.encode(), ring.RING + ring.SCRATCH + 24
    for at in range(0, len(text), 8):
        word = int.from_bytes(text[at : at + 8], "little")
        b.add(stub.entry(stub.STORE, place + at, word))
    return b.add(stub.syscall(_PWRITE, fd, place, len(text), 0))


def _stay_on(b: Builder, cpu: int) -> None:
    """Append what keeps a process on one CPU: each has lists of its own of pages to work off."""
    mask, words = ring.RING + ring.SCRATCH, cpu // 64 + 1
    b.add(*(stub.entry(stub.STORE, mask + 8 * k, 0) for k in range(words - 1)))
    b.add(stub.entry(stub.STORE, mask + 8 * (words - 1), 1 << cpu % 64))
    b.add(stub.syscall(_SET_AFFINITY, 0, 8 * words, mask))


DRAIN = ring.call("madvise", ring.RING + ring.SCRATCH, ring.PAGE, advice.MADV_COLD)
"""Has the CPU work off its lists of pages (lru_add_drain), and does nothing else that shows.

It comes after each operation where it shows what is on such a list. What MADV_FREE has put there is
not lazily free yet; and a list holds its pages, so that wp_can_reuse_anon_folio (mm/memory.c) takes
one that nobody else has for shared, and it is copied. MADV_COLD lists what is active, under MGLRU
(Debian's kernels) every page: folio_deactivate, mm/swap.c. A list is worked off when 31 pages are
on it or something has it done, so which page is copied would be a matter of time.
"""


def _open_huge(b: Builder, slot: int, names: ProgramNames) -> None:
    """Append what makes a file of huge pages: a memfd, or one on a mount that has no name any more.

    The mount is there for all sequences; what they had of it goes with their files.
    """
    name = names.huge_files[slot]
    if slot in ops.MOUNT_OF:
        mount = names.mounts[ops.MOUNT_OF[slot]]
        opened = b.add(stub.syscall(_OPENAT, mount, name, _RDWR | _CREAT | _EXCL, 0o600))
        b.add(stub.syscall(_UNLINKAT, mount, name, 0))
    else:
        flags = _MFD_HUGETLB | ops.HUGE_FILES[slot][1].bit_length() - 1 << MAP_HUGE_SHIFT
        opened = b.add(stub.syscall(_MEMFD, name, flags))
    _number_as(b, opened, HUGE_FILE_FDS + slot)


def _open_as(b: Builder, fd: int, name: int, flags: int) -> None:
    """Append what opens a file under a number of one's own; the lowest free one stays open."""
    _number_as(b, b.add(stub.syscall(_OPEN, name, flags)), fd)


def _number_as(b: Builder, opened: int, fd: int) -> None:
    """Append what gives the descriptor that the entry `opened` is to return another number, too."""
    target = address(b.here + _E + 8)
    b.add(stub.entry(stub.PATCH, target, address(opened + stub.RESULT), 0))
    b.add(stub.syscall(_DUP2, 0, fd))


_KEEP_NUMBER = stub.syscall(_DUP, ring.OUT_FD)
"""Takes the lowest free number, which is the next."""


@cache
def _open_files(names: tuple[int, ...], writable: int, filled: frozenset[int]) -> bytes:
    """Open and fill the files that are named, as known descriptors.

    `names`: where each one's name is; `writable`: and that of the descriptor by which the read-only
    one is filled.
    """
    parts = []
    for slot, name in enumerate(ops.FILES):
        at = names[slot]
        if slot not in filled:
            parts.append(_KEEP_NUMBER)
            continue
        if name == "zero":
            parts.append(stub.syscall(_OPEN, at, _RDWR))
        elif name == "disk":
            # Cut to a byte: ext4 writes a file that was cut to nothing to its disk when it closes.
            parts.append(stub.syscall(_OPEN, at, _RDWR))
            parts.append(stub.syscall(_FTRUNCATE, ring.FIRST_FILE_FD + slot, 1))
        else:
            parts.append(stub.syscall(_MEMFD, at, _MFD_ALLOW_SEALING))
        parts.append(_fill(slot))
    opened = ring.FIRST_FILE_FD + ops.READ_ONLY_SLOT
    if ops.READ_ONLY_SLOT in filled:
        parts += [  # again, for reading only, in its own place
            stub.syscall(_OPEN, writable, 0),
            stub.syscall(_DUP2, opened + 1, opened),
            stub.syscall(_CLOSE, opened + 1),
        ]
    return b"".join(parts)


def _open_uffd(b: Builder) -> None:
    """Append what opens a userfaultfd."""
    api = ring.RING + ring.SCRATCH
    b.add(
        stub.syscall(_UFFD, 0o4000 | 1),  # O_NONBLOCK, UFFD_USER_MODE_ONLY
        stub.entry(stub.STORE, api, 0xAA),
        stub.entry(stub.STORE, api + 8, _UFFD_FEATURE_SIGBUS),
        stub.entry(stub.STORE, api + 16, 0),
        stub.syscall(_IOCTL, UFFD_FD, _UFFDIO_API, api),
    )


def _open_uring(b: Builder) -> None:
    """Append what makes an io_uring of one entry."""
    at = ring.RING + ring.SCRATCH
    b.add(*(stub.entry(stub.STORE, at + k, 0) for k in range(0, _URING_PARAMETERS, 8)))
    b.add(stub.syscall(_URING_SETUP, 1, at))


def _fill(slot: int) -> bytes:
    if not ops.FILE_PAGES[slot]:
        return b""
    fd, source = ring.FIRST_FILE_FD + slot, ring.RING + ring.PATTERN
    parts = [stub.syscall(_FTRUNCATE, fd, ops.FILE_PAGES[slot] * ring.PAGE)]
    for page in ops.written_pages(slot):
        parts.append(stub.entry(stub.STORE, source, ops.file_tag(slot, page)))
        parts.append(stub.syscall(_PWRITE, fd, source, 8, page * ring.PAGE))
    return b"".join(parts)


def operation(
    b: Builder, index: int, op: Op, results: list[int], names: ProgramNames
) -> tuple[int, int, int]:
    """Append one operation; return the places of its result, vector and child (or -1)."""
    name = op.name
    settles = names.settles and is_pageout(op)
    if name in _CALLED and not settles:
        result = _with_refs(b, op, _entry(index, op), results)
        return result, _seen(b, op) if name == "mincore" else -1, -1
    if name == "fork":
        return _fork(b)
    if name == "into_child":
        return _into_child(b), -1, -1
    if settles:
        b.add(DRAIN_ALL)
    result = _one(b, index, op, results, names)
    if settles:
        _settle(b, index, op, results, names)
    return result, -1, -1


def _one(b: Builder, index: int, op: Op, results: list[int], names: ProgramNames) -> int:
    """Append what one operation does; return the place of its result."""
    if op.name in _CALLED:
        return _with_refs(b, op, _entry(index, op), results)
    arguments = _arguments(index, op)
    if op.name == "crowd":
        return _crowd(b, names.max_map_count - 1 - arguments[0])
    return _COMPOSED[op.name](b, op, arguments, results)


def _arguments(index: int, op: Op) -> list[int]:
    """Return an operation's arguments as words, 0 in the place of what is not known yet."""
    arguments = [value & _MASK if isinstance(value, int) else 0 for value in op.args]
    if op.name in ops.TAKES_FILE:
        at = ops.TAKES_FILE[op.name]
        arguments[at] = _descriptor(op.args[at])
    if op.name in ops.WRITERS:
        arguments.append(ops.store_tag(index))
    return arguments


def _entry(index: int, op: Op) -> bytes:
    """Pack an operation of _CALLED."""
    handler, number, more = _CALLED[op.name]
    return stub.entry(handler, *_arguments(index, op), *more, number=number)


def is_pageout(op: Op) -> bool:
    """Tell whether an operation pages memory out."""
    return op.name in ("madvise", "process_madvise") and op.args[2] == advice.MADV_PAGEOUT


DRAIN_ALL = stub.syscall(279, 0, 0, 0, ring.RING + ring.SCRATCH, ring.RING + ring.SCRATCH, 2)
"""move_pages of no page: before anything else it empties the LRU batches of every CPU.

A page whose writing has ended, on whichever CPU that was, is in a batch of that CPU's, which holds
it: MADV_PAGEOUT, which empties its own CPU's batches only, would unmap such a page and keep it.
"""

SETTLING_NS = (200_000, 1_000_000, 4_000_000)
"""How long a paging out waits before each of its repetitions."""


def _settle(b: Builder, index: int, op: Op, results: list[int], names: ProgramNames) -> None:
    """Append what pages out again what was still being written when it was paged out.

    A page that comes back from swap before it is written there can't go there again until it is.
    """
    at = ring.RING + ring.SCRATCH
    for wait_ns in SETTLING_NS:
        b.add(stub.entry(stub.STORE, at, 0), stub.entry(stub.STORE, at + 8, wait_ns))
        b.add(stub.syscall(_NANOSLEEP, at, 0), DRAIN_ALL)
        _one(b, index, op, results, names)


def _descriptor(slot: int | Ref) -> int:
    assert isinstance(slot, int), slot
    if slot in ops.HUGE_FILES:
        return HUGE_FILE_FDS + slot
    return slot & _MASK if slot < 0 else ring.FIRST_FILE_FD + slot


def _with_refs(b: Builder, op: Op, entry: bytes, results: list[int]) -> int:
    """Append an entry, before it the patches that put earlier results into its arguments."""
    if Ref not in map(type, op.args):
        return b.add_one(entry)
    refs = [(k, value) for k, value in enumerate(op.args) if isinstance(value, Ref)]
    target = b.here + len(refs) * _E
    for k, ref in refs:
        source = address(results[ref.op] + stub.RESULT)
        b.add(stub.entry(stub.PATCH, address(target + 8 + 8 * k), source, ref.delta & _MASK))
    return b.add_one(entry)


def _store_word(b: Builder, place: int, word: ops.Argument, results: list[int]) -> None:
    """Append what puts an argument, perhaps an earlier result, where a call is to read it."""
    value = word & _MASK if isinstance(word, int) else 0
    _with_refs(b, Op("store", (place, word)), stub.entry(stub.STORE, place, value), results)


def _seen(b: Builder, op: Op) -> int:
    """Append what writes mincore's vector down; return where, or -1."""
    length = op.args[1]
    pages = (int(length) + ring.PAGE - 1) // ring.PAGE if isinstance(length, int) else 0
    if not 0 < pages <= MAX_SEEN:
        return -1
    return b.add(stub.syscall(_WRITE, ring.OUT_FD, ring.RING + ring.SCRATCH, pages))


def _fork(b: Builder) -> tuple[int, int, int]:
    """Append a fork whose child writes down its address space and exits; the parent waits."""
    child_code = _OF_CHILD + b.observes + ring.EXIT
    clone = b.here
    child = clone + 4 * _E
    b.add(
        stub.syscall(_CLONE, 17),
        stub.entry(stub.JUMP_IF_ZERO, address(child)),
        stub.syscall(_WAIT4, _MASK, ring.RING + ring.FORK_STATUS, 0x4000_0000, 0),
        stub.entry(stub.JUMP, address(child + len(child_code))),
        child_code,
    )
    return clone, -1, child + len(_OF_CHILD)


_OF_CHILD = b"".join(
    [ring.POPULATE, *(ring.call("close", fd) for fd in ring.PROC_FDS), ring.open_proc()]
)
"""What a child begins with: its own page tables of the ring, its own files of /proc/self."""


def _into_child(b: Builder) -> int:
    """Append a fork whose child goes on; the parent waits for its end, and ends with 1 if it fails.

    The child's own forks write the same word of the ring, but before that end.
    """
    status = ring.RING + ring.FORK_STATUS
    b.add(stub.entry(stub.STORE, status, 1))
    clone = b.here
    child = clone + 7 * _E
    b.add(
        stub.syscall(_CLONE, 17),
        stub.entry(stub.JUMP_IF_ZERO, address(child)),
        stub.syscall(_WAIT4, _MASK, status, 0x4000_0000, 0),
        stub.entry(stub.LOAD, status),
        stub.entry(stub.JUMP_IF_ZERO, address(clone + 6 * _E)),
        ring.call("exit_group", 1),
        ring.EXIT,
        ring.call("prctl", 1, 9),  # PR_SET_PDEATHSIG SIGKILL, which a fork does not inherit
        _OF_CHILD,
    )
    if b.has_pidfd:
        b.add(ring.call("close", PID_FD))
        _open_pidfd(b)
    return clone


def _open_pidfd(b: Builder) -> None:
    """Append what opens the process itself, as PID_FD if that is the next."""
    b.has_pidfd = True
    pid = b.add(stub.syscall(_GETPID))
    target = address(pid + 2 * _E + 8)
    b.add(stub.entry(stub.PATCH, target, address(pid + stub.RESULT), 0))
    b.add(stub.syscall(_PIDFD, 0, 0))


_OPENINGS = {UFFD_FD: _open_uffd, PID_FD: _open_pidfd, RING_FD: _open_uring}
_ON_DESCRIPTOR = {
    **dict.fromkeys(
        ("uffd_register", "uffd_unregister", "uffd_copy", "uffd_move", *_FILLS), UFFD_FD
    ),
    "process_madvise": PID_FD,
    "uring_register": RING_FD,
}
"""Operations on a descriptor that is no file's."""


def _crowd(b: Builder, count: int) -> int:
    """Map `count` pages with nothing allowed, then let every other one be read: so many VMAs."""
    counter = ring.RING + ring.SCRATCH
    b.add(stub.syscall(9, ops.CROWD, count * ring.PAGE, 0, 0x4032, _MASK, 0))
    b.add(stub.entry(stub.STORE, counter, count // 2))
    first = b.here
    own = address(first) + 8
    b.add(
        stub.syscall(10, ops.CROWD + ring.PAGE, ring.PAGE, 1),
        stub.entry(stub.PATCH, own, own, 2 * ring.PAGE),
        stub.entry(stub.PATCH, counter, counter, _MASK),
        stub.entry(stub.LOAD, counter),
        stub.entry(stub.JUMP_IF_ZERO, address(first) + 6 * _E),
        stub.entry(stub.JUMP, address(first)),
    )
    return first


def _setrlimit(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    resource, soft = arguments
    at = ring.RING + ring.RLIMIT
    b.add(stub.syscall(_PRLIMIT, 0, resource, 0, at))
    b.add(stub.entry(stub.STORE, at, soft))
    return b.add(stub.syscall(_PRLIMIT, 0, resource, at, 0))


def _process_madvise(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    _, length, advice = arguments
    at = ring.RING + ring.SCRATCH
    _store_word(b, at, op.args[0], results)
    b.add(stub.entry(stub.STORE, at + 8, length))
    return b.add(stub.syscall(ops.CALLS[op.name][0], PID_FD, at, 1, advice, 0))


def _mbind(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Append an mbind whose mask of nodes is one word."""
    start, length, mode, nodes, flags = arguments
    at = ring.RING + ring.SCRATCH
    b.add(stub.entry(stub.STORE, at, nodes))
    call = stub.syscall(ops.CALLS[op.name][0], start, length, mode, at, 64, flags)
    return _with_refs(b, op, call, results)


def _remote(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Copy between the process's memory, taken for another's, and a page, as often as it takes."""
    remote, page = ring.RING + ring.SCRATCH, ring.RING + ring.PATTERN
    length = arguments[1]
    _store_word(b, remote, op.args[0], results)
    b.add(stub.entry(stub.STORE, remote + 8, length))
    if op.name == "process_vm_writev":
        b.add(stub.entry(stub.STORE, page, arguments[2]))
    full, rest = divmod(min(length, MOST_COPIED), ring.PAGE)
    parts = [ring.PAGE] * full + [rest] * bool(rest)
    local = remote + 16
    for number, part in enumerate(parts):
        at = local + 16 * number
        b.add(stub.entry(stub.STORE, at, page), stub.entry(stub.STORE, at + 8, part))
    pid = b.add(stub.syscall(_GETPID))
    b.add(stub.entry(stub.PATCH, address(pid + 2 * _E + 8), address(pid + stub.RESULT), 0))
    return b.add(stub.syscall(ops.CALLS[op.name][0], 0, local, len(parts), remote, 1, 0))


def _userfault(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    at = ring.RING + ring.SCRATCH
    _store_word(b, at, op.args[0], results)
    b.add(stub.entry(stub.STORE, at + 8, arguments[1]))
    if op.name == "uffd_unregister":
        return b.add(stub.syscall(_IOCTL, UFFD_FD, _UFFDIO_UNREGISTER, at))
    b.add(stub.entry(stub.STORE, at + 16, arguments[2]), stub.entry(stub.STORE, at + 24, 0))
    return b.add(stub.syscall(_IOCTL, UFFD_FD, _UFFDIO_REGISTER, at))


def _fill_userfault(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Answer a fault that nobody has had: UFFDIO_COPY of a page, _ZEROPAGE, _CONTINUE and so on."""
    at, page = ring.RING + ring.SCRATCH, ring.RING + ring.PATTERN
    _store_word(b, at, op.args[0], results)
    rest: list[ops.Argument]
    if op.name == "uffd_copy":
        rest, command = [page, ring.PAGE, arguments[1], 0], _UFFDIO_COPY
        b.add(stub.entry(stub.STORE, page, arguments[2]))
    elif op.name == "uffd_move":
        rest, command = [op.args[2], arguments[1], arguments[3], 0], _UFFDIO_MOVE
    else:
        rest, command = [arguments[1], arguments[2], 0], _FILLS[op.name]
    for k, word in enumerate(rest, 1):
        _store_word(b, at + 8 * k, word, results)
    return b.add(stub.syscall(_IOCTL, UFFD_FD, command, at))


def _uring_register(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    at = ring.RING + ring.SCRATCH
    _store_word(b, at, op.args[0], results)
    b.add(stub.entry(stub.STORE, at + 8, arguments[1]))
    result = b.add(stub.syscall(_URING_REGISTER, RING_FD, _IORING_REGISTER_BUFFERS, at, 1))
    b.add(stub.syscall(_URING_REGISTER, RING_FD, _IORING_UNREGISTER_BUFFERS, 0, 0))
    return result


def _add_seals(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return b.add(stub.syscall(_FCNTL, arguments[0], _F_ADD_SEALS, arguments[1]))


def _clear_refs(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Write to clear_refs, which the process opens for that: a forked one has its own.

    Clearing accessed bits flushes no TLB, and what a CPU has in there it does not note again. So a
    4 is written as well, for its flush of everything.
    """
    (kind,) = op.args
    text, opened = (
        ring.RING + ring.SCRATCH,
        b.add(stub.syscall(_OPEN, ring.PROC_AT["clear_refs"], 1)),
    )
    b.add(stub.entry(stub.PATCH, address(opened + 2 * _E + 8), address(opened + stub.RESULT), 0))
    b.add(stub.syscall(_DUP2, 0, CLEAR_REFS_FD))
    b.add(stub.entry(stub.PATCH, address(opened + 4 * _E + 8), address(opened + stub.RESULT), 0))
    b.add(stub.syscall(_CLOSE, 0))
    written = b""
    result = -1
    for number in (kind, 4) if kind in (1, 2, 3) else (kind,):
        written = str(number).encode()
        b.add(stub.entry(stub.STORE, text, int.from_bytes(written, "little")))
        at = b.add(stub.syscall(_PWRITE, CLEAR_REFS_FD, text, len(written), 0))
        result = at if result < 0 else result
    return result


def _fill_memory(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Append a fork whose child fills memory; the parent waits for its end, which is the result.

    The child offers itself to the OOM killer, before all others of its group.
    """
    size, how = arguments
    status = ring.RING + ring.FORK_STATUS
    flags = 0x22 | (0x8000 if how == BY_MMAP else 0)
    advice_given = {BY_ADVICE: (advice.MADV_POPULATE_WRITE,), BY_MMAP: ()}.get(
        how, (advice.MADV_HUGEPAGE, advice.MADV_POPULATE_WRITE)
    )
    child = Builder()
    first = b.here + 4 * _E  # behind the parent's entries

    def with_result(of: int, entry: bytes) -> None:
        """Append an entry whose first argument is the result of an earlier one."""
        target = address(first + _E + child.here + _E + 8)
        child.add(stub.entry(stub.PATCH, target, address(first + _E + of + stub.RESULT), 0), entry)

    text = ring.RING + ring.SCRATCH
    child.add(ring.call("prctl", 1, 9))
    opened = child.add(stub.syscall(_OPEN, ring.PROC_AT["oom_score_adj"], 1))
    child.add(stub.entry(stub.STORE, text, int.from_bytes(b"1000", "little")))
    with_result(opened, stub.syscall(_PWRITE, 0, text, 4, 0))
    mapped = child.add(stub.syscall(_MMAP, 0, size, 3, flags, _MASK, 0))
    for given in advice_given:
        with_result(mapped, ring.call("madvise", 0, size, given))
    code = b"".join(child.parts) + ring.EXIT
    b.add(stub.entry(stub.STORE, status, 0), stub.syscall(_CLONE, 17))
    b.add(stub.entry(stub.JUMP_IF_ZERO, address(first + _E)))
    b.add(stub.syscall(_WAIT4, _MASK, status, 0x4000_0000, 0))
    b.add(stub.entry(stub.JUMP, address(first + _E + len(code))), code)
    return b.add(stub.entry(stub.LOAD, status))


def _huge_fallocate(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return b.add(stub.syscall(_FALLOCATE, *arguments))


def _huge_room(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    at = ring.RING + ring.SCRATCH
    b.add(stub.syscall(_FSTATFS, arguments[0], at))
    return b.add(stub.entry(stub.LOAD, at + _BFREE))


def _ksm_scan(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Let ksmd run until it has scanned everything so often, which its count of scans tells.

    The count is text of up to eight digits, compared in two halves with what it was before.
    """
    text, other, before, _, pause = (ring.RING + ring.SCRATCH + 8 * k for k in range(5))
    b.add(stub.entry(stub.STORE, pause, 0), stub.entry(stub.STORE, pause + 8, PAUSE_NS))
    b.add(stub.entry(stub.STORE, before, 0))
    b.add(stub.syscall(_PREAD, KSM_SCANS_FD, before, 8, 0))
    _write_number(b, KSM_RUN_FD, "1")
    for _ in range(b.scans):
        loop = b.here + 2 * _E
        first, second = loop + 3 * _E, loop + 6 * _E
        for compared, half in ((first, before), (second, before + 4)):
            b.add(stub.entry(stub.PATCH, address(compared) + 48, half, 0))
        b.add(stub.syscall(_NANOSLEEP, pause, 0), stub.entry(stub.STORE, text, 0))
        b.add(stub.syscall(_PREAD, KSM_SCANS_FD, text, 8, 0))
        b.add(stub.syscall(_FUTEX, text, _FUTEX_CMP_REQUEUE, 0, 0, other, 0))
        b.add(stub.entry(stub.JUMP_IF_ZERO, address(second)))
        b.add(stub.entry(stub.JUMP, address(second + 2 * _E)))
        b.add(stub.syscall(_FUTEX, text + 4, _FUTEX_CMP_REQUEUE, 0, 0, other, 0))
        b.add(stub.entry(stub.JUMP_IF_ZERO, address(loop)))
        b.add(stub.entry(stub.PATCH, before, text, 0))
    _write_number(b, KSM_RUN_FD, "0")
    return b.add(stub.entry(stub.STORE, pause, 0))


def _ksm_unmerge(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    result = _write_number(b, KSM_RUN_FD, "2")
    _write_number(b, KSM_RUN_FD, "0")
    return result


def _ksm_zero_pages(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return _write_number(b, KSM_ZERO_PAGES_FD, str(arguments[0]))


def _ksm_most(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return _write_number(b, KSM_MOST_FD, str(arguments[0]))


def _prctl(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    told = (*arguments, 0, 0, 0)[:4]
    return b.add(stub.syscall(_PRCTL, OPTIONS[op.name], *told))


def _shmat(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return _of_segment(b, Op("shmat", (0, *op.args)), _SHMAT, results)


def _shmdt(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return _with_refs(b, op, stub.syscall(_SHMDT, *arguments), results)


def _of_segment(b: Builder, op: Op, number: int, results: list[int]) -> int:
    """Append a system call whose first argument is the segment's id, not known before."""
    refs = sum(isinstance(value, Ref) for value in op.args)
    target = address(b.here + (1 + refs) * _E + 8)
    b.add(stub.entry(stub.PATCH, target, address(b.segment + stub.RESULT), 0))
    told = [value & _MASK if isinstance(value, int) else 0 for value in op.args]
    return _with_refs(b, op, stub.syscall(number, *told), results)


_COMPOSED = {
    "mbind": _mbind,
    "uring_register": _uring_register,
    "setrlimit": _setrlimit,
    "process_madvise": _process_madvise,
    "process_vm_readv": _remote,
    "process_vm_writev": _remote,
    "add_seals": _add_seals,
    "set_mdwe": _prctl,
    "set_thp_disable": _prctl,
    "set_memory_merge": _prctl,
    "clear_refs": _clear_refs,
    "fill_memory": _fill_memory,
    "huge_fallocate": _huge_fallocate,
    "huge_room": _huge_room,
    "ksm_scan": _ksm_scan,
    "ksm_unmerge": _ksm_unmerge,
    "ksm_zero_pages": _ksm_zero_pages,
    "ksm_most": _ksm_most,
    "uffd_register": _userfault,
    "uffd_unregister": _userfault,
    "uffd_copy": _fill_userfault,
    "uffd_move": _fill_userfault,
    **dict.fromkeys(_FILLS, _fill_userfault),
    "shmat": _shmat,
    "shmdt": _shmdt,
}

_TO_SCRATCH = (ring.RING + ring.SCRATCH,)
_CALLED: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "load": (stub.TOUCH_LOAD, 0, ()),
    "store": (stub.TOUCH_STORE, 0, ()),
    "store_value": (stub.TOUCH_STORE, 0, ()),
    **{
        name: (stub.SYSCALL, number, _TO_SCRATCH if name == "mincore" else ())
        for name, (number, _) in ops.CALLS.items()
        if name not in _COMPOSED
    },
}
"""Operations of one entry: its handler, the system call's number, arguments behind their own."""
