"""Programs of several threads: what they are, how the real kernel runs one, what it shows of it.

A program is a set-up that one thread does alone, and two to four threads that then do a few
operations each. They meet before they begin, so that their operations overlap, and each one waits
for a while of its own before each operation, so that they overlap differently each time. What is
seen is what every operation returned (of a fault: the signal, not its code), and the address space
when all have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zaplock.model.frames import TAG_SIZE
from zaplock.oracle import ops, ring, stub
from zaplock.oracle.ops import Op, Snapshot
from zaplock.oracle.program import BareProgram, Place
from zaplock.oracle.program_builder import Builder, address
from zaplock.oracle.program_forks import fork_load
from zaplock.oracle.program_operations import operation
from zaplock.oracle.program_setup import ProgramNames, begin, stay_on

_E = stub.ENTRY
_CLONE, _EXIT, _SIGALTSTACK, _SCHED_YIELD = 56, 60, 131, 24
# CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | PARENT_SETTID | CHILD_CLEARTID
_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x10_0000 | 0x20_0000
_MEETINGS = tuple(ring.RING + ring.MEETING + 8 * number for number in range(3))
"""Words at which the threads meet. Who has waited long at the first has given its CPU to others; at
the last all are running, or nearly so."""
_NOBODY = ring.RING + ring.MEETING + 0x38  # a word that is never above 0: nobody to wait for
SETUP_LENGTH = 16
"""Operation k of thread t is number SETUP_LENGTH * (t + 1) + k: so stores write different tags."""


FORK_LOAD = "fork_load"
"""What only threads do: fork a child that loads a word and exits. Its argument is the address, its
result what the child has loaded, or the signal that it got."""


class ThreadedProgram(NamedTuple):
    """What one thread does first, and what each thread does then; no operation has a `Ref`."""

    setup: tuple[Op, ...]
    threads: tuple[tuple[Op, ...], ...]

    def __str__(self) -> str:
        parts = [self.setup, *self.threads]
        return " || ".join("; ".join(map(str, part)) for part in parts)

    @property
    def length(self) -> int:
        """How many operations it has."""
        return len(self.setup) + sum(map(len, self.threads))


class ThreadedOutcome(NamedTuple):
    """What the threads' operations returned, in order, and the address space in the end."""

    results: tuple[tuple[int, ...], ...]
    after: Snapshot


def number_of(thread: int, index: int) -> int:
    """Number an operation of a thread, for the tag that it writes if it is a store."""
    return SETUP_LENGTH * (thread + 1) + index


def shown(op: Op, result: int) -> int:
    """Reduce a result to what is compared: of a fault the signal alone.

    Of a page that was lost while a pread copied to it (of whole pages) its tag alone, wherever in
    it that was.
    """
    signalled = ops.signalled(result)
    if signalled:
        return -(signalled[0] << 16)
    if op.name == "pread" and result > 0 and result % ring.PAGE:
        return result - result % ring.PAGE + TAG_SIZE
    return result


class _ThreadPlaces(NamedTuple):
    setup: tuple[int, ...]
    threads: tuple[tuple[int, ...], ...]


def build(
    threaded: ThreadedProgram,
    delays: Sequence[Sequence[int]],
    names: ProgramNames,
    cpus: Sequence[int],
) -> tuple[BareProgram, _ThreadPlaces]:
    """Make the program; `delays` says how long each thread turns round before each operation.

    Each thread stays on one of `cpus`, the next on the next: so they run at the same time, also
    where sequences are kept on one CPU.
    """
    assert len(threaded.setup) <= SETUP_LENGTH
    assert len(threaded.threads) <= ring.MOST_THREADS
    everything = [*threaded.setup, *(op for thread in threaded.threads for op in thread)]
    b = Builder()
    begin(b, everything, names._replace(cpu=-1))
    baseline = b.add(ring.OBSERVE)
    setup = [operation(b, index, op, [], names)[0] for index, op in enumerate(threaded.setup)]
    for word in _MEETINGS:
        b.add(stub.entry(stub.STORE, word, len(threaded.threads)))
    places: list[tuple[int, ...]] = [()]
    for number, thread in enumerate(threaded.threads[1:], start=1):
        places.append(_spawn(b, number, thread, delays[number], names, cpus))
    places[0] = _run(b, 0, threaded.threads[0], delays[0], names, cpus)
    for number in range(1, len(threaded.threads)):
        _join(b, number)
    after = b.add(ring.OBSERVE)
    b.add(ring.EXIT)
    code = b"".join(b.parts)
    assert ring.PROGRAM + len(code) <= ring.THREAD_PAGES, "the program is too long"
    return (
        BareProgram(code, (Place(-1, -1, -1, after),), baseline),
        _ThreadPlaces(tuple(setup), tuple(places)),
    )


def _run(
    b: Builder,
    thread: int,
    operations: Sequence[Op],
    delays: Sequence[int],
    names: ProgramNames,
    cpus: Sequence[int],
) -> tuple[int, ...]:
    """Append what a thread does: meet the others, then its operations with delays before them."""
    b.scratch = ring.RING + ring.SCRATCH + ring.THREAD_SCRATCH_SIZE * thread
    b.page = ring.RING + ring.THREAD_PAGES + ring.PAGE * thread
    stay_on(b, cpus[thread % len(cpus)])
    *first, last = _MEETINGS
    b.add(*(stub.entry(stub.MEET, word, 0) for word in first))
    places = []
    for index, (op, delay) in enumerate(zip(operations, delays, strict=True)):
        b.add(stub.entry(stub.MEET, _NOBODY if index else last, delay))
        if op.name == FORK_LOAD:
            places.append(fork_load(b, *_words(op)))
        else:
            places.append(operation(b, number_of(thread, index), op, [], names)[0])
    return tuple(places)


def _words(op: Op) -> list[int]:
    return [value for value in op.args if isinstance(value, int)]


def _spawn(
    b: Builder,
    thread: int,
    operations: Sequence[Op],
    delays: Sequence[int],
    names: ProgramNames,
    cpus: Sequence[int],
) -> tuple[int, ...]:
    """Append a clone; the new thread takes a signal stack of its own, runs, and ends."""
    word = ring.RING + ring.THREAD_IDS + 8 * thread
    stack = ring.RING + ring.THREAD_SIGSTACKS + 24 * thread
    body = b.here + 3 * _E
    b.add(
        stub.syscall(_CLONE, _THREAD, 0, word, word),
        stub.entry(stub.JUMP_IF_ZERO, address(body)),
    )
    inner = Builder()
    inner.here = body
    inner.add(stub.syscall(_SIGALTSTACK, stack, 0))
    places = _run(inner, thread, operations, delays, names, cpus)
    inner.add(stub.syscall(_EXIT, 0))
    b.add(stub.entry(stub.JUMP, address(inner.here)), *inner.parts)
    return places


def _join(b: Builder, thread: int) -> None:
    """Append the wait for a thread's end: the kernel clears its word (CLONE_CHILD_CLEARTID)."""
    first = b.here
    b.add(
        stub.entry(stub.LOAD, ring.RING + ring.THREAD_IDS + 8 * thread),
        stub.entry(stub.JUMP_IF_ZERO, address(first + 4 * _E)),
        stub.syscall(_SCHED_YIELD),
        stub.entry(stub.JUMP, address(first)),
    )
