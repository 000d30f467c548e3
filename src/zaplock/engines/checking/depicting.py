"""What something that can change looks like now, as a value to compare with a later look.

Used for what a protocol or a step may see beside its results and the cells: captured variables,
defaults, globals, objects. And for where a coroutine stands: its frames, with all their locals.

A frame is depicted only if nothing hides on its value stack: an iterator of a `for`, the exit of a
`with`, half of an expression. What depth its stack has at an `await` follows from its byte code.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any, Final

from zaplock.model.frozen import ATOMS, NotFrozen, exact, is_refused
from zaplock.model.step import Step, StepKind
from zaplock.model.store import Cells, OnDemand, Store

PACKAGE: Final = "zaplock."


class Undepictable(Exception):
    """Something whose state can't be seen; `value` is that."""

    def __init__(self, value: object) -> None:
        super().__init__(f"{type(value).__name__}")
        self.value = value


class _Same:
    """Equal to itself only: stands for a thing that does not change, or not in secret."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


CONSTANT: Final = (
    type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, StepKind, Cells, OnDemand,
    Store,
)  # fmt: skip


Records = dict[int, tuple[object, Hashable]]
"""Frozen records by their identity, and what stands for each as long as it is there."""


def depict(value: object) -> Hashable:
    """Return what `value` looks like now, all that it reaches included; raises Undepictable."""
    return _Depiction({}).of(value)


@dataclass(frozen=True)
class Stand:
    """Where one frame of a suspended protocol stands.

    seen: its code, instruction and locals. is_bare: nothing else is there. since: how many results
    the protocol had received when the frame began to await what it awaits; it has not moved since.
    """

    seen: Hashable
    is_bare: bool
    since: int


def is_same_place(now: Sequence[Stand], before: Sequence[Stand], had: int) -> bool:
    """Return whether a protocol is where it was when it had received `had` results.

    What can't be seen of a frame is unchanged if the frame has not moved since then. The inner
    frames come first: they are those that differ.
    """
    return len(now) == len(before) and all(
        one.seen == other.seen and (one.is_bare or one.since <= had)
        for one, other in zip(reversed(now), reversed(before))
    )


def depict_frames(chain: Sequence[tuple[Any, int]], records: Records) -> tuple[Stand, ...]:
    """Depict the frames of (coroutine or generator, since), the outermost first."""
    depiction = _Depiction(records)
    for one, _ in chain:
        depiction.meet(one)
    stands = []
    for one, since in chain:
        frame: Any = getattr(one, "cr_frame", None) or one.gi_frame
        seen = frame.f_code, frame.f_lasti, depiction.named(frame.f_locals)
        stands.append(Stand(seen, stands_bare(one), since))
    return tuple(stands)


class _Depiction:
    """One look. What is met twice is the second time named by its number: aliases matter."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.met: dict[int, int] = {}
        self.kept: list[object] = []

    def of(self, value: Any) -> Hashable:
        kind: Any = type(value)
        if kind in ATOMS:
            return value  # type: ignore[no-any-return]
        if _is_record(kind):
            return self._record(value)
        if not is_refused(kind):
            try:
                return exact(value)
            except NotFrozen:
                pass
        if isinstance(value, CONSTANT):
            return _Same(value)
        number = self.met.get(id(value))
        if number is not None:
            return "again", number
        self.meet(value)
        return type(value), self._inside(value)

    def _record(self, value: object) -> Hashable:
        known = self.records.get(id(value))
        if known is None:
            try:
                known = value, exact(value)
            except NotFrozen:
                known = value, _Same(value)
            self.records[id(value)] = known
        return known[1]

    def meet(self, value: object) -> None:
        """Give a value its number."""
        self.met[id(value)] = len(self.met)
        self.kept.append(value)

    def all(self, values: Any) -> Hashable:
        return tuple([self.of(value) for value in values])

    def named(self, values: dict[str, Any]) -> Hashable:
        """Depict values with their names, in their order."""
        return tuple([(name, self.of(value)) for name, value in values.items()])

    def _inside(self, value: Any) -> Hashable:
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.MethodType):
            return self.of(value.__self__), self.of(value.__func__)
        if isinstance(value, types.CoroutineType):
            return self.frame(value.cr_frame, value.cr_await, True)
        if isinstance(value, types.GeneratorType):
            return self.frame(value.gi_frame, value.gi_yieldfrom, False)
        if isinstance(value, types.CellType):
            return self._cell(value)
        if isinstance(value, partial):
            return self.all((value.func, value.args, value.keywords))
        return self._contents(value)

    def _contents(self, value: Any) -> Hashable:
        attributes = self._attributes(value)
        if isinstance(value, (list, tuple)):
            return self.all(value), attributes
        if isinstance(value, dict):
            return self.all(item for pair in value.items() for item in pair), attributes
        if isinstance(value, (set, frozenset)):
            return frozenset(self.of(item) for item in value), attributes
        if isinstance(value, Random):
            return value.getstate(), attributes
        kind: Any = type(value)
        if isinstance(value, Step) or _is_plain(kind):
            return attributes
        try:
            reduced = value.__reduce_ex__(2)
        except TypeError:
            raise Undepictable(value) from None
        if isinstance(reduced, str):
            return reduced
        # The fourth and fifth part are iterators over what it contains.
        return self.all((*reduced[:3], *[tuple(part) for part in reduced[3:5] if part is not None]))

    def _attributes(self, value: Any) -> Hashable:
        kind: Any = type(value)
        found = dict(getattr(value, "__dict__", ()))
        for name in _slots(kind):
            if hasattr(value, name):
                found[name] = getattr(value, name)
        return self.named({name: found[name] for name in sorted(found)})

    def function(self, value: types.FunctionType) -> Hashable:
        """Depict what a function sees beside its arguments and globals."""
        return value.__code__, self.all(
            (value.__closure__ or (), value.__defaults__, value.__kwdefaults__, value.__dict__)
        )

    def _cell(self, cell: types.CellType) -> Hashable:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return "empty"

    def frame(self, frame: Any, inner: Any, is_coroutine: bool) -> Hashable:
        """Depict where a suspended coroutine or generator stands."""
        if frame is None:
            return "ended"
        if not is_bare(frame.f_code, frame.f_lasti, is_coroutine or inner is not None):
            raise Undepictable(frame)
        return frame.f_code, frame.f_lasti, self.named(frame.f_locals), self.of(inner)


HEAPTYPE: Final = 1 << 9
"""The flag of classes that are made by a `class` statement, and of some made in C."""


@cache
def _is_plain(kind: type) -> bool:
    """Return whether attributes are all that an object of a class is made of."""
    kinds = [kind for kind in kind.__mro__ if kind is not object]
    made_in_python = all(kind.__flags__ & HEAPTYPE for kind in kinds)
    return made_in_python and "__reduce_ex__" not in {n for k in kinds for n in vars(k)}


@cache
def _slots(kind: type) -> tuple[str, ...]:
    """Name what objects of a class keep outside their dictionary."""
    found = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    names = [name for slots in found for name in ([slots] if isinstance(slots, str) else slots)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


@cache
def _is_record(kind: type) -> bool:
    """Return whether it is one of zaplock's own frozen records, such as a design."""
    parameters = getattr(kind, "__dataclass_params__", None)
    return kind.__module__.startswith(PACKAGE) and parameters is not None and parameters.frozen


# Frames


def stands_bare(one: Any) -> bool:
    """Return whether nothing hides in the frame of a suspended coroutine or generator."""
    is_coroutine = isinstance(one, types.CoroutineType)
    frame: Any = one.cr_frame if is_coroutine else one.gi_frame
    return is_bare(frame.f_code, frame.f_lasti, is_coroutine or one.gi_yieldfrom is not None)


def is_bare(code: types.CodeType, at: int, awaits: bool) -> bool:
    """Return whether nothing but what is awaited is on the value stack of a frame at `at`."""
    return _depths(code).get(at) == (_AWAIT if awaits else _YIELD)


@cache
def _depths(code: types.CodeType) -> dict[int, int]:
    """Follow the byte code: how deep the value stack is before each instruction.

    Handlers of exceptions are not followed: what stands there counts as unknown.
    """
    instructions = list(dis.get_instructions(code))
    index_of = {one.offset: index for index, one in enumerate(instructions)}
    depths: dict[int, int] = {}
    todo = [(0, 0)]
    while todo:
        index, depth = todo.pop()
        while index < len(instructions) and instructions[index].offset not in depths:
            one = instructions[index]
            depths[one.offset] = depth
            arg = one.arg if one.opcode >= dis.HAVE_ARGUMENT else None
            if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
                there = depth + dis.stack_effect(one.opcode, arg, jump=True)
                todo.append((index_of[one.argval], there))
            if one.opname.startswith(_ENDS):
                break
            depth += dis.stack_effect(one.opcode, arg, jump=False)
            index += 1
    return depths


_ENDS: Final = (
    "RETURN_VALUE", "RETURN_CONST", "RAISE", "RERAISE", "JUMP_BACKWARD", "JUMP_FORWARD",
    "JUMP_ABSOLUTE",
)  # fmt: skip


def _depth_in(function: Any) -> int:
    """Return how deep the stack is where a function that does nothing else is suspended."""
    code = function.__code__
    offsets = [one.offset for one in dis.get_instructions(code) if one.opname == "YIELD_VALUE"]
    return _depths(code)[offsets[0]]


async def _awaits(one: Any) -> None:
    await one


def _yields() -> Any:
    yield


_AWAIT: Final = _depth_in(_awaits)
_YIELD: Final = _depth_in(_yields)
