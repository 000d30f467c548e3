"""Programs of threads as JSON: the files of `--threads --save` and `--threads --replay`.

One file holds one program: {"why": text, "setup": [["mmap", 270516224, 4096, 3, 50, -1, 0]],
"threads": [[["store", 270516224]], [["munmap", 270516224, 4096]]]}. All arguments are numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from zaplock.errors import UserError
from zaplock.inputs import read_text
from zaplock.oracle import corpus, ops, ring
from zaplock.oracle.ops import Op
from zaplock.oracle.thread_programs import DRAWN
from zaplock.oracle.threaded import FORK_LOAD, SETUP_LENGTH, ThreadedProgram
from zaplock.untrusted_names import visible

MOST_OPERATIONS = 8
"""Of all threads together: their orders are tried one by one."""
_OF_WHOLE_PAGES = {"pread": (1, 2, 3), "ftruncate": (1,)}
"""Which of an operation's arguments are whole pages: else how far a copy came shows otherwise."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    setup: list[list[str | int]]
    threads: list[list[list[str | int]]]
    why: str = ""


def dump(threaded: ThreadedProgram, why: str) -> str:
    """Write a program as the text of a file, one operation a line."""
    threads = ",\n  ".join(f"[\n   {_lines(part)}\n  ]" for part in threaded.threads)
    setup = _lines(threaded.setup)
    begin = f'{{"why": {json.dumps(why)},\n "setup": [\n   {setup}\n ],\n'
    return f'{begin} "threads": [\n  {threads}\n ]}}\n'


def _lines(operations: Sequence[Op]) -> str:
    return ",\n   ".join(json.dumps([op.name, *op.args]) for op in operations)


def load(path: Path) -> tuple[ThreadedProgram, str]:
    """Read a file; return its program and why it was kept. Raises UserError on any fault of it."""
    try:
        text = read_text(path, "a file of --threads --save")
        raw = msgspec.json.decode(text, type=_File)
    except (msgspec.MsgspecError, RecursionError) as error:
        reason = visible(str(error))
        raise UserError(
            f"{path} is not a program of threads: {reason}; a sequence is for --replay alone"
        ) from None
    if not 2 <= len(raw.threads) <= ring.MOST_THREADS:
        raise UserError(
            f"{path} has {len(raw.threads)} threads, and programs have 2 to {ring.MOST_THREADS}: "
            "leave some out, or add one"
        )
    if len(raw.setup) > SETUP_LENGTH:
        raise UserError(
            f"{path}: its setup has {len(raw.setup)} operations, and at most {SETUP_LENGTH} are "
            "run: leave some out"
        )
    if (count := sum(map(len, raw.threads))) > MOST_OPERATIONS:
        raise UserError(
            f"{path}: its threads have {count} operations, and all orders of at most "
            f"{MOST_OPERATIONS} are tried: leave some out"
        )
    setup = _operations(f"{path}: setup", raw.setup, may_fork=False)
    threads = tuple(
        _operations(f"{path}: thread {number}", part) for number, part in enumerate(raw.threads)
    )
    return ThreadedProgram(setup, threads), raw.why


def _operations(
    where: str, lines: list[list[str | int]], *, may_fork: bool = True
) -> tuple[Op, ...]:
    return tuple(_operation(where, line, index, may_fork) for index, line in enumerate(lines))


def _operation(where: str, line: list[str | int], index: int, may_fork: bool) -> Op:
    known, kind = DRAWN, "operation of threads"
    if not may_fork:
        known, kind = DRAWN - {FORK_LOAD}, "operation of a set-up"
    name = corpus.name_of(where, line, index, sorted(known), kind)
    arguments = ("addr",) if name == FORK_LOAD else ops.arguments_of(name)
    op = Op(name, corpus.arguments(where, line, index, arguments))
    slot = op.args[ops.TAKES_FILE[name]] if name in ops.TAKES_FILE else ops.NO_FILE
    if slot in ops.HUGE_FILES or slot in ops.TMPFS_FILES:
        raise UserError(
            f"{where}: operation {index}, {name}, has file {slot}, which is lent to sequences "
            f"alone: give one of 0 to {len(ops.FILES) - 1}"
        )
    for place in _OF_WHOLE_PAGES.get(name, ()):
        value = op.args[place]
        if isinstance(value, int) and value % ring.PAGE:
            raise UserError(
                f"{where}: operation {index}, {name}, has the {arguments[place]} {value}, which "
                f"is not a multiple of the page size {ring.PAGE}"
            )
    return op
