"""Which functions a simulated thread was in, when: what ftrace's function_graph would have seen.

A protocol's functions are coroutines, so the chain of those it is in can be read whenever it takes
a step. A log costs some microseconds a step and is only kept of the thread that is studied.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from zaplock.engines.timed.threads import call_chain
from zaplock.model.step import MarkStep, Step

ENTRY = "syscall"
"""The function below which a system call's own functions begin; what is above is not logged."""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One function from its entry to its exit, in nanoseconds; `depth` counts from 0."""

    name: str
    depth: int
    begin_ns: int
    end_ns: int
    is_leaf: bool


class CallLog:
    """The steps of one thread, each with the functions that it was taken in."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._stops: list[tuple[int, tuple[str, ...]]] = []

    def follow(self, program: Coroutine[Step[Any], Any, Any]) -> Coroutine[Step[Any], Any, Any]:
        """Return a program that does the same and leaves its steps here."""
        return _Followed(program, self)

    def note(self, program: Any, step: Step[Any]) -> None:
        """Note that a step is taken now."""
        if isinstance(step, MarkStep):
            return
        chain = tuple(call_chain(program)[::-1])
        inside = chain[chain.index(ENTRY) + 1 :] if ENTRY in chain else ()
        self._stops.append((self._now(), (*inside, step.name) if inside else ()))

    def end(self) -> None:
        """Note that the program has ended."""
        self._stops.append((self._now(), ()))

    def calls(self) -> list[FunctionCall]:
        """List the calls in the order of their entries, as function_graph nests them.

        A step lasts until the next one is taken. Two steps with the same chain of functions are in
        one call of these, unless one of them ended in between.
        """
        found: list[FunctionCall] = []
        open_: list[tuple[str, int, int]] = []
        for time_ns, chain in self._stops:
            same = _common(open_, chain)
            _close(found, open_, same, time_ns)
            for name in chain[same:]:
                open_.append((name, time_ns, len(found)))
                found.append(FunctionCall(name, len(open_) - 1, time_ns, time_ns, False))
        return found


def _common(open_: list[tuple[str, int, int]], chain: tuple[str, ...]) -> int:
    """Count the functions that stay open; a step itself never does."""
    same = 0
    while same < min(len(open_), len(chain)) - 1 and open_[same][0] == chain[same]:
        same += 1
    return min(same, len(open_) - 1) if open_ else 0


def _close(
    found: list[FunctionCall], open_: list[tuple[str, int, int]], keep: int, time_ns: int
) -> None:
    while len(open_) > keep:
        name, begin_ns, row = open_.pop()
        is_leaf = row == len(found) - 1
        found[row] = FunctionCall(name, found[row].depth, begin_ns, time_ns, is_leaf)


class _Followed(Coroutine[Step[Any], Any, Any]):
    """A coroutine that tells a log of each step on its way to the engine."""

    def __init__(self, program: Coroutine[Step[Any], Any, Any], log: CallLog) -> None:
        self._program = program
        self._log = log

    def send(self, value: Any) -> Step[Any]:
        try:
            step = self._program.send(value)
        except StopIteration:
            self._log.end()
            raise
        self._log.note(self._program, step)
        return step

    def throw(self, *error: Any) -> Step[Any]:
        return self._program.throw(*error)

    def close(self) -> None:
        self._program.close()

    def __await__(self) -> Any:
        return self._program.__await__()
