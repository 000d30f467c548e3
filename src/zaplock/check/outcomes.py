"""Outcomes of a run: what several tasks have got, taken together.

    A.1 == 0 and B.2 != A.2 and word.0 == 1

A.1 is what the first operation of the task A gave; word.0 is what a word holds at the end. So a
scenario can say which results are wrong together, though each of them alone is right, and what is
right for one task by what another has got.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zaplock.check.operations import MOST_WORDS, word_name
from zaplock.errors import UserError
from zaplock.model.words import value_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le,
    ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_PLACE: Final = r"([\w-]+)\.(\d{1,4})"
_TERM: Final = re.compile(rf"\s*{_PLACE}\s*(==|!=|<=|>=|<|>)\s*(?:{_PLACE}|([\w-]+))\s*")


@dataclass(frozen=True)
class ResultPlace:
    """What an operation of a task gave, or a word. task: its index, -1 for a word.

    number: of the operation from 0, or of the word.
    """

    task: int
    number: int

    def value(self, m: Machine, results: Sequence[Any]) -> int | None:
        """Return what is there at an end with these results, None if nothing is."""
        if self.task < 0:
            return value_of(m, word_name(self.number)) or 0
        given = results[self.task]
        if given is None or self.number >= len(given):  # it hasn't ended, or never began
            return None
        return int(given[self.number])


@dataclass(frozen=True)
class Term:
    """One comparison, with a number or with what stands elsewhere."""

    left: ResultPlace
    comparison: str
    right: ResultPlace | int

    def holds(self, m: Machine, results: Sequence[Any]) -> bool:
        """Return whether it is true of an end; where something isn't there it is not."""
        left = self.left.value(m, results)
        right = self.right if isinstance(self.right, int) else self.right.value(m, results)
        return left is not None and right is not None and COMPARE[self.comparison](left, right)


@dataclass(frozen=True)
class Outcome:
    """Comparisons that are all true, as a scenario writes them."""

    text: str
    terms: tuple[Term, ...]

    def __call__(self, m: Machine, results: Sequence[Any]) -> bool:
        """Return whether a run has ended so; a task that hasn't ended, has not."""
        return all(term.holds(m, results) for term in self.terms)


def parse_outcome(text: str, tasks: Sequence[tuple[str, int]], values: dict[str, int]) -> Outcome:
    """Read an outcome; `tasks` has each task's name and how many operations it does.

    Raises UserError where it names what there isn't. `values` are names of results.
    """
    return Outcome(text, tuple(_term(part, text, tasks, values) for part in text.split(" and ")))


def _term(part: str, text: str, tasks: Sequence[tuple[str, int]], values: dict[str, int]) -> Term:
    found = _TERM.fullmatch(part)
    if found is None:
        raise UserError(
            f"outcome {text!r}: {part.strip()!r} is neither TASK.OPERATION == VALUE "
            "nor word.N == VALUE; a value may be TASK.OPERATION, too"
        )
    name, digits, comparison, other, others_digits, wanted = found.groups()
    left = _place(name, digits, text, tasks)
    if other is not None:
        return Term(left, comparison, _place(other, others_digits, text, tasks))
    value = values.get(wanted)
    if value is None:
        if not re.fullmatch(r"-?\d{1,18}", wanted):
            raise UserError(f"outcome {text!r}: {wanted!r} is neither a number nor a result's name")
        value = int(wanted)
    return Term(left, comparison, value)


def _place(name: str, digits: str, text: str, tasks: Sequence[tuple[str, int]]) -> ResultPlace:
    number = int(digits)
    if name == "word":
        if number >= MOST_WORDS:
            raise UserError(f"outcome {text!r}: words are word.0 to word.{MOST_WORDS - 1}")
        return ResultPlace(-1, number)
    for index, (task, operations) in enumerate(tasks):
        if task == name:
            if not 1 <= number <= operations:
                raise UserError(f"outcome {text!r}: {name} does operations 1 to {operations}")
            return ResultPlace(index, number - 1)
    known = ", ".join(task for task, _ in tasks)
    raise UserError(f"outcome {text!r}: no task {name!r}; there are {known}, and word")
