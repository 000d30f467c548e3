"""Operations in which the bare process forks: their entries for the parent and for the child."""

from __future__ import annotations

from zaplock import advice
from zaplock.oracle import ring, stub
from zaplock.oracle.ops import Op
from zaplock.oracle.program_builder import WORD_MASK, Builder, address
from zaplock.oracle.program_setup import PID_FD, open_pidfd
from zaplock.protocols.memory_group import BY_HUGE_PAGES, BY_MMAP, BY_SMALL_PAGES

_E = stub.ENTRY
_WALL, _CLONE_PARENT = 0x4000_0000, 0x8000
_SIZES = {BY_HUGE_PAGES: advice.MADV_HUGEPAGE, BY_SMALL_PAGES: advice.MADV_NOHUGEPAGE}

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


def fork_load(b: Builder, address_: int) -> int:
    """Append a fork whose child loads a word, which is the result, and exits; the parent waits.

    Others may do so at the same time, so each waits for its own child.
    """
    clone = b.add(ring.call("clone", 17))
    load = clone + 5 * _E
    b.add(stub.entry(stub.JUMP_IF_ZERO, address(load)))
    _with_result(b, clone, ring.call("wait4", 0, 0, _WALL, 0))
    b.add(stub.entry(stub.JUMP, address(load + 2 * _E)))
    return b.add(stub.entry(stub.TOUCH_LOAD, address_), ring.EXIT)


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
    status = ring.RING + ring.FORK_STATUS
    child = _at(b.here + 5 * _E)  # behind the parent's entries
    child.add(ring.call("prctl", 1, 9))
    _fill(child, *arguments)
    child.add(ring.EXIT)
    b.add(stub.entry(stub.STORE, status, 0), ring.call("clone", 17))
    b.add(stub.entry(stub.JUMP_IF_ZERO, address(b.here + 3 * _E)))
    b.add(ring.call("wait4", WORD_MASK, status, _WALL, 0))
    b.add(stub.entry(stub.JUMP, address(child.here)), *child.parts)
    return b.add(stub.entry(stub.LOAD, status))


def fill_group(b: Builder, size: int, group: int) -> int:
    """Append a fork whose child joins a group by a file, makes a member beside itself and fills it.

    The member is the parent's, too, and ends after the child has. The result is the status of both,
    the child's in its lower half.
    """
    status = ring.RING + ring.FORK_STATUS
    may_end = status + 8  # what the member waits for
    child = _at(b.here + 11 * _E)
    child.add(ring.call("prctl", 1, 9))
    _write(child, child.add(ring.call("open", group, 1)), b"0")
    member = child.add(ring.call("clone", _CLONE_PARENT | 17))
    child.add(stub.entry(stub.JUMP_IF_ZERO, address(child.here + 2 * _E)))
    child.add(stub.entry(stub.JUMP, address(child.here + 4 * _E)))
    child.add(ring.call("prctl", 1, 9), ring.call("futex", may_end, 0, 0, 0, 0, 0), ring.EXIT)
    _fill(child, size, BY_SMALL_PAGES)
    child.add(ring.EXIT)
    b.add(stub.entry(stub.STORE, status, 0), stub.entry(stub.STORE, may_end, 0))
    clone = b.add(ring.call("clone", 17))
    b.add(stub.entry(stub.JUMP_IF_ZERO, address(b.here + 8 * _E)))
    _with_result(b, clone, ring.call("wait4", 0, status, _WALL, 0))
    b.add(stub.entry(stub.STORE, may_end, 1), ring.call("futex", may_end, 1, 1, 0, 0, 0))
    _with_result(b, member, ring.call("wait4", 0, status + 4, _WALL, 0))
    b.add(stub.entry(stub.JUMP, address(child.here)), *child.parts)
    both = b.add(stub.entry(stub.LOAD, status))
    b.add(stub.entry(stub.STORE, status, 0))  # whoever waits for us writes its lower half only
    return both


def _at(here: int) -> Builder:
    """Begin with entries that will be at an offset from the program's start."""
    b = Builder()
    b.here = here
    return b


def _with_result(b: Builder, of: int, entry: bytes) -> int:
    """Append an entry whose first argument is the result of another one; return where it is."""
    target = address(b.here + _E + 8)
    b.add(stub.entry(stub.PATCH, target, address(of + stub.RESULT), 0))
    return b.add(entry)


def _write(b: Builder, opened: int, text: bytes) -> None:
    """Append what writes to the file that an entry has opened."""
    at = ring.RING + ring.SCRATCH
    b.add(stub.entry(stub.STORE, at, int.from_bytes(text, "little")))
    _with_result(b, opened, ring.call("pwrite64", 0, at, len(text), 0))


def _fill(b: Builder, size: int, how: int) -> None:
    """Append what offers a process to the OOM killer, maps memory and fills it."""
    flags = 0x22 | (0x8000 if how == BY_MMAP else 0)
    advice_given: tuple[int, ...] = () if how == BY_MMAP else (advice.MADV_POPULATE_WRITE,)
    if how in _SIZES:
        advice_given = (_SIZES[how], *advice_given)
    _write(b, b.add(ring.call("open", ring.PROC_AT["oom_score_adj"], 1)), b"1000")
    mapped = b.add(ring.call("mmap", 0, size, 3, flags, WORD_MASK, 0))
    for given in advice_given:
        _with_result(b, mapped, ring.call("madvise", 0, size, given))
