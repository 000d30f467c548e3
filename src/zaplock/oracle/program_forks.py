"""Operations in which the bare process forks: their entries for the parent and for the child."""

from __future__ import annotations

from zaplock import advice
from zaplock.oracle import ring, stub
from zaplock.oracle.ops import Op
from zaplock.oracle.program_builder import WORD_MASK, Builder, address
from zaplock.oracle.program_setup import PID_FD, open_pidfd
from zaplock.protocols.memory_group import BY_ADVICE, BY_MMAP

_E = stub.ENTRY

_OF_CHILD = b"".join(
    [ring.POPULATE, *(ring.call("close", fd) for fd in ring.PROC_FDS), ring.open_proc()]
)
"""What a child begins with: its own page tables of the ring, its own files of /proc/self."""


def fork(b: Builder) -> tuple[int, int, int]:
    """Append a fork whose child writes down its address space and exits; the parent waits."""
    child_code = _OF_CHILD + b.observes + ring.EXIT
    clone = b.here
    child = clone + 4 * _E
    b.add(
        ring.call("clone", 17),
        stub.entry(stub.JUMP_IF_ZERO, address(child)),
        ring.call("wait4", WORD_MASK, ring.RING + ring.FORK_STATUS, 0x4000_0000, 0),
        stub.entry(stub.JUMP, address(child + len(child_code))),
        child_code,
    )
    return clone, -1, child + len(_OF_CHILD)


def into_child(b: Builder) -> int:
    """Append a fork whose child goes on; the parent waits for its end, and ends with 1 if it fails.

    The child's own forks write the same word of the ring, but before that end.
    """
    status = ring.RING + ring.FORK_STATUS
    b.add(stub.entry(stub.STORE, status, 1))
    clone = b.here
    child = clone + 7 * _E
    b.add(
        ring.call("clone", 17),
        stub.entry(stub.JUMP_IF_ZERO, address(child)),
        ring.call("wait4", WORD_MASK, status, 0x4000_0000, 0),
        stub.entry(stub.LOAD, status),
        stub.entry(stub.JUMP_IF_ZERO, address(clone + 6 * _E)),
        ring.call("exit_group", 1),
        ring.EXIT,
        ring.call("prctl", 1, 9),  # PR_SET_PDEATHSIG SIGKILL, which a fork does not inherit
        _OF_CHILD,
    )
    if b.has_pidfd:
        b.add(ring.call("close", PID_FD))
        open_pidfd(b)
    return clone


def fill_memory(b: Builder, op: Op, arguments: list[int], results: list[int]) -> int:
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
    opened = child.add(ring.call("open", ring.PROC_AT["oom_score_adj"], 1))
    child.add(stub.entry(stub.STORE, text, int.from_bytes(b"1000", "little")))
    with_result(opened, ring.call("pwrite64", 0, text, 4, 0))
    mapped = child.add(ring.call("mmap", 0, size, 3, flags, WORD_MASK, 0))
    for given in advice_given:
        with_result(mapped, ring.call("madvise", 0, size, given))
    code = b"".join(child.parts) + ring.EXIT
    b.add(stub.entry(stub.STORE, status, 0), ring.call("clone", 17))
    b.add(stub.entry(stub.JUMP_IF_ZERO, address(first + _E)))
    b.add(ring.call("wait4", WORD_MASK, status, 0x4000_0000, 0))
    b.add(stub.entry(stub.JUMP, address(first + _E + len(code))), code)
    return b.add(stub.entry(stub.LOAD, status))
