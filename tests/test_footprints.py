"""Whatever way a step looks at cells, it leaves a footprint or fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MappingView
from typing import Any

import pytest
from crews import explore_split
from toys import Toy, insert, tasks

from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.packed_states import PackedStore
from zaplock.engines.checking.reference import explore_plainly
from zaplock.model.step import Task, step
from zaplock.model.store import Cells, OrderedCells, RangeMap, Store
from zaplock.model.violations import Invariant, Violation

ARGUMENTS: tuple[tuple[Any, ...], ...] = (
    (), (3,), (3, 4), (3, 9, "v"), ([1],), ({1: 2},), ("x",), (lambda x: x,),
)  # fmt: skip
BLIND = {
    # What says nothing about the cells.
    "__class__", "__class_getitem__", "__delattr__", "__dir__", "__doc__", "__getattribute__",
    "__init__", "__init_subclass__", "__module__", "__new__", "__setattr__", "__slots__",
    "__subclasshook__", "__weakref__", "__orig_bases__", "__parameters__", "__getstate__",
    "__annotations__", "__dict__", "__static_attributes__", "__firstlineno__",
    # Doors for engines, and what a store is made of.
    "back_with", "order_with", "store", "name", "data", "order", "restore", "fromkeys",
}  # fmt: skip


def filled(kind: type[Cells[Any, Any]]) -> tuple[PackedStore, Cells[Any, Any]]:
    store = Store()
    cells = kind(store, "c")
    for key in (3, 5):
        cells.put(key, (key + 1, "v"))
    packed = PackedStore(store, 0)
    packed.begin()
    return packed, cells


def methods(*kinds: type) -> list[str]:
    return sorted({name for kind in kinds for name, _ in inspect.getmembers(kind)} - BLIND)


def leaves_a_footprint(packed: PackedStore, act: Callable[[], Any]) -> bool:
    """Return whether an act was recorded or refused."""
    try:
        found = act()
        if isinstance(found, (Iterator, MappingView)):
            list(found)  # the look counts, not the asking for it
    except Exception:
        return True
    if found is NotImplemented:
        return True
    return bool(packed.reads)


@pytest.mark.parametrize("kind", [Cells, OrderedCells, RangeMap])
@pytest.mark.parametrize("name", methods(Cells, OrderedCells, RangeMap, dict, list))
def test_every_method_of_every_container_is_recorded_or_refused(
    kind: type[Cells[Any, Any]], name: str
) -> None:
    targets: list[Callable[[Cells[Any, Any]], Any]] = [lambda c: c, lambda c: c.data]
    if issubclass(kind, OrderedCells):
        targets.append(lambda c: c.order)
    for target in targets:
        for arguments in ARGUMENTS:
            packed, cells = filled(kind)
            thing = target(cells)
            method = getattr(thing, name, None)
            if method is None or _is_of_object(thing, name):
                continue
            assert leaves_a_footprint(packed, lambda m=method, a=arguments: m(*a)), (  # type: ignore[misc]
                kind, name, arguments,
            )  # fmt: skip


def _is_of_object(thing: Any, name: str) -> bool:
    """Return whether a method is the one of `object`, which looks at no cell."""
    return getattr(type(thing), name, None) is getattr(object, name, ...)


WAYS_TO_LOOK: dict[str, Callable[[Any], Any]] = {
    "reversed": lambda m: tuple(reversed(m.numbers.order)),
    "a copy": lambda m: tuple(m.numbers.order.copy()),
    "a sum": lambda m: tuple(m.numbers.order + []),  # noqa: RUF005
    "a sum from the right": lambda m: tuple([] + m.numbers.order),  # noqa: RUF005
    "a product": lambda m: tuple(m.numbers.order * 1),
    "a count": lambda m: m.numbers.order.count(8),
    "a comparison": lambda m: m.numbers.order > [],
    "an unpacking": lambda m: (*m.numbers.order,),
    "an extension": lambda m: tuple(_extended(m.numbers.order)),
    "sorted": lambda m: tuple(sorted(m.numbers.order)),
    "the data reversed": lambda m: tuple(reversed(m.numbers.data)),
    "a dict of the data": lambda m: tuple(dict(m.numbers.data)),
    "a dict display": lambda m: tuple({**m.numbers.data}),
    "a union": lambda m: tuple(m.numbers.data | {}),
    "a union from the right": lambda m: tuple({} | m.numbers.data),
    "a copy of the data": lambda m: tuple(m.numbers.data.copy()),
    "items": lambda m: tuple(m.numbers.data.items()),
    "a length": lambda m: len(m.numbers.data),
    "the truth": lambda m: bool(m.numbers),
    "text": lambda m: repr(m.numbers.data),
    "a pattern": lambda m: _matched(m.numbers.order),
}


def _extended(order: Any) -> list[int]:
    found: list[int] = []
    found.extend(order)
    found += order
    return found


def _matched(order: Any) -> int:
    match list(order):
        case [first, *_]:
            return int(first)
    return 0


@pytest.mark.parametrize("way", WAYS_TO_LOOK)
def test_a_step_that_looks_so_is_run_again_where_it_matters(way: str) -> None:
    look = WAYS_TO_LOOK[way]

    @step
    def looks(m: Toy, _task: Task) -> None:
        if look(m) != nothing:
            raise Violation(Invariant.BOOKS_BALANCE, "there is one")

    nothing = look(Toy())

    async def watch() -> None:
        await looks()
        await looks()

    async def work() -> None:
        await insert(8)

    for bodies in ((watch, work), (work, watch)):
        configuration = Configuration(Toy, tasks(*bodies))
        for verdict in (explore(configuration), explore_plainly(configuration, exact=True)):
            assert verdict.answer == "broken"


@pytest.mark.parametrize("late_first", [False, True])
def test_a_container_that_comes_late_makes_what_was_remembered_void(late_first: bool) -> None:
    @step
    def fill(m: Toy, task: Task) -> None:
        m.tlb(task.cpu).set(7, 8, 1)  # type: ignore[arg-type]

    @step
    def look(m: Toy, _task: Task) -> None:
        if m.cpus:
            raise Violation(Invariant.NO_STALE_TRANSLATION, "some CPU holds one")

    async def late() -> None:
        await insert(1)
        await fill()

    async def early() -> None:
        await look()
        await look()
        await look()

    bodies = (late, early) if late_first else (early, late)
    configuration = Configuration(Toy, tasks(*bodies))
    assert explore(configuration).answer == "broken"
    assert explore_plainly(configuration, exact=True).answer == "broken"
    assert explore_split(configuration, 2).answer == "broken"


def test_processes_share_containers_that_only_one_of_them_makes() -> None:
    @step
    def fill(m: Toy, task: Task, cpu: int) -> int:
        m.tlb(cpu).set(7, 8 + task.tid, 1)  # type: ignore[arg-type]
        return len(m.cpus)

    async def one() -> int:
        await insert(1)
        await insert(2)
        return await fill(1) + await fill(2) * 3

    async def other() -> int:
        await insert(3)
        await insert(4)
        return await fill(2) + await fill(4) * 3

    configuration = Configuration(Toy, tasks(one, other, one))
    alone = explore(configuration, all_violations=True)
    split = explore_split(configuration, 3, all_violations=True)
    assert (alone.answer, alone.states, alone.transitions, alone.endings) == (
        split.answer, split.states, split.transitions, split.endings,
    )  # fmt: skip


def test_a_container_that_holds_nothing_is_as_good_as_none() -> None:
    m = Toy()
    assert m.cpus == []
    m.tlb(3)
    assert m.cpus == []
    assert 3 not in m.mms
    m.mm(3).counters.put("users", 1)
    assert list(m.mms) == [3]
