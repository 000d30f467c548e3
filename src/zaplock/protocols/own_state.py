"""State and locks that the model has not: a user's own cells, counters and classes of locks.

All state of a protocol has to be in cells, where the checker sees it (`model.store`), and all that
a protocol does to it has to be a step. These give both for one's own state: the steps to await in a
protocol, and `of(machine)` for the body of a step.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeVar

from zaplock.errors import UserError
from zaplock.model.frozen import NotFrozen, exact, same
from zaplock.model.machine import Machine
from zaplock.model.rwsem import Lock
from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.store import Absent, Cells

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
LOCK_CLASSES: Final = ("mmap_lock", "i_mmap")
"""The locks that zaplock's own protocols take."""


_MADE: Final[set[str]] = set()


def lock_classes() -> frozenset[str]:
    """Name every class of locks that there is, a user's own that have been made included."""
    return frozenset((*LOCK_CLASSES, *_MADE))


@cache
def _taken() -> frozenset[str]:
    return frozenset(cells.name for cells in Machine().store.containers())


def _named(name: str, taken: frozenset[str] | tuple[str, ...], what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r}: write its name in small letters, digits and _")
    if name in taken:
        raise ValueError(f"{what} {name!r}: zaplock has one of that name; take another")


@dataclass(frozen=True)
class OwnCells(Generic[K, V]):
    """Cells of one's own, by key; one that was never written holds `default`.

    A counter of an address space is `OwnCells("pinned_vm", 0)` with the number of the mm as key.
    Keys and values must be frozen: numbers, strings, tuples, frozen dataclasses. Cells of one name
    are the same cells wherever they are made, so they have one default.
    """

    name: str
    default: V

    def __post_init__(self) -> None:
        _named(self.name, _taken(), "cells")
        try:
            exact(self.default)
        except NotFrozen as error:
            raise UserError(f"cells {self.name!r}: their default {error}") from None

    def of(self, m: Machine) -> Cells[K, V]:
        """Return the cells of a machine, for the body of a step or for an invariant."""
        cells = m.cells(self.name)
        if not same(cells.default, self.default):
            if not isinstance(cells.default, Absent):
                raise UserError(
                    f"cells {self.name!r} are made with two defaults, {cells.default!r} and "
                    f"{self.default!r}: make them once, or give one of them another name"
                )
            cells.default = self.default
        return cells

    def get(self, m: Machine, key: K) -> V:
        """Return what a cell holds, in the body of a step or in an invariant."""
        value: V = self.of(m).get(key, self.default)
        return value

    def put(self, m: Machine, key: K, value: V) -> None:
        """Write a cell, in the body of a step, and tell who waits for it."""
        self.of(m).put(key, value)
        m.wake((self.name, key))

    def read(self, key: K) -> Step[V]:
        """Make the step that reads a cell."""
        return read_cell(self, key)

    def write(self, key: K, value: V) -> Step[None]:
        """Make the step that writes a cell."""
        return write_cell(self, key, value)

    def add(self, key: K, amount: int) -> Step[Any]:
        """Make the step that adds to a number, as one atomic operation; it gives the new one."""
        return add_to_cell(self, key, amount)

    def wait_for(self, key: K, value: V) -> Step[V]:
        """Make the step that waits until a cell holds a value."""
        return WaitStep(wait_for_cell, (self, key, value), _holds, (self.name, key))

    def __str__(self) -> str:
        return self.name


@step
def read_cell(m: Machine, _task: Task, cells: OwnCells[Any, Any], key: Any) -> Any:
    """Read one cell."""
    return cells.get(m, key)


@step
def write_cell(m: Machine, _task: Task, cells: OwnCells[Any, Any], key: Any, value: Any) -> None:
    """Write one cell."""
    cells.put(m, key, value)


@step
def add_to_cell(m: Machine, _task: Task, cells: OwnCells[Any, Any], key: Any, amount: int) -> Any:
    """Read, add and write in one instant, as an atomic instruction does."""
    value = cells.get(m, key) + amount
    cells.put(m, key, value)
    return value


def _holds(m: Machine, _task: Task, cells: OwnCells[Any, Any], key: Any, value: Any) -> bool:
    return same(cells.get(m, key), value)


def wait_for_cell(m: Machine, _task: Task, cells: OwnCells[Any, Any], key: Any, _v: Any) -> Any:
    """Read the cell that a task has waited for."""
    return cells.get(m, key)


@dataclass(frozen=True)
class LockClass:
    """A class of locks, as lockdep has them: reader/writer semaphores that differ by a number.

    `PIN_LOCK = LockClass("pin_lock")`, then `await down_write(PIN_LOCK(cx.mm))`. One that is only
    ever taken for write is a mutex.
    """

    name: str

    def __post_init__(self) -> None:
        _named(self.name, LOCK_CLASSES, "lock class")
        _MADE.add(self.name)

    def __call__(self, number: int = 1) -> Lock:
        """Return one lock of the class."""
        return (self.name, number)
