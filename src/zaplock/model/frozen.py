"""Values that nobody can change, told apart by type as well as by value.

The checker compares results, arguments and cells by `exact`: Python says that 1 equals True and
that two NamedTuples of equal fields are equal, and a protocol may tell them apart all the same.
What can be changed in place, and what has an order that another run need not repeat (a set), has no
exact value and is refused with `NotFrozen`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Final

import msgspec


class NotFrozen(TypeError):
    """A value that may be changed in place, or one that has no fixed order.

    `value` is the part at fault and `why` what is wrong with it, with the way out.
    """

    def __init__(self, value: object, why: str) -> None:
        super().__init__(value, why)
        self.value = value
        self.why = why

    def __str__(self) -> str:
        return f"{_show(self.value)} is a {type(self.value).__name__}: {self.why}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


ATOMS: Final = frozenset({int, str, bytes, types.NoneType})
"""Types whose values are their own exact values."""

Exactly = Callable[[Any], Hashable]
_WAYS: Final[dict[type, Exactly]] = {}
_REFUSING: Final[set[Exactly]] = set()


def exact(value: Any) -> Hashable:
    """Return what stands for `value` and for no other; raises NotFrozen."""
    kind = type(value)
    if kind in ATOMS:
        return value  # type: ignore[no-any-return]
    way = _WAYS.get(kind)
    if way is None:
        way = _WAYS[kind] = _way(kind)
    return way(value)


def is_refused(kind: type) -> bool:
    """Return whether no value of a type has an exact value, so that asking for one is in vain."""
    way = _WAYS.get(kind)
    if way is None:
        way = _WAYS[kind] = _way(kind)
    return way in _REFUSING


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type and value, all the way down."""
    return one is other or (type(one) is type(other) and exact(one) == exact(other))


def _way(kind: type) -> Exactly:
    """Find out once how values of a type are told apart."""
    if kind in _OTHERS:
        return _OTHERS[kind]
    if kind.__module__.startswith("zaplock.") and getattr(kind, "is_constant", False):
        return lambda value: (kind, id(value))
    if issubclass(kind, Enum):
        return lambda value: (kind, str(value.name), str(value.value))
    if issubclass(kind, msgspec.Struct):
        if not kind.__struct_config__.frozen:
            return _refuse("make its class frozen=True")
        return _struct
    if is_dataclass(kind):
        return _dataclass(kind)
    for plain in (tuple, int, str, bytes):
        if issubclass(kind, plain):
            return _subclass(kind, plain)
    if issubclass(kind, type):
        return lambda value: (kind, value)
    if issubclass(kind, (set, frozenset)):
        return _refuse("a set has no order that another run would repeat; use a sorted tuple")
    return _refuse("it can be changed in place; use a number, a string or a tuple, a NamedTuple, "
                   "a frozen dataclass or a frozen msgspec.Struct")  # fmt: skip


def _dataclass(kind: type) -> Exactly:
    if not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return _refuse("make its class @dataclass(frozen=True)")
    names = [field.name for field in fields(kind)]

    def way(value: Any) -> Hashable:
        more = getattr(value, "__dict__", None)
        if more is not None and len(more) > len(names):
            raise NotFrozen(value, "it has attributes that are no fields of its class")
        return (kind, *[exact(getattr(value, name)) for name in names])

    return way


def _subclass(kind: type, plain: Any) -> Exactly:
    def way(value: Any) -> Hashable:
        if getattr(value, "__dict__", None):
            raise NotFrozen(value, "it has attributes beside its value")
        return kind, exact(plain(value))

    return way


def _refuse(why: str) -> Exactly:
    def way(value: Any) -> Hashable:
        raise NotFrozen(value, why)

    _REFUSING.add(way)
    return way


def _tuple(value: tuple[Any, ...]) -> Hashable:
    kinds = tuple(map(type, value))
    if _FLAT[kinds]:
        return kinds, value
    return (tuple, *[exact(part) for part in value])


def _struct(value: msgspec.Struct) -> Hashable:
    held = msgspec.structs.astuple(value)
    kinds = tuple(map(type, held))
    if _FLAT[kinds]:  # not the value itself, which may say by an `__eq__` of its own what it equals
        return kinds, type(value), held
    return (type(value), *[exact(part) for part in held])


class _Flat(dict[tuple[type, ...], bool]):
    """Whether values of these types, with the types beside them, stand for themselves."""

    def __missing__(self, kinds: tuple[type, ...]) -> bool:
        found = self[kinds] = all(kind in ATOMS or kind is bool for kind in kinds)
        return found


_FLAT: Final = _Flat()


def _function(value: types.FunctionType) -> Hashable:
    if value.__closure__ or value.__defaults__ or value.__kwdefaults__ or value.__dict__:
        raise NotFrozen(value, "a function that captures values; pass the values instead")
    return types.FunctionType, value.__module__, value.__code__


_OTHERS: Final[dict[type, Exactly]] = {
    bool: lambda value: (bool, value),
    float: lambda value: (float, value.hex()),
    complex: lambda value: (complex, value.real.hex(), value.imag.hex()),
    range: lambda value: (range, value.start, value.stop, value.step),
    tuple: _tuple,
    types.FunctionType: _function,
    types.BuiltinFunctionType: lambda value: (types.BuiltinFunctionType, value),
}
