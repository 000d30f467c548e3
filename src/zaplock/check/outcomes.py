"""Outcomes of a run: what several tasks have got, taken together.

    A.1 == 0 and B.2 != 7 and word.0 == 1

A.1 is what the first operation of the task A gave; word.0 is what a word holds at the end. So a
scenario can say which results are wrong together, though each of them alone is right.
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
_TERM: Final = re.compile(r"\s*([\w-]+)\.(\d{1,4})\s*(==|!=|<=|>=|<|>)\s*([\w-]+)\s*")


@dataclass(frozen=True)
class Term:
    """One comparison. task: its index, -1 for a word; number: of the operation from 0, or word."""

    task: int
    number: int
    comparison: str
    value: int

    def holds(self, m: Machine, results: Sequence[Any]) -> bool:
        """Return whether it is true of an end with these results."""
        if self.task < 0:
            found = value_of(m, word_name(self.number))
        else:
            found = results[self.task][self.number]
        return COMPARE[self.comparison](0 if found is None else found, self.value)


@dataclass(frozen=True)
class Outcome:
    """Comparisons that are all true, as a scenario writes them."""

    text: str
    terms: tuple[Term, ...]

    def __call__(self, m: Machine, results: Sequence[Any]) -> bool:
        """Return whether a run has ended so; a task that hasn't ended, has not."""
        return all(
            (term.task < 0 or results[term.task] is not None) and term.holds(m, results)
            for term in self.terms
        )


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
            "nor word.N == VALUE"
        )
    name, digits, comparison, wanted = found.groups()
    value = values.get(wanted)
    if value is None:
        if not re.fullmatch(r"-?\d{1,18}", wanted):
            raise UserError(f"outcome {text!r}: {wanted!r} is neither a number nor a result's name")
        value = int(wanted)
    number = int(digits)
    if name == "word":
        if number >= MOST_WORDS:
            raise UserError(f"outcome {text!r}: words are word.0 to word.{MOST_WORDS - 1}")
        return Term(-1, number, comparison, value)
    for index, (task, operations) in enumerate(tasks):
        if task == name:
            if not 1 <= number <= operations:
                raise UserError(f"outcome {text!r}: {name} does operations 1 to {operations}")
            return Term(index, number - 1, comparison, value)
    known = ", ".join(task for task, _ in tasks)
    raise UserError(f"outcome {text!r}: no task {name!r}; there are {known}, and word")
