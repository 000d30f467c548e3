"""Python errors in steps and protocols, as what they are to a checker: counterexamples.

An assertion that an interleaving makes fail is a broken rule like any other. Another error
(KeyError, ...) says that the code is wrong, so it has a rule and an exit code of its own; both are
told with task, step, line and schedule, as every counterexample is.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from zaplock.errors import UserError
from zaplock.model.frozen import NotFrozen
from zaplock.model.violations import Invariant, Violation

P = ParamSpec("P")
R = TypeVar("R")


def guarded(act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `act`; what goes wrong in it is raised as a Violation."""
    try:
        return act(*args, **kwargs)
    except (Violation, UserError, NotFrozen, MemoryError):
        raise
    except Exception as error:
        raise violation_of(error) from error


def violation_of(error: Exception) -> Violation:
    """Return the broken rule that a Python error stands for."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    where = f"{last.name} ({Path(last.filename).name}:{last.lineno})"
    if isinstance(error, AssertionError):
        said = f": {error}" if str(error) else f": {last.line}" if last.line else ""
        return Violation(Invariant.ASSERTION_HOLDS, f"an assertion fails in {where}{said}")
    return Violation(Invariant.CODE_RUNS, f"{type(error).__name__} in {where}: {error}")
