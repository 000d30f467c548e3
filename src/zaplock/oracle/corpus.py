"""Sequences as JSON: the corpus of past divergences and the files of `--replay`.

One file holds one sequence: {"why": text, "operations": [["mmap", 268435456, 4096, 3, 50, -1, 0],
["store", {"op": 0, "delta": 8}]]}. "themes" names those that need what the machine is lent for
their sequences, such as swap.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from zaplock.errors import UserError, no_such
from zaplock.inputs import read_text
from zaplock.oracle import ops
from zaplock.oracle.ops import Argument, Op, Ref
from zaplock.oracle.themes import THEMES
from zaplock.untrusted_names import visible

MOST_OPERATIONS = 1000


class _Reference(msgspec.Struct, forbid_unknown_fields=True):
    op: int
    delta: int = 0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    operations: list[list[str | int | _Reference]]
    why: str = ""
    themes: list[str] = []


def dump(sequence: Sequence[Op], why: str, themes: Collection[str] = ()) -> str:
    """Write a sequence as the text of a file, one operation a line."""
    lines = ",\n  ".join(json.dumps([op.name, *map(_plain, op.args)]) for op in sequence)
    needs = f' "themes": {json.dumps(sorted(themes))},\n' if themes else ""
    return f'{{"why": {json.dumps(why)},\n{needs} "operations": [\n  {lines}\n ]}}\n'


def _plain(argument: Argument) -> object:
    return argument._asdict() if isinstance(argument, Ref) else argument


def load(path: Path) -> tuple[tuple[Op, ...], str]:
    """Read a file; return its sequence and why it was kept. Raises UserError on any fault of it."""
    raw = _read(path)
    if len(raw.operations) > MOST_OPERATIONS:
        raise UserError(
            f"{path} has {len(raw.operations)} operations, and at most {MOST_OPERATIONS} are run: "
            "leave some out"
        )
    made: list[Op] = []
    for line in raw.operations:
        made.append(_operation(path, line, len(made)))
    return tuple(made), raw.why


def themes_of(path: Path) -> frozenset[str]:
    """Return the themes that a file names. Raises UserError where there is none of that name."""
    themes = _read(path).themes
    if unknown := next((theme for theme in themes if theme not in THEMES), None):
        lack = no_such("theme", unknown, THEMES, listed="'zaplock oracle --help'")
        raise UserError(f"{path}: {lack}")
    return frozenset(themes)


def _read(path: Path) -> _File:
    try:
        return msgspec.json.decode(read_text(path, "a file of --save"), type=_File)
    except (msgspec.MsgspecError, RecursionError) as error:
        reason = visible(str(error))
        raise UserError(
            f"{path} is not a sequence of operations: {reason}; a program of threads is for "
            "--threads --replay"
        ) from None


def _operation(path: Path, line: list[str | int | _Reference], index: int) -> Op:
    name = name_of(str(path), line, index, [*ops.CALLS, *ops.ACCESSES])
    return Op(name, arguments(str(path), line, index, ops.arguments_of(name)))


def name_of(
    where: str,
    line: Sequence[str | int | _Reference],
    index: int,
    known: Collection[str],
    kind: str = "operation",
) -> str:
    """Read the name of operation `index`, a line of a file. Raises UserError on faults."""
    if not line:
        raise UserError(f"{where}: operation {index} is empty: give its name and arguments")
    name = line[0]
    if isinstance(name, str) and name in known:
        return name
    lack = no_such(kind, str(name), known)
    raise UserError(f"{where}: operation {index}: {lack}")


def arguments(
    where: str, line: Sequence[str | int | _Reference], index: int, wanted: tuple[str, ...]
) -> tuple[Argument, ...]:
    """Read the arguments of operation `index`, a line of a file. Raises UserError on faults."""
    if len(line) - 1 != len(wanted):
        raise UserError(
            f"{where}: operation {index}, {line[0]}, has {len(line) - 1} arguments "
            f"and takes {len(wanted)}: {', '.join(wanted) or 'none'}"
        )
    return tuple(_argument(where, value, index) for value in line[1:])


def _argument(where: str, value: str | int | _Reference, index: int) -> Argument:
    if isinstance(value, _Reference):
        if not 0 <= value.op < index:
            raise UserError(
                f"{where}: operation {index} refers to operation {value.op}, not an earlier one"
            )
        _fits(where, value.delta, index)
        return Ref(value.op, value.delta)
    if isinstance(value, str):
        raise UserError(f"{where}: operation {index} has the argument {value!r}, not a number")
    _fits(where, value, index)
    return value


def _fits(where: str, value: int, index: int) -> None:
    """A register has 64 bits."""
    if not -(1 << 63) <= value < 1 << 64:
        raise UserError(
            f"{where}: operation {index} has the argument {value}, beyond 64 bits: give one from "
            "-2^63 to 2^64 - 1"
        )
