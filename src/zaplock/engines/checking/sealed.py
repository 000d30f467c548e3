"""A machine that keeps its state in cells and nowhere else, since that is all that is compared."""

from __future__ import annotations

from functools import cache
from typing import Any

from zaplock.errors import ProtocolError
from zaplock.model.machine import Machine


def seal(machine: Machine) -> Machine:
    """Let no attribute of `machine` be set or deleted from now on; return the same machine."""
    kind: Any = type(machine)
    machine.__class__ = _sealed(kind)
    return machine


@cache
def _sealed(kind: Any) -> Any:
    def refuse_set(_self: Any, name: str, value: Any) -> None:
        raise ProtocolError(
            f"a step sets the machine's attribute {name} to {value!r}: the checker sees cells "
            "only; keep it in one, such as machine.globals"
        )

    def refuse_delete(_self: Any, name: str) -> None:
        raise ProtocolError(f"a step deletes the machine's attribute {name}")

    return type(kind.__name__, (kind,), {"__setattr__": refuse_set, "__delattr__": refuse_delete})
