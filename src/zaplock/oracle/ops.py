"""What the oracle compares: operations, their outcomes, and snapshots of an address space.

Both sides of the comparison implement `Side`. A sequence is replayable on its own: an argument is
a number or a `Ref` to the result of an earlier operation of the same sequence, so the addresses
that a kernel chooses need not be known beforehand.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple, Protocol

from zaplock import advice
from zaplock.model.flags import EHWPOISON
from zaplock.model.shared_folios import Sizes
from zaplock.system_calls import SYSTEM_CALLS, as_int


class Ref(NamedTuple):
    """The result of operation number `op` plus `delta`; an address that a kernel chose."""

    op: int
    delta: int = 0


Argument = int | Ref


class Op(NamedTuple):
    """One operation: a name of `CALLS` or `ACCESSES`, and its arguments in the call's order."""

    name: str
    args: tuple[Argument, ...] = ()

    def __str__(self) -> str:
        shown = (f"op{a.op}+{a.delta:#x}" if isinstance(a, Ref) else _number(a) for a in self.args)
        return f"{self.name}({', '.join(shown)})"


def _number(value: int) -> str:
    return str(value) if -10 < value < 10 else hex(value)


Sequence = tuple[Op, ...]
_NAME = itemgetter(0)

_ORACLE_NAMES = {"pread64": "pread", "pwrite64": "pwrite"}
_ORACLE_ARGUMENTS = {  # where they differ from the call's: the bare process adds what is missing
    "mbind": ("addr", "length", "mode", "nodes", "flags"),
    "mincore": ("addr", "length"),
    "process_madvise": ("addr", "length", "advice"),
    "process_vm_readv": ("addr", "length"),
    "process_vm_writev": ("addr", "length"),
}
CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    _ORACLE_NAMES.get(call.name, call.name): (
        call.number,
        _ORACLE_ARGUMENTS.get(call.name, call.arguments),
    )
    for call in SYSTEM_CALLS.values()
    if call.judged
}
"""By name: system call number, names of the arguments. `file` is a slot of FILES (-1: none)."""
# What is no single system call: user accesses, limits, fork (with the child's view), userfaultfd.
ACCESSES: dict[str, tuple[str, ...]] = {
    "load": ("addr",),  # of the page's first eight bytes
    "store": ("addr",),
    "setrlimit": ("resource", "length"),
    "add_seals": ("file", "seals"),
    "set_mdwe": ("bits",),
    "set_thp_disable": ("disable", "how"),  # older sequences have no flags
    "fork": (),
    "set_memory_merge": ("enable",),
    "store_value": ("addr", "value"),  # what other pages may hold, too
    "clear_refs": ("kind",),  # a number written to /proc/self/clear_refs
    "fallocate": ("file", "mode", "offset", "length"),
    "huge_room": ("file",),  # how many pages more a mount lets its files have, by fstatfs
    "fill_memory": ("size", "how"),  # in a forked child; which signal has ended that, 0: none
    "fill_group": ("size",),  # in a group of its own, beside a member: how both have ended
    "ksm_scan": (),  # ksmd merges pages until it finds no more
    "ksm_unmerge": (),  # and undoes that everywhere
    "ksm_zero_pages": ("enable",),
    "ksm_most": ("pages",),  # that may share one page: max_page_sharing
    "into_child": (),  # a fork, after which the child goes on and the parent waits for its end
    "crowd": ("room",),  # mappings until only so many more may be made
    "uffd_register": ("addr", "length", "mode"),
    "uffd_unregister": ("addr", "length"),
    "uffd_copy": ("addr", "mode"),  # of one page
    "uffd_zeropage": ("addr", "length", "mode"),
    "uffd_continue": ("addr", "length", "mode"),
    "uffd_poison": ("addr", "length", "mode"),
    "uffd_writeprotect": ("addr", "length", "mode"),
    "uffd_move": ("addr", "length", "source", "mode"),
    "uring_register": ("addr", "length"),  # a fixed buffer, given back at once
    "shmat": ("addr", "flags"),  # of the sequence's one segment of System V shared memory
    "huge_shmat": ("addr", "flags"),  # of its one segment of huge pages (SHM_HUGETLB)
    "shmdt": ("addr",),
}


def arguments_of(name: str) -> tuple[str, ...]:
    """Name the arguments of an operation, in order."""
    return CALLS[name][1] if name in CALLS else ACCESSES[name]


# The files that a sequence can map, by slot. Page i of a file begins with `file_tag(slot, i)`.
CROWD = 0x2_0000_0000
"""From here on lie the many mappings of `crowd`: maps are compared only below it then."""

FILES = ("m0", "m1", "disk", "zero", "ro")  # the last: in memory, open for reading only
FILE_PAGES = (16, 4, 16, 0, 6)
HOLES = {0: range(12, 16), 4: range(5, 6)}  # pages never written
HUGE_FILES = {
    5: ("huge", 1 << 21), 6: ("gigantic", 1 << 30), 7: ("bound", 1 << 21), 8: ("other", 1 << 21),
    9: ("both", 1 << 21), 10: ("kept", 1 << 21),
}  # fmt: skip
"""By slot: files of huge pages, empty at first, their names and the bytes of a page of theirs.

Memfds, but for those of MOUNT_OF."""


class Share(NamedTuple):
    """What a mount of hugetlbfs is given: at most so many huge pages, at least so many; -1: no."""

    most: int
    least: int


MOUNTS = (Share(4, -1), Share(6, 2), Share(-1, 3))
MOUNT_OF = {7: 0, 8: 0, 9: 1, 10: 2}
"""By slot: in which of MOUNTS a file is, whose share of the pool it has with all files there."""


class TmpfsFile(NamedTuple):
    """A file on a mount of tmpfs with huge pages: which mount, and bytes that it has at first.

    named: it keeps its name, which changes what its faults make (model.shared_folios).
    """

    name: str
    huge: str
    named: bool
    size: int


TMPFS_FILES = {
    11: TmpfsFile("always", "always", False, 4 << 21),
    12: TmpfsFile("named", "always", True, (3 << 21) + (20 << 12)),
    13: TmpfsFile("within", "within_size", False, (2 << 21) + (5 << 12)),
    14: TmpfsFile("bounded", "within_size", True, (1 << 21) + (37 << 12)),
    15: TmpfsFile("advised", "advise", False, 4 << 21),
}
"""By slot: files of zeros at first, none of which is there."""
TMPFS_MOUNTS = ("always", "within_size", "advise")
"""The huge= of each mount."""
TMPFS_SIZE = 1 << 30
"""What the files of a mount may have, in bytes: more than a sequence uses."""
DISK_SLOT, ZERO_SLOT, READ_ONLY_SLOT = 2, 3, 4
SEGMENT_PAGES, HUGE_SEGMENT_PAGES = 4, 3
"""Of the segments of System V shared memory: small pages, and huge ones of 2 MiB."""
_SHM_HUGETLB, _SHM_HUGE_2MB = 0o4000, 21 << 26
SEGMENTS = {
    "shmat": (SEGMENT_PAGES << 12, 0o700),
    "huge_shmat": (HUGE_SEGMENT_PAGES << 21, 0o700 | _SHM_HUGETLB | _SHM_HUGE_2MB),
}
"""By the operation that attaches a segment: its bytes, and how shmget makes it."""
NO_FILE, BAD_FILE = -1, 40

RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_AS = 2, 3, 8, 9
LIMITED = (RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_AS)


def is_slot(file: int) -> bool:
    """Return whether there is a file in a slot."""
    return 0 <= file < len(FILES) or file in HUGE_FILES or file in TMPFS_FILES


TAKES_FILE = {
    name: arguments_of(name).index("file")
    for name in (*CALLS, *ACCESSES)
    if "file" in arguments_of(name)
}
"""Operations on a file, and which of their arguments it is."""


def slots_used(sequence: Many[Op]) -> frozenset[int]:
    """Return the slots of the files that operations name: of what can be mapped, and no others."""
    named = (op.args[TAKES_FILE[op.name]] for op in sequence if op.name in TAKES_FILE)
    return frozenset(slot for slot in named if isinstance(slot, int) and is_slot(slot))


def segments_used(sequence: Many[Op]) -> frozenset[str]:
    """Return by which operations a sequence attaches segments of System V shared memory."""
    return frozenset(map(_NAME, sequence)) & SEGMENTS.keys()


def written_pages(slot: int) -> list[int]:
    """List the pages of a file that are written before a sequence begins."""
    return [page for page in range(FILE_PAGES[slot]) if page not in HOLES.get(slot, ())]


def file_tag(slot: int, page: int) -> int:
    """Return what page `page` of a file holds before anybody writes to it."""
    return (slot + 1) << 32 | (page + 1)


LITTLE, MORE, MUCH = 16 << 20, 80 << 20, 128 << 20
"""Bytes for `fill_memory`: within and beyond what a group may charge (memory_group.LIMIT). MORE is
for `fill_group`: within that and what may be in swap (memory_group.SWAPPED)."""

FORKS = ("fork", "into_child")
KSM_WRITES = ("ksm_unmerge", "ksm_zero_pages", "ksm_most")
SUCCEED_WITH_0 = (*FORKS, *KSM_WRITES)
"""Operations whose result is 0 on either side where they do not fail."""

WRITERS = ("store", "process_vm_writev", "uffd_copy")
"""Operations that write a tag of their own to the beginning of pages."""


def store_tag(index: int) -> int:
    """Return what operation number `index` writes, if it is one of WRITERS."""
    return 0x5A_0000 + index


_ADVISING = ("madvise", "process_madvise")
_CLOUDS_LAZYFREE = ("mlockall", "uring_register", "crowd")


def frees_lazily(op: Op) -> bool:
    """Return whether an operation is MADV_FREE."""
    return advice_of(op) == advice.MADV_FREE


def advice_of(op: Op) -> int | None:
    """Return what an operation advises, None if it is no advice."""
    given = op.args[2] if op.name in _ADVISING else None
    return as_int(given) if isinstance(given, int) else None


def shows_lazyfree(sequence: Many[Op]) -> bool:
    """Return whether LazyFree of smaps is compared: it is not where there may be huge pages.

    Nor where all is locked, as that keeps the bare process from working its lists of pages off.
    """
    return any(frees_lazily(op) for op in sequence if op.name in _ADVISING) and not any(
        op.name in _CLOUDS_LAZYFREE or makes_huge(op) for op in sequence
    )


def lists_pages(sequence: Many[Op]) -> bool:
    """Return whether MADV_COLD puts pages on a CPU's list, which holds them for a while."""
    return any(advice_of(op) == advice.MADV_COLD for op in sequence)


def makes_huge(op: Op) -> bool:
    """Return whether there may be huge pages after an operation."""
    return advice_of(op) in _MAKES_HUGE


def shows_references(sequence: Many[Op]) -> bool:
    """Return whether Referenced of smaps is compared.

    Looking at contents uses every page; they are seen by loads only then.
    """
    return "clear_refs" in map(_NAME, sequence)


_MAKES_HUGE = (advice.MADV_HUGEPAGE, advice.MADV_COLLAPSE)


def is_crowded(sequence: Many[Op]) -> bool:
    """Return whether a sequence fills the address space with mappings."""
    return "crowd" in map(_NAME, sequence)


ERRNO_NAMES = {**errno.errorcode, EHWPOISON: "EHWPOISON"}


def signalled(result: int) -> tuple[int, int] | None:
    """Decode the result of a load or store: (signal, si_code), None where it succeeded."""
    return (-result >> 16, -result & 0xFFFF) if result < -4095 else None


class ObservedVma(NamedTuple):
    """One line of maps and the figures of smaps; `offset` in bytes, `figures` in kB."""

    start: int
    end: int
    perms: str
    offset: int
    name: str
    flags: str
    figures: tuple[int, ...]


DIRT = ("Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty")
"""Figures of smaps that are Rss by who maps a page and whether it is dirty."""


def dirt_of_disk(
    pss: int, shared_clean: int, shared_dirty: int, private_clean: int, private_dirty: int
) -> tuple[int, int, int, int, int, int]:
    """Return what is compared of PSS, DIRT where a file on a disk is mapped: all counts as dirty.

    When its pages are written back, and so clean, nobody controls.
    """
    return pss, pss, 0, shared_clean + shared_dirty, 0, private_clean + private_dirty


PSS = ("Pss", "Pss_Dirty")
"""Figures of smaps that are Rss by how many map a page, and what of it is dirty."""


FIGURES = (
    "Rss",
    *PSS,
    *DIRT,
    "Anonymous",
    "AnonHugePages",
    "ShmemPmdMapped",
    "FilePmdMapped",
    "Swap",
    "SwapPss",
    "Locked",
    "KSM",
    "LazyFree",
    "Referenced",
    "Hugetlb",
    "KernelPageSize",
)
"""Of smaps, in kB; Hugetlb is the sum of HUGETLB_OF_SMAPS."""
HUGETLB_OF_SMAPS = ("Shared_Hugetlb", "Private_Hugetlb")
"""In which of them a page of 1 GiB is, is left to what its page table's page had held before: a
count is asked that only the tables of 2 MiB pages have (hugetlb_pmd_shared)."""
COUNTERS = (
    "VmPeak", "VmSize", "VmLck", "VmPin", "VmRSS", "RssAnon", "RssFile", "RssShmem",
    "VmData", "VmStk", "VmExec", "VmPTE", "VmSwap", "HugetlbPages",
)  # fmt: skip
"""Of /proc/PID/status, in kB; VmExec is VmExe + VmLib. VmHWM is the `peak` of a snapshot."""


class Snapshot(NamedTuple):
    """All that is compared of an address space.

    `regions` is PAGEMAP_SCAN's answer (start, end, categories: three little-endian qwords each,
    neighbours with equal categories joined); `tags` the first qword of every present page, in
    order of address; what can't be read is a signal as in `signalled`. `counters` as COUNTERS.
    `peak`: between which kB VmHWM is, beyond what the process had at first. Both are the same in
    the model; a kernel takes it from per-CPU counters without adding them up. (0, 0): not shown.
    """

    vmas: tuple[ObservedVma, ...]
    regions: bytes
    tags: bytes
    counters: tuple[int, ...]
    peak: tuple[int, int] = (0, 0)


BROKEN = 1 << 62
"""The result of an operation in which the model broke a rule of its own; `seen` says which."""


class Promised(NamedTuple):
    """What a machine has promised: pages of memory; huge pages that are free, and reserved."""

    committed: int
    huge_free: int
    huge_reserved: int


class CallOutcome(NamedTuple):
    """What an operation returned: a value or minus errno (a signal for accesses).

    `seen` is mincore's vector; `child` what a forked child saw of its own address space.
    """

    result: int
    seen: bytes = b""
    child: Snapshot | None = None


@lru_cache(maxsize=10_000)
def returned(result: int) -> CallOutcome:
    """Return the outcome that is nothing but a result, of which there are few."""
    return CallOutcome(result)


class OracleStep(NamedTuple):
    """One operation's outcome and the address space after it."""

    outcome: CallOutcome
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Environment:
    """What the model has to know of the process it is compared with; sizes in bytes.

    limits: soft and hard, of each resource in `LIMITED`. has_keys: are there protection keys?
    poison_code: the si_code of SIGBUS where a page is poisoned. shows_protection: PAGEMAP_SCAN
    tells of all mappings which pages are not write-protected by a userfaultfd; else of those whose
    writes one watches. shows_lazyfree: are lazily free pages counted (`shows_lazyfree`)?
    shows_references: and those that were used (`shows_references`)? shows_soft_dirty: is it, in the
    same sequences, compared which mappings are soft-dirty? group_pages: how many pages the memory
    cgroup of the process may charge, 0 for one that is not the oracle's; filled_pages: how many the
    members of the group beside may have, in memory and swap; kills_all: all of them are killed
    where one is.
    shows_peak: is the peak of a snapshot compared?
    has_mounts: are MOUNTS there? What they keep of the pool is not in hugetlb_pages.
    shared_huge: which shared memory gets huge pages (machine_settings.shared_huge), and
    shared_sizes of which sizes.
    huge_faults: which mappings get huge pages by faults (machine_settings.HUGE_FAULTS): 0 none,
    1 advised ones, 2 all.
    """

    ring: int
    ring_length: int
    mmap_base: int
    start_brk: int
    data_length: int
    max_map_count: int
    mmap_min_addr: int
    mmap_min_hint: int
    limits: Mapping[int, tuple[int, int]]
    task_size: int
    overcommit_pages: int
    hugetlb_pages: int
    gigantic_pages: int
    swap_pages: int
    group_pages: int
    filled_pages: int
    kills_all: bool
    has_mounts: bool
    huge_faults: int
    shared_huge: int
    shared_sizes: Sizes
    shows_peak: bool
    has_keys: bool
    poison_code: int
    shows_protection: bool
    shows_lazyfree: bool
    shows_references: bool
    shows_soft_dirty: bool
    baseline: Snapshot


class Side(Protocol):
    """Something that runs sequences: the real kernel, or the model."""

    def run(self, sequence: Many[Op]) -> list[OracleStep]:
        """Run a sequence in a fresh address space; return every operation's step."""
        ...

    def close(self) -> None:
        """Give back what the side holds."""
        ...
