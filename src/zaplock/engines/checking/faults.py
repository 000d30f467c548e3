"""What steps, protocols and promises do wrong, as what it is to a checker.

An assertion that an interleaving makes fail is a broken rule like any other. Another error
(KeyError, ...) says that the code is wrong, so it has a rule and an exit code of its own; both are
told with task, step, line and schedule, as every counterexample is. So is an attempt to end the
process: it would end a check with whatever exit code it likes.

What is asked about a state, a promise or whether a wait is over, writes nothing. The engines ask
it as often as they like, so a write would be no part of any interleaving.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from zaplock.errors import ProtocolError, UserError
from zaplock.model.frozen import NotFrozen
from zaplock.model.machine import Machine
from zaplock.model.violations import Invariant, Violation, made

P = ParamSpec("P")
R = TypeVar("R")


def guarded(act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `act`; what goes wrong in it is raised as a Violation.

    Raises ProtocolError where it makes a Violation and goes on as if nothing were wrong.
    """
    before, made.last = made.last, None
    try:
        result = act(*args, **kwargs)
        if made.last is not None:
            raise ProtocolError(
                f"the Violation {str(made.last)!r} is made, and then nothing comes of it: raise "
                "it, and let no `except` on the way catch it"
            )
        return result
    except (Violation, UserError, NotFrozen, MemoryError):
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        raise violation_of(error) from error
    finally:
        made.last = before


class _Wrote(ProtocolError):
    """A write of what only looks."""


class _Refused(list[tuple[Any, Any, Any]]):
    """A journal that refuses every write."""

    def append(self, write: tuple[Any, Any, Any]) -> None:
        cells, key, _ = write
        raise _Wrote(f"writes the cell {cells.name}[{key!r}]")


_REFUSED: Final = _Refused()


def asked(
    look: Callable[Concatenate[Any, P], R], machine: Machine, *args: P.args, **kwargs: P.kwargs
) -> R:
    """Ask what only looks at a machine; what goes wrong in it is raised as a Violation.

    Raises ProtocolError where it writes a cell.
    """
    store = machine.store
    before, store.journal = store.journal, _REFUSED
    try:
        return guarded(look, machine, *args, **kwargs)
    except _Wrote as error:
        raise ProtocolError(
            f"{_name_of(look)} {error}: what is asked about a state may look at it and no more"
        ) from None
    finally:
        store.journal = before


def _name_of(look: Any) -> str:
    """Name what is asked: an author's invariant, or a function."""
    parts = [*look.args, look.func] if isinstance(look, partial) else [look]
    names = [getattr(part, "name", None) or getattr(part, "__name__", "") for part in parts]
    return next(filter(None, names), str(look))


def violation_of(error: BaseException) -> Violation:
    """Return the broken rule that a Python error stands for."""
    frames = traceback.extract_tb(error.__traceback__)
    # Where a recursion ends, and in which words, depends on who called.
    is_deep = isinstance(error, RecursionError)
    last = frames[len(frames) // 2 if is_deep else -1]
    where = f"{last.name} ({Path(last.filename).name}:{last.lineno})"
    if isinstance(error, AssertionError):
        said = f": {error}" if str(error) else f": {last.line}" if last.line else ""
        return Violation(Invariant.ASSERTION_HOLDS, f"an assertion fails in {where}{said}")
    said = "calls go too deep" if is_deep else str(error)
    return Violation(Invariant.CODE_RUNS, f"{type(error).__name__} in {where}: {said}")
