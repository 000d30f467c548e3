"""Which rules of a design did a run ask for, and which changes of Linux decided them?

A run is a function of the rules that it read: two designs that agree in those give the same run,
whatever else they differ in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from zaplock.designs.change import Change
from zaplock.designs.changes import CHANGES
from zaplock.designs.linux import changes_in, design_of
from zaplock.linux_version import find
from zaplock.model.rwsem import RwsemPolicy
from zaplock.protocols.design import Design

PARTS = "parts of rwsem"
NOT_RULES = frozenset({"name", "kernel", "summary", "__wrapped__", PARTS})


class _Observed:
    """Stands before a design. What was read once is kept, so that only the first read costs."""

    def __init__(self, design: Design | RwsemPolicy) -> None:
        self.__dict__["__wrapped__"] = design  # so that who reads code finds what is behind it

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["__wrapped__"], name)
        self.__dict__[name] = value
        return value

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        """Be the design behind it: what was read meanwhile makes no other position."""
        return _Observed, (self.__dict__["__wrapped__"],)


def observe(design: Design) -> Design:
    """Return a stand-in for a design that remembers what is read of it."""
    return cast(Design, _Observed(design))


def observed_design(design: Design) -> Design:
    """Return the design that a stand-in stands before; any other design is itself."""
    while isinstance(design, _Observed):
        design = design.__dict__["__wrapped__"]
    return design


def rules_read(observed: Design) -> frozenset[str]:
    """Name the rules that were read of a stand-in."""
    return frozenset(vars(observed)) - NOT_RULES | ({"rwsem"} if PARTS in vars(observed) else set())


def observed_rwsem(design: Design) -> RwsemPolicy:
    """Return the policy of a design's semaphore; a stand-in's remembers which parts were read."""
    if not isinstance(design, _Observed):
        return design.rwsem
    kept = design.__dict__
    if PARTS not in kept:
        kept[PARTS] = _Observed(observed_rwsem(kept["__wrapped__"]))
    return cast(RwsemPolicy, kept[PARTS])


def values_read(observed: Design | RwsemPolicy) -> dict[str, Any]:
    """Return the rules that were read of a stand-in with their values, and those of its PARTS."""
    kept = vars(observed)
    values = {name: value for name, value in kept.items() if name not in NOT_RULES}
    return {**values, PARTS: values_read(kept[PARTS])} if PARTS in kept else values


def agrees(design: Design | RwsemPolicy, values: Mapping[str, Any]) -> bool:
    """Return whether a design has all the values that were read of another."""
    return all(
        agrees(cast(Design, design).rwsem, value)
        if name == PARTS
        else getattr(design, name) == value
        for name, value in values.items()
    )


def deciding(design: Design, rules: Iterable[str]) -> list[Change]:
    """Return the changes that gave a design these rules, in the order of the table.

    What a design has of its own, and what is as it was in 4.9, has no change.
    """
    if find(design.kernel) is None:
        return []
    stock = design_of(design.kernel).design
    last: dict[tuple[str, str], Change] = {}
    for change in changes_in(design.kernel):
        last.update(dict.fromkeys(_parts(change), change))
    kept = {rule for rule in rules if getattr(stock, rule) == getattr(design, rule)}
    chosen = [change for (rule, _), change in last.items() if rule in kept]
    return [change for change in CHANGES if change in chosen]


def _parts(change: Change) -> list[tuple[str, str]]:
    """Name what a change sets: (rule, ""), or (rule, part) of a rule that has parts."""
    return [
        (rule, part)
        for rule, value in change.rules.items()
        for part in (value if isinstance(value, Mapping) else ("",))
    ]
