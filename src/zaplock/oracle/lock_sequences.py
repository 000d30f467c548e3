"""The lock sequence of the real kernel against that of the design's protocols.

For a sample of sequences the mmap_lock's tracepoints are recorded while the bare process runs, this
time without looking at its address space (reading smaps takes the lock). What the kernel did with
the lock is then the sequence of letters that the model's protocols say:

    W  got it for write      w  gave it back       D  went on under read (downgrade)
    R  got it for read       r  gave it back

Asking is left out, since a trylock that succeeds is not announced and for us the same. Needs root.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from zaplock.engines.sequential import LockCall
from zaplock.errors import UserError
from zaplock.oracle.generate import Generator
from zaplock.oracle.modelside import ModelSide
from zaplock.oracle.ops import Op
from zaplock.oracle.real import RealSide
from zaplock.oracle.scope import Scope
from zaplock.trace.events import EventKind, Events

PRELUDE = "RrWw"  # the ring populated and sealed
MARK = "WwRr"  # program.MARK, after every operation
BATCH = 20  # sequences in one sample


class Difference(NamedTuple):
    """The first operation of a sequence at which the two sides part, and what each did."""

    sequence: tuple[Op, ...]
    at: int
    kernel: str
    model: str


class LockSample(NamedTuple):
    """What a sample showed: operations compared, lock operations in them, and what differed."""

    operations: int
    lock_operations: int
    differences: tuple[Difference, ...]


def letters_of(calls: Sequence[LockCall]) -> str:
    """Write the model's calls on the mmap_lock as letters."""
    written = ""
    for call in calls:
        if call.name != "mmap_lock" or call.action == "failed":
            continue
        if call.action == "downgrade":
            written += "D"
        elif call.action == "up":
            written += "w" if call.write else "r"
        else:
            written += "W" if call.write else "R"
    return written


def letters_by_task(events: Events, tids: Sequence[int]) -> dict[int, str]:
    """Write what each task did with its first mm's lock as letters, in order of time."""
    wanted, mms, written, writers = set(tids), dict[int, int](), dict[int, str](), set[int]()
    rows = zip(*(events[name].tolist() for name in _COLUMNS), strict=True)
    for kind, tid, mm, write, success in rows:
        if tid not in wanted or kind not in (EventKind.ACQUIRED, EventKind.RELEASED):
            continue
        if mms.setdefault(tid, mm) != mm or (kind == EventKind.ACQUIRED and not success):
            continue
        written[tid] = written.get(tid, "") + _letter(kind, bool(write), tid, writers)
    return written


_COLUMNS = ("kind", "tid", "mm", "write", "success")


def _letter(kind: int, write: bool, tid: int, writers: set[int]) -> str:
    """Name one event; `writers` remembers who holds the lock for write."""
    if kind == EventKind.RELEASED:
        writers.discard(tid)
        return "w" if write else "r"
    if write:
        writers.add(tid)
        return "W"
    downgraded = tid in writers
    writers.discard(tid)
    return "D" if downgraded else "R"


def sample(real: RealSide, model: ModelSide, seed: int, scope: Scope) -> LockSample:
    """Compare the lock sequences of BATCH sequences. Raises UserError without root.

    A difference counts if it comes again: now and then a fault falls back to the mmap_lock for no
    reason of its own (an interrupt between two looks at a VMA's lock). What a child does goes on
    under another thread id, so none goes on here.
    """
    generator = Generator(
        seed, replace(scope, without=scope.without | {"into_child", "ksm_unmerge"})
    )
    first = compare(real, model, [generator.sequence() for _ in range(BATCH)])
    again = compare(real, model, [found.sequence for found in first.differences])
    return first._replace(differences=again.differences)


def compare(real: RealSide, model: ModelSide, sequences: Sequence[tuple[Op, ...]]) -> LockSample:
    """Record these sequences, replay them on the model, and compare letter by letter."""
    from zaplock.recorder.in_memory import record_mm

    if os.geteuid() != 0:
        raise UserError("lock sequences are read from tracepoints: run as root")
    if not sequences:
        return LockSample(0, 0, ())
    with record_mm(events=("mmap_lock",)) as recorder:
        ran = [real.run_unobserved(sequence) for sequence in sequences]
    if recorder.lost_events:
        return LockSample(0, 0, ())
    seen = letters_by_task(recorder.events(), [tid for tid, _ in ran])
    differences, operations, total = [], 0, 0
    for sequence, (tid, results) in zip(sequences, ran, strict=True):
        parts = _model_letters(model, sequence, results)
        if parts is None:
            continue  # the results differ already: that is the comparison's to report
        operations += len(sequence)
        total += sum(map(len, parts))
        found = first_difference(sequence, seen.get(tid, ""), parts)
        differences += [found] if found else []
    return LockSample(operations, total, tuple(differences))


def _model_letters(
    model: ModelSide, sequence: Sequence[Op], results: Sequence[int]
) -> list[str] | None:
    model.lock_calls = []
    steps = model.run(sequence)
    calls, model.lock_calls = model.lock_calls, None
    if [step.outcome.result for step in steps] != list(results):
        return None
    return [letters_of(part) for part in calls]


def first_difference(
    sequence: Sequence[Op], kernel: str, parts: Sequence[str]
) -> Difference | None:
    """Find the operation at which the kernel's letters leave the model's."""
    at = len(PRELUDE)
    if not kernel.startswith(PRELUDE):
        return Difference(tuple(sequence), 0, kernel[:8], f"{PRELUDE}...")
    for index, expected in enumerate(part + MARK for part in parts):
        if not kernel.startswith(expected, at):
            shown = kernel[at : at + len(expected) + 2]
            return Difference(tuple(sequence), index, shown, expected)
        at += len(expected)
    return None
