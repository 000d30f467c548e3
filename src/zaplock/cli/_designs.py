"""Designs as the command line names them: several, by commas or by repeating."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.protocols.design import Design


def parse_designs(names: list[str] | None) -> list[Design]:
    """Return the designs of repeated --design options, all shipped ones for None.

    Raises UserError for a name that no design has, or where none is named.
    """
    from zaplock.designs import SHIPPED, load

    if names is None:
        return list(SHIPPED.values())
    wanted = dict.fromkeys(name for text in names for name in text.split(",") if name)
    if not wanted:
        raise UserError(f"no design in {','.join(names)!r}; see zaplock designs")
    return [load(name) for name in wanted]
