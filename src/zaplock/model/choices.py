"""Records whose fields are choices: a value that is none of them is refused when one is made.

A rule that is spelled wrongly would else be like any value that is not asked for, and a proof under
it a proof of something else. Types are read from the record's own annotations: `Literal` lists the
choices, `bool` is True or False and nothing else that is true.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zaplock.errors import UserError, or_meant


def require_choices(record: Any) -> None:
    """Raise UserError where a field of a record holds none of its choices."""
    kind: Any = type(record)
    for name, choices in _choices(kind):
        value = getattr(record, name)
        if (type(value), value) not in choices:
            known = [one for _, one in choices]
            meant = or_meant(value, known) if isinstance(value, str) else ""
            said = ", ".join(map(repr, known))
            raise UserError(
                f"{type(record).__name__}: {name} is {value!r}{meant}; it has to be one of {said}"
            )


@cache
def _choices(kind: Any) -> tuple[tuple[str, tuple[tuple[type, Any], ...]], ...]:
    """List the fields that hold one of some choices, each with its type: True is not 1."""
    hints = get_type_hints(kind)
    listed = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    flags = {name: (False, True) for name, hint in hints.items() if hint is bool}
    return tuple(
        (name, tuple((type(one), one) for one in choices))
        for name, choices in {**listed, **flags}.items()
    )
