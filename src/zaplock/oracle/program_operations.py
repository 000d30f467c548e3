"""What each operation of a sequence is in a program: mostly one entry."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from zaplock import advice
from zaplock.oracle import ops, ring, stub
from zaplock.oracle.composed_calls import COMPOSED, crowd
from zaplock.oracle.ops import Op, Ref
from zaplock.oracle.program_builder import WORD_MASK, Builder, with_refs
from zaplock.oracle.program_forks import fill_group, fork, into_child
from zaplock.oracle.program_setup import HUGE_FILE_FDS, TMPFS_FILE_FDS, ProgramNames

MAX_SEEN = ring.SCRATCH_SIZE  # pages of mincore's vector

_TO_SCRATCH = (ring.RING + ring.SCRATCH,)
_CALLED: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "load": (stub.TOUCH_LOAD, 0, ()),
    "store": (stub.TOUCH_STORE, 0, ()),
    "store_value": (stub.TOUCH_STORE, 0, ()),
    **{
        name: (stub.SYSCALL, number, _TO_SCRATCH if name == "mincore" else ())
        for name, (number, _) in ops.CALLS.items()
        if name not in COMPOSED
    },
}
"""Operations of one entry: its handler, the system call's number, arguments behind their own."""

_PLAIN: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    name: (
        handler,
        number,
        ops.TAKES_FILE.get(name, -1),
        (*more, *(0,) * (6 - len(ops.arguments_of(name)) - len(more) - (name in ops.WRITERS))),
    )
    for name, (handler, number, more) in _CALLED.items()
}
"""The same, with which of its arguments is a file (-1: none), and all that follows its own."""

DRAIN_ALL = ring.call("move_pages", 0, 0, 0, ring.RING + ring.SCRATCH, ring.RING + ring.SCRATCH, 2)
"""move_pages of no page: before anything else it empties the LRU batches of every CPU.

A page whose writing has ended, on whichever CPU that was, is in a batch of that CPU's, which holds
it: MADV_PAGEOUT, which empties its own CPU's batches only, would unmap such a page and keep it.
"""

SETTLING_NS = (200_000, 1_000_000, 4_000_000)
"""How long a paging out waits before each of its repetitions, where the disk is quick."""
PATIENCE_NS = 5_000_000_000
"""How long the pagings out of a sequence may wait together for a disk that is slow."""


def patient_ns(sequence: Sequence[Op]) -> tuple[int, ...]:
    """Return how long each paging out of a sequence waits in turn for a disk that is slow.

    Each wait is twice the one before; () if nothing is paged out.
    """
    pageouts = sum(map(is_pageout, sequence))
    if not pageouts:
        return ()
    doublings = (PATIENCE_NS // pageouts // SETTLING_NS[0] + 1).bit_length() - 1
    return tuple(SETTLING_NS[0] << number for number in range(doublings))


def operation(
    b: Builder, index: int, op: Op, results: list[int], names: ProgramNames
) -> tuple[int, int, int]:
    """Append one operation; return the places of its result, vector and child (or -1)."""
    name = op.name
    settles = bool(names.settling_ns) and is_pageout(op)
    if name in _PLAIN and not settles:
        result = _plain(b, index, op, results)
        return result, _seen(b, op) if name == "mincore" else -1, -1
    if name == "fork":
        return fork(b)
    if name == "into_child":
        return into_child(b), -1, -1
    if settles:
        b.add(DRAIN_ALL)
    result = _one(b, index, op, results, names)
    if settles:
        _settle(b, index, op, results, names)
    return result, -1, -1


def _plain(b: Builder, index: int, op: Op, results: list[int]) -> int:
    """Append an operation of _CALLED; return the place of its result."""
    name, arguments = op
    handler, number, file_at, behind = _PLAIN[name]
    try:
        if file_at >= 0:
            words = list(arguments)
            words[file_at] = _descriptor(words[file_at])
            entry = stub.PACK(handler, number, *words, *behind, 0)
        elif name in ops.WRITERS:
            entry = stub.PACK(handler, number, *arguments, ops.store_tag(index), *behind, 0)
        else:
            entry = stub.PACK(handler, number, *arguments, *behind, 0)
    except struct.error:  # not all of them are words: some are negative, or earlier results
        return with_refs(b, op, _entry(index, op), results)
    return b.add_one(entry)


def _one(b: Builder, index: int, op: Op, results: list[int], names: ProgramNames) -> int:
    """Append what one operation does; return the place of its result."""
    if op.name in _PLAIN:
        return _plain(b, index, op, results)
    arguments = _arguments(index, op)
    if op.name == "fill_group":
        return fill_group(b, arguments[0], names.filled_group)
    if op.name == "crowd":
        return crowd(b, names.max_map_count - 1 - arguments[0])
    return COMPOSED[op.name](b, op, arguments, results)


def _arguments(index: int, op: Op) -> list[int]:
    """Return an operation's arguments as words, 0 in the place of what is not known yet."""
    arguments = [value & WORD_MASK if isinstance(value, int) else 0 for value in op.args]
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
    return ops.advice_of(op) == advice.MADV_PAGEOUT


def _settle(b: Builder, index: int, op: Op, results: list[int], names: ProgramNames) -> None:
    """Append what pages out again what was still being written when it was paged out.

    A page that comes back from swap before it is written there can't go there again until it is.
    """
    at = ring.RING + ring.SCRATCH
    for wait_ns in names.settling_ns:
        b.add(stub.entry(stub.STORE, at, 0), stub.entry(stub.STORE, at + 8, wait_ns))
        b.add(ring.call("nanosleep", at, 0), DRAIN_ALL)
        _one(b, index, op, results, names)


def _descriptor(slot: int | Ref) -> int:
    assert isinstance(slot, int), slot
    if slot in ops.HUGE_FILES:
        return HUGE_FILE_FDS + slot
    if slot in ops.TMPFS_FILES:
        return TMPFS_FILE_FDS + slot
    return slot & WORD_MASK if slot < 0 else ring.FIRST_FILE_FD + slot


def _seen(b: Builder, op: Op) -> int:
    """Append what writes mincore's vector down; return where, or -1."""
    length = op.args[1]
    pages = (int(length) + ring.PAGE - 1) // ring.PAGE if isinstance(length, int) else 0
    if not 0 < pages <= MAX_SEEN:
        return -1
    return b.add(ring.call("write", ring.OUT_FD, ring.RING + ring.SCRATCH, pages))
