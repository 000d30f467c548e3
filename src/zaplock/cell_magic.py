"""`%load_ext zaplock`, then `%%zaplock` in front of a cell: record it, show who waited for whom.

    %%zaplock
    del big

The process is recorded while the cell runs, and its report drawn below the cell's own output; with
`-o NAME` it is also kept under a name (a `RecordedReport`). Recording needs root and tracefs: where
they can't be had the cell runs all the same, and a line says why it was not recorded.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from zaplock.errors import UserError
from zaplock.notebook import RecordedReport

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

    from zaplock.recorder.in_memory import Recorder
    from zaplock.trace.analysis import Analysis


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add the magic to a shell; `%load_ext zaplock` calls this."""

    def magic(line: str, cell: str) -> None:
        record_cell(shell, line, cell)

    magic.__doc__ = __doc__
    shell.register_magic_function(magic, "cell", "zaplock")  # type: ignore[arg-type]


def record_cell(shell: InteractiveShell, line: str, cell: str) -> None:
    """Run a cell, recorded; display its report. An error of the cell's is raised after that."""
    name = _name_in(line)
    recorder, result = _run(shell, cell)
    if recorder is not None:
        report = RecordedReport(_analysis_of(recorder))
        if name:
            shell.user_ns[name] = report
        from IPython.display import display

        display(report)  # type: ignore[no-untyped-call]
    result.raise_error()  # type: ignore[no-untyped-call]


def _name_in(line: str) -> str:
    words = line.split()
    if not words:
        return ""
    if len(words) != 2 or words[0] != "-o" or not words[1].isidentifier():
        raise UserError(f"%%zaplock takes -o NAME or nothing, not {line!a}")
    return words[1]


def _run(shell: InteractiveShell, cell: str) -> tuple[Recorder | None, ExecutionResult]:
    from zaplock.recorder.in_memory import record_mm

    recording = record_mm(os.getpid(), events=("mmap_lock", "syscalls"))
    try:
        recorder = recording.__enter__()
    except UserError as error:
        print(f"%%zaplock: the cell was not recorded: {error}", file=sys.stderr)
        return None, _ran(shell, cell)
    try:
        return recorder, _ran(shell, cell)
    finally:
        recording.__exit__(None, None, None)


def _ran(shell: InteractiveShell, cell: str) -> ExecutionResult:
    result: ExecutionResult = shell.run_cell(cell)  # type: ignore[no-untyped-call]
    return result


def _analysis_of(recorder: Recorder) -> Analysis:
    from zaplock.trace.analysis import analyse

    return analyse(recorder.events(), os.uname().release, span=recorder.span)
