"""How every program begins: the ring, the files that its operations need, KSM as it is at first.

Descriptors are always the same: where nothing is needed, the number is kept for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from zaplock.errors import UserError
from zaplock.model.flags import MAP_HUGE_SHIFT
from zaplock.oracle import ops, ring, stub
from zaplock.oracle.ksm import SETTINGS
from zaplock.oracle.ops import Op
from zaplock.oracle.program_builder import Builder, address, write_number

_E = stub.ENTRY
_MFD_ALLOW_SEALING, _MFD_HUGETLB = 2, 4
_RDWR, _CREAT, _EXCL = 2, 0o100, 0o200
_UFFDIO_API, _UFFD_FEATURE_SIGBUS = 0xC018AA3F, 1 << 7
_IPC_PRIVATE = 0
_URING_PARAMETERS = 120  # bytes

UFFD_FD = ring.FIRST_FILE_FD + len(ops.FILES)
PID_FD = UFFD_FD + 1
RING_FD = PID_FD + 1
HUGE_FILE_FDS = 47  # and the slot
TMPFS_FILE_FDS = 80  # and the slot: beyond the mounts
KSM_ZERO_PAGES_FD, KSM_MOST_FD, MEMINFO_FD, KSM_RUN_FD, KSM_SCANS_FD, CLEAR_REFS_FD = range(58, 64)


class KsmNames(NamedTuple):
    """Where in the ring the names of KSM's files are."""

    run: int
    scans: int
    zero_pages: int
    most: int


class ProgramNames(NamedTuple):
    """What programs must know: where in the ring the files' names are, and max_map_count.

    `huge_files`: the names of those of huge pages, by slot. `mounts`: descriptors of ops.MOUNTS,
    `tmpfs`: of ops.TMPFS_MOUNTS.
    `filled`: the name of the descriptor by which the read-only file is filled; `filled_group`: the
    file by which a process joins the group of `fill_group`. `cpu`: where a sequence runs whose
    lazily free or used pages are counted, or that has cold ones, since each CPU has lists of its
    own of pages to work off; -1: none are. `settling_ns`: where there is swap, how long a paging
    out waits before each of its repetitions, since pages go on being written after MADV_PAGEOUT has
    returned.
    """

    files: tuple[int, ...]
    filled: int
    meminfo: int
    filled_group: int
    ksm: KsmNames
    max_map_count: int
    huge_files: dict[int, int]
    mounts: tuple[int, ...] = ()
    tmpfs: tuple[int, ...] = ()
    cpu: int = -1
    settling_ns: tuple[int, ...] = ()


def begin(
    build_into: Builder, sequence: Sequence[Op], names: ProgramNames, *, meminfo: bool = False
) -> None:
    """Append the set-up of a sequence; `meminfo`: with /proc/meminfo open as MEMINFO_FD."""
    build_into.add(ring.PRELUDE)
    if names.cpu >= 0:
        stay_on(build_into, names.cpu)
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
    for slot in sorted(filled & ops.TMPFS_FILES.keys()):
        _open_on_tmpfs(build_into, slot, names)
    for name in sorted(ops.segments_used(sequence)):
        made = ring.call("shmget", _IPC_PRIVATE, *ops.SEGMENTS[name])
        build_into.segments[name] = build_into.add(made)
    if meminfo:
        _open_as(build_into, MEMINFO_FD, names.meminfo, 0)
    if used & OF_KSM:
        _open_as(build_into, KSM_RUN_FD, names.ksm.run, 1)
        _open_as(build_into, KSM_SCANS_FD, names.ksm.scans, 0)
        _open_as(build_into, KSM_ZERO_PAGES_FD, names.ksm.zero_pages, 1)
        _open_as(build_into, KSM_MOST_FD, names.ksm.most, 1)
        begin_ksm(build_into)


OF_KSM = {"ksm_scan", *ops.KSM_WRITES}
"""Operations on KSM."""


def begin_ksm(b: Builder) -> None:
    """Append what lets KSM be as every sequence finds it, also where an earlier one was killed."""
    for run in "20":  # what was merged is undone and forgotten, and ksmd at rest
        write_number(b, KSM_RUN_FD, run)
    write_number(b, KSM_ZERO_PAGES_FD, str(SETTINGS["use_zero_pages"]))
    write_number(b, KSM_MOST_FD, str(SETTINGS["max_page_sharing"]))


def stay_on(b: Builder, cpu: int) -> None:
    """Append what keeps a thread on one CPU."""
    mask, words = b.scratch, cpu // 64 + 1
    b.add(*(stub.entry(stub.STORE, mask + 8 * k, 0) for k in range(words - 1)))
    b.add(stub.entry(stub.STORE, mask + 8 * (words - 1), 1 << cpu % 64))
    b.add(ring.call("sched_setaffinity", 0, 8 * words, mask))


def _open_huge(b: Builder, slot: int, names: ProgramNames) -> None:
    """Append what makes a file of huge pages: a memfd, or one on a mount that has no name any more.

    The mount is there for all sequences; what they had of it goes with their files.
    """
    name = names.huge_files[slot]
    if slot in ops.MOUNT_OF:
        mount = _lent(names.mounts, ops.MOUNT_OF[slot], slot, "hugetlbfs")
        opened = b.add(ring.call("openat", mount, name, _RDWR | _CREAT | _EXCL, 0o600))
        b.add(ring.call("unlinkat", mount, name, 0))
    else:
        flags = _MFD_HUGETLB | ops.HUGE_FILES[slot][1].bit_length() - 1 << MAP_HUGE_SHIFT
        opened = b.add(ring.call("memfd_create", name, flags))
    _number_as(b, opened, HUGE_FILE_FDS + slot)


def _lent(mounts: tuple[int, ...], number: int, slot: int, theme: str) -> int:
    """Return the descriptor of a mount; UserError where a sequence needs one that is not there."""
    if not mounts:
        raise UserError(
            f"file {slot} of the sequence is on a mount that the theme {theme} is lent: name that "
            f'in its "themes", or with --theme {theme}'
        )
    return mounts[number]


def _open_on_tmpfs(b: Builder, slot: int, names: ProgramNames) -> None:
    """Append what makes a file on a mount of tmpfs; what an earlier sequence left there goes."""
    file, name = ops.TMPFS_FILES[slot], names.huge_files[slot]
    mount = _lent(names.tmpfs, ops.TMPFS_MOUNTS.index(file.huge), slot, "shmem-huge")
    if file.named:
        b.add(ring.call("unlinkat", mount, name, 0))
    opened = b.add(ring.call("openat", mount, name, _RDWR | _CREAT | _EXCL, 0o600))
    if not file.named:
        b.add(ring.call("unlinkat", mount, name, 0))
    _number_as(b, opened, TMPFS_FILE_FDS + slot)
    b.add(ring.call("ftruncate", TMPFS_FILE_FDS + slot, file.size))


def _open_as(b: Builder, fd: int, name: int, flags: int) -> None:
    """Append what opens a file under a number of one's own; the lowest free one stays open."""
    _number_as(b, b.add(ring.call("open", name, flags)), fd)


def _number_as(b: Builder, opened: int, fd: int) -> None:
    """Append what gives the descriptor that the entry `opened` is to return another number, too."""
    target = address(b.here + _E + 8)
    b.add(stub.entry(stub.PATCH, target, address(opened + stub.RESULT), 0))
    b.add(ring.call("dup2", 0, fd))


_KEEP_NUMBER = ring.call("dup", ring.OUT_FD)
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
            parts.append(ring.call("open", at, _RDWR))
        elif name == "disk":
            # Cut to a byte: ext4 writes a file that was cut to nothing to its disk when it closes.
            parts.append(ring.call("open", at, _RDWR))
            parts.append(ring.call("ftruncate", ring.FIRST_FILE_FD + slot, 1))
        else:
            parts.append(ring.call("memfd_create", at, _MFD_ALLOW_SEALING))
        parts.append(_fill(slot))
    opened = ring.FIRST_FILE_FD + ops.READ_ONLY_SLOT
    if ops.READ_ONLY_SLOT in filled:
        parts += [  # again, for reading only, in its own place
            ring.call("open", writable, 0),
            ring.call("dup2", opened + 1, opened),
            ring.call("close", opened + 1),
        ]
    return b"".join(parts)


def _fill(slot: int) -> bytes:
    if not ops.FILE_PAGES[slot]:
        return b""
    fd, source = ring.FIRST_FILE_FD + slot, ring.RING + ring.PATTERN
    parts = [ring.call("ftruncate", fd, ops.FILE_PAGES[slot] * ring.PAGE)]
    for page in ops.written_pages(slot):
        parts.append(stub.entry(stub.STORE, source, ops.file_tag(slot, page)))
        parts.append(ring.call("pwrite64", fd, source, 8, page * ring.PAGE))
    return b"".join(parts)


def _open_uffd(b: Builder) -> None:
    """Append what opens a userfaultfd."""
    api = ring.RING + ring.SCRATCH
    b.add(
        ring.call("userfaultfd", 0o4000 | 1),  # O_NONBLOCK, UFFD_USER_MODE_ONLY
        stub.entry(stub.STORE, api, 0xAA),
        stub.entry(stub.STORE, api + 8, _UFFD_FEATURE_SIGBUS),
        stub.entry(stub.STORE, api + 16, 0),
        ring.call("ioctl", UFFD_FD, _UFFDIO_API, api),
    )


def _open_uring(b: Builder) -> None:
    """Append what makes an io_uring of one entry."""
    at = ring.RING + ring.SCRATCH
    b.add(*(stub.entry(stub.STORE, at + k, 0) for k in range(0, _URING_PARAMETERS, 8)))
    b.add(ring.call("io_uring_setup", 1, at))


def open_pidfd(b: Builder) -> None:
    """Append what opens the process itself, as PID_FD if that is the next."""
    b.has_pidfd = True
    pid = b.add(ring.call("getpid"))
    target = address(pid + 2 * _E + 8)
    b.add(stub.entry(stub.PATCH, target, address(pid + stub.RESULT), 0))
    b.add(ring.call("pidfd_open", 0, 0))


_OPENINGS = {UFFD_FD: _open_uffd, PID_FD: open_pidfd, RING_FD: _open_uring}
_ON_DESCRIPTOR = {
    **{name: UFFD_FD for name in ops.ACCESSES if name.startswith("uffd_")},
    "process_madvise": PID_FD,
    "uring_register": RING_FD,
}
"""Operations on a descriptor that is no file's."""
