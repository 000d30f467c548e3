"""Operations that are several calls, or need words in memory first: each one's entries.

Every function appends them and returns the place of the operation's result. It is given the
arguments as words and, in `op`, with the references to earlier `results`.
"""

from __future__ import annotations

from zaplock.oracle import ops, ring, stub
from zaplock.oracle.ops import Op, Ref
from zaplock.oracle.program_builder import (
    WORD_MASK,
    Builder,
    address,
    store_word,
    with_refs,
    write_number,
)
from zaplock.oracle.program_forks import fill_memory
from zaplock.oracle.program_setup import (
    CLEAR_REFS_FD,
    KSM_MOST_FD,
    KSM_RUN_FD,
    KSM_SCANS_FD,
    KSM_ZERO_PAGES_FD,
    PID_FD,
    RING_FD,
    UFFD_FD,
)

_E = stub.ENTRY

OPTIONS = {"set_mdwe": 65, "set_thp_disable": 41, "set_memory_merge": 67}
"""The options of prctl that are operations."""
MOST_COPIED = 8 * ring.PAGE  # bytes that process_vm_readv and _writev have a place for
PAUSE_NS = 200_000  # before each look at how often ksmd has scanned
_F_ADD_SEALS, _FUTEX_CMP_REQUEUE = 1033, 4
_BFREE = 24  # where statfs says it, in bytes
_UFFDIO_REGISTER, _UFFDIO_UNREGISTER = 0xC020AA00, 0x8010AA01
_UFFDIO_COPY, _UFFDIO_MOVE = 0xC028AA03, 0xC028AA05
_FILLS = {"uffd_zeropage": 0xC020AA04, "uffd_continue": 0xC020AA07, "uffd_poison": 0xC020AA08,
          "uffd_writeprotect": 0xC018AA06}  # fmt: skip
_SHMAT, _SHMCTL, _IPC_RMID = 30, 31, 0
_IORING_REGISTER_BUFFERS, _IORING_UNREGISTER_BUFFERS = 0, 1


def crowd(b: Builder, count: int) -> int:
    """Map `count` pages with nothing allowed, then let every other one be read: so many VMAs."""
    counter = b.scratch
    b.add(ring.call("mmap", ops.CROWD, count * ring.PAGE, 0, 0x4032, WORD_MASK, 0))
    b.add(stub.entry(stub.STORE, counter, count // 2))
    first = b.here
    own = address(first) + 8
    b.add(
        ring.call("mprotect", ops.CROWD + ring.PAGE, ring.PAGE, 1),
        stub.entry(stub.PATCH, own, own, 2 * ring.PAGE),
        stub.entry(stub.PATCH, counter, counter, WORD_MASK),
        stub.entry(stub.LOAD, counter),
        stub.entry(stub.JUMP_IF_ZERO, address(first) + 6 * _E),
        stub.entry(stub.JUMP, address(first)),
    )
    return first


def _setrlimit(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    resource, soft = arguments
    at = ring.RING + ring.RLIMIT
    b.add(ring.call("prlimit64", 0, resource, 0, at))
    b.add(stub.entry(stub.STORE, at, soft))
    return b.add(ring.call("prlimit64", 0, resource, at, 0))


def _process_madvise(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    _, length, advice = arguments
    at = b.scratch
    store_word(b, at, op.args[0], results)
    b.add(stub.entry(stub.STORE, at + 8, length))
    return b.add(stub.syscall(ops.CALLS[op.name][0], PID_FD, at, 1, advice, 0))


def _mbind(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Append an mbind whose mask of nodes is one word."""
    start, length, mode, nodes, flags = arguments
    at = b.scratch
    b.add(stub.entry(stub.STORE, at, nodes))
    call = stub.syscall(ops.CALLS[op.name][0], start, length, mode, at, 64, flags)
    return with_refs(b, op, call, results)


def _remote(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Copy between the process's memory, taken for another's, and a page, as often as it takes."""
    remote, page = b.scratch, b.page
    length = arguments[1]
    store_word(b, remote, op.args[0], results)
    b.add(stub.entry(stub.STORE, remote + 8, length))
    if op.name == "process_vm_writev":
        b.add(stub.entry(stub.STORE, page, arguments[2]))
    full, rest = divmod(min(length, MOST_COPIED), ring.PAGE)
    parts = [ring.PAGE] * full + [rest] * bool(rest)
    local = remote + 16
    for number, part in enumerate(parts):
        at = local + 16 * number
        b.add(stub.entry(stub.STORE, at, page), stub.entry(stub.STORE, at + 8, part))
    pid = b.add(ring.call("getpid"))
    b.add(stub.entry(stub.PATCH, address(pid + 2 * _E + 8), address(pid + stub.RESULT), 0))
    return b.add(stub.syscall(ops.CALLS[op.name][0], 0, local, len(parts), remote, 1, 0))


def _userfault(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    at = b.scratch
    store_word(b, at, op.args[0], results)
    b.add(stub.entry(stub.STORE, at + 8, arguments[1]))
    if op.name == "uffd_unregister":
        return b.add(ring.call("ioctl", UFFD_FD, _UFFDIO_UNREGISTER, at))
    b.add(stub.entry(stub.STORE, at + 16, arguments[2]), stub.entry(stub.STORE, at + 24, 0))
    return b.add(ring.call("ioctl", UFFD_FD, _UFFDIO_REGISTER, at))


def _fill_userfault(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Answer a fault that nobody has had: UFFDIO_COPY of a page, _ZEROPAGE, _CONTINUE and so on."""
    at, page = b.scratch, b.page
    store_word(b, at, op.args[0], results)
    rest: list[ops.Argument]
    if op.name == "uffd_copy":
        rest, command = [page, ring.PAGE, arguments[1], 0], _UFFDIO_COPY
        b.add(stub.entry(stub.STORE, page, arguments[2]))
    elif op.name == "uffd_move":
        rest, command = [op.args[2], arguments[1], arguments[3], 0], _UFFDIO_MOVE
    else:
        rest, command = [arguments[1], arguments[2], 0], _FILLS[op.name]
    for k, word in enumerate(rest, 1):
        store_word(b, at + 8 * k, word, results)
    return b.add(ring.call("ioctl", UFFD_FD, command, at))


def _uring_register(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    at = b.scratch
    store_word(b, at, op.args[0], results)
    b.add(stub.entry(stub.STORE, at + 8, arguments[1]))
    result = b.add(ring.call("io_uring_register", RING_FD, _IORING_REGISTER_BUFFERS, at, 1))
    b.add(ring.call("io_uring_register", RING_FD, _IORING_UNREGISTER_BUFFERS, 0, 0))
    return result


def _add_seals(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return b.add(ring.call("fcntl", arguments[0], _F_ADD_SEALS, arguments[1]))


def _clear_refs(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Write to clear_refs, which the process opens for that: a forked one has its own.

    Clearing accessed bits flushes no TLB, and what a CPU has in there it does not note again. So a
    4 is written as well, for its flush of everything.
    """
    (kind,) = op.args
    text, opened = (
        b.scratch,
        b.add(ring.call("open", ring.PROC_AT["clear_refs"], 1)),
    )
    b.add(stub.entry(stub.PATCH, address(opened + 2 * _E + 8), address(opened + stub.RESULT), 0))
    b.add(ring.call("dup2", 0, CLEAR_REFS_FD))
    b.add(stub.entry(stub.PATCH, address(opened + 4 * _E + 8), address(opened + stub.RESULT), 0))
    b.add(ring.call("close", 0))
    written = b""
    result = -1
    for number in (kind, 4) if kind in (1, 2, 3) else (kind,):
        written = str(number).encode()
        b.add(stub.entry(stub.STORE, text, int.from_bytes(written, "little")))
        at = b.add(ring.call("pwrite64", CLEAR_REFS_FD, text, len(written), 0))
        result = at if result < 0 else result
    return result


def _fallocate(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return b.add(ring.call("fallocate", *arguments))


def _huge_room(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    at = b.scratch
    b.add(ring.call("fstatfs", arguments[0], at))
    return b.add(stub.entry(stub.LOAD, at + _BFREE))


def _ksm_scan(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    """Let ksmd run until it has scanned everything so often, which its count of scans tells.

    The count is text of up to eight digits, compared in two halves with what it was before.
    """
    text, other, before, _, pause = (b.scratch + 8 * k for k in range(5))
    b.add(stub.entry(stub.STORE, pause, 0), stub.entry(stub.STORE, pause + 8, PAUSE_NS))
    b.add(stub.entry(stub.STORE, before, 0))
    b.add(ring.call("pread64", KSM_SCANS_FD, before, 8, 0))
    write_number(b, KSM_RUN_FD, "1")
    for _ in range(b.scans):
        loop = b.here + 2 * _E
        first, second = loop + 3 * _E, loop + 6 * _E
        for compared, half in ((first, before), (second, before + 4)):
            b.add(stub.entry(stub.PATCH, address(compared) + 48, half, 0))
        b.add(ring.call("nanosleep", pause, 0), stub.entry(stub.STORE, text, 0))
        b.add(ring.call("pread64", KSM_SCANS_FD, text, 8, 0))
        b.add(ring.call("futex", text, _FUTEX_CMP_REQUEUE, 0, 0, other, 0))
        b.add(stub.entry(stub.JUMP_IF_ZERO, address(second)))
        b.add(stub.entry(stub.JUMP, address(second + 2 * _E)))
        b.add(ring.call("futex", text + 4, _FUTEX_CMP_REQUEUE, 0, 0, other, 0))
        b.add(stub.entry(stub.JUMP_IF_ZERO, address(loop)))
        b.add(stub.entry(stub.PATCH, before, text, 0))
    write_number(b, KSM_RUN_FD, "0")
    return b.add(stub.entry(stub.STORE, pause, 0))


def _ksm_unmerge(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    result = write_number(b, KSM_RUN_FD, "2")
    write_number(b, KSM_RUN_FD, "0")
    return result


def _ksm_zero_pages(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return write_number(b, KSM_ZERO_PAGES_FD, str(arguments[0]))


def _ksm_most(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return write_number(b, KSM_MOST_FD, str(arguments[0]))


def _prctl(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    told = (*arguments, 0, 0, 0)[:4]
    return b.add(ring.call("prctl", OPTIONS[op.name], *told))


def _shmat(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return _of_segment(b, op.name, Op("shmat", (0, *op.args)), _SHMAT, results)


def _shmdt(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
    return with_refs(b, op, ring.call("shmdt", *arguments), results)


def _of_segment(b: Builder, segment: str, op: Op, number: int, results: list[int]) -> int:
    """Append a system call whose first argument is a segment's id, not known before."""
    refs = sum(isinstance(value, Ref) for value in op.args)
    target = address(b.here + (1 + refs) * _E + 8)
    b.add(stub.entry(stub.PATCH, target, address(b.segments[segment] + stub.RESULT), 0))
    told = [value & WORD_MASK if isinstance(value, int) else 0 for value in op.args]
    return with_refs(b, op, stub.syscall(number, *told), results)


def remove_segments(b: Builder) -> None:
    """Append the end of the segments of System V shared memory: they outlive who has made them."""
    for segment in b.segments:
        _of_segment(b, segment, Op("shmctl", (0, _IPC_RMID, 0)), _SHMCTL, [])


COMPOSED = {
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
    "fill_memory": fill_memory,
    "fallocate": _fallocate,
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
    "huge_shmat": _shmat,
    "shmdt": _shmdt,
}
"""By operation, what appends it; "crowd" is not among them, nor what forks and goes on."""
