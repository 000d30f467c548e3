"""What a user's file adds to a scenario: operations and invariants of one's own.

Both stand in the file beside the scenario that uses them, or are added to any scenario by
`zaplock check --operation FILE.py:NAME --invariant FILE.py:NAME`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from zaplock.check.operations import KINDS, OperationKind
from zaplock.check.scenarios import Scenario
from zaplock.designs.own_files import named_in_file
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.faults import guarded
from zaplock.errors import ProtocolError, UserError
from zaplock.model.machine import Machine
from zaplock.model.step import Task
from zaplock.model.violations import Invariant, InvariantName, Violation

Results = tuple[int, ...]
Wrong = str | None
"""What is wrong, in words, or None."""

_OPERATION: Final = re.compile(r"[a-z][a-z0-9_-]*")
_INVARIANT: Final = re.compile(r"[A-Z][A-Z0-9_]*")

INVARIANTS: Final = {one.name: one.value for one in Invariant}
"""zaplock's own, in words: none of one's own may have such a name."""


@dataclass(frozen=True, kw_only=True)
class OwnOperation(OperationKind):
    """An operation of one's own, by the name that the tasks of a scenario use.

    run: an `async` function of a `Cx` and the operation's numbers, one for each of `arguments`. It
    returns a number: 0 or more where it has done its work, else a negative errno. summary: one
    line. empties: it promises that nobody can reach the old pages of its range (its first two
    numbers: page and count of pages) when it has returned.

    An argument named "file", "mm", "child", "prot" or "context" has to be one that the scenario
    has; any other is a number of pages, or whatever `run` takes it for.
    """

    name: str

    def __post_init__(self) -> None:
        if not _OPERATION.fullmatch(self.name) or self.name in KINDS:
            raise UserError(
                f"operation {self.name!r}: its name has to be small letters, digits and dashes, "
                "and none of zaplock's own ('zaplock check --list')"
            )
        if self.empties and len(self.arguments) < 2:
            raise UserError(f"operation {self.name!r}: `empties` needs a page and a count of pages")
        _takes(self.run, 1 + len(self.arguments), f"operation {self.name!r}: run")
        object.__setattr__(self, "arguments", tuple(self.arguments))


@dataclass(frozen=True, kw_only=True)
class OwnInvariant:
    """An invariant of one's own. Each function returns what is wrong, in words, or None.

    name: in capitals, as reports name it. says: the rule, in words.
    always(machine): asked in every state.
    at_task_end(machine, task, results): asked when a task has ended.
    at_end(machine, results of all tasks): asked when all have ended.
    sometimes(machine): has to be true in some state, or the check is vacuous: is there anything
        for the invariant to watch?

    A step that finds the rule broken raises `invariant.broken("what has happened")`.
    """

    name: str
    says: str
    always: Callable[[Machine], Wrong] | None = None
    at_task_end: Callable[[Machine, Task, Results], Wrong] | None = None
    at_end: Callable[[Machine, tuple[Results, ...]], Wrong] | None = None
    sometimes: Callable[[Machine], bool] | None = None

    def __post_init__(self) -> None:
        if not _INVARIANT.fullmatch(self.name) or self.name in INVARIANTS:
            raise UserError(
                f"invariant {self.name!r}: its name has to be capitals, digits and _, and none of "
                "zaplock's own ('zaplock check --list')"
            )
        for field, count in (("always", 1), ("at_task_end", 3), ("at_end", 2), ("sometimes", 1)):
            if (function := getattr(self, field)) is not None:
                _takes(function, count, f"invariant {self.name!r}: {field}")

    def broken(self, message: str) -> Violation:
        """Make what a step raises that finds the rule broken."""
        return Violation(InvariantName(self.name, self.says), message)


def _takes(function: Any, count: int, what: str) -> None:
    if not callable(function):
        raise UserError(f"{what} is {function!r} and can't be called")
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError as error:
        raise UserError(f"{what} has to take {count} arguments: {error}") from None
    except ValueError:  # no signature is known, as of some built-in functions
        return


def operations_named(references: Sequence[str]) -> tuple[OwnOperation, ...]:
    """Return the operations of FILE.py:NAME references."""
    return tuple(named_in_file(name, OwnOperation, "an OwnOperation") for name in references)


def invariants_named(references: Sequence[str]) -> tuple[OwnInvariant, ...]:
    """Return the invariants of FILE.py:NAME references."""
    return tuple(named_in_file(name, OwnInvariant, "an OwnInvariant") for name in references)


def kinds_of(scenario: Scenario) -> dict[str, OperationKind]:
    """Return what the tasks of a scenario can do, by name: zaplock's operations and its own."""
    own: dict[str, OperationKind] = {}
    for one in scenario.operations:
        if not isinstance(one, OwnOperation):
            raise UserError(f"scenario {scenario.name!r}: operation {one!r} is no OwnOperation")
        if one.name in own:
            raise UserError(f"scenario {scenario.name!r} has two operations named {one.name!r}")
        own[one.name] = one
    return {**KINDS, **own}


def watched(system: Configuration, scenario: Scenario) -> Configuration:
    """Add a scenario's own invariants to what the engines explore of it."""
    invariants = scenario.invariants
    if not invariants:
        return system
    names: set[str] = set()
    for one in invariants:
        if not isinstance(one, OwnInvariant):
            raise UserError(f"scenario {scenario.name!r}: invariant {one!r} is no OwnInvariant")
        if one.name in names:
            raise UserError(f"scenario {scenario.name!r} has two invariants named {one.name!r}")
        names.add(one.name)
    own: dict[str, list[Callable[..., None]]] = {field: [] for field in _WHEN}
    happens: dict[str, Callable[[], bool]] = {}
    for invariant in invariants:
        for field, when in _WHEN.items():
            if (function := getattr(invariant, field)) is not None:
                asked = WasAsked()
                own[field].append(partial(_ask, invariant, function, asked))
                happens[f"{when} for {invariant.name} to judge"] = asked.was
    sometimes = {
        f"something for {invariant.name} to watch": partial(_is_there, invariant)
        for invariant in invariants
        if invariant.sometimes is not None
    }
    return replace(
        system,
        always=(*system.always, *own["always"]),
        at_task_end=(*system.at_task_end, *own["at_task_end"]),
        at_end=(*system.at_end, *own["at_end"]),
        sometimes={**system.sometimes, **sometimes},
        happens={**system.happens, **happens},
    )


_WHEN: Final = {"always": "a state", "at_task_end": "the end of a task", "at_end": "an end"}


class WasAsked:
    """Whether an invariant was asked at all, in a whole search; nothing looks at it meanwhile."""

    __slots__ = ("seen",)
    is_constant = True

    def __init__(self) -> None:
        self.seen = False

    def was(self) -> bool:
        """Return whether it was."""
        return self.seen


def _ask(
    invariant: OwnInvariant, function: Callable[..., Wrong], asked: WasAsked, *args: Any
) -> None:
    asked.seen = True
    said = function(*args)
    if said is None:
        return
    if not isinstance(said, str) or not said:
        raise ProtocolError(
            f"invariant {invariant.name}: {getattr(function, '__name__', 'its function')} returned "
            f"{said!r}; return what is wrong, in words, or None"
        )
    raise invariant.broken(said)


def _is_there(invariant: OwnInvariant, m: Machine) -> bool:
    assert invariant.sometimes is not None
    try:
        said = guarded(invariant.sometimes, m)
    except Violation as violation:
        raise ProtocolError(
            f"invariant {invariant.name}: sometimes fails: {violation.message}"
        ) from None
    if not isinstance(said, bool):
        raise ProtocolError(
            f"invariant {invariant.name}: sometimes returned {said!r}; return True or False"
        )
    return said
