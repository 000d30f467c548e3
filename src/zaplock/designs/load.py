"""Find a design by its name, or a user's own by FILE.py:NAME; tell two designs apart."""

from __future__ import annotations

import runpy
from dataclasses import fields
from pathlib import Path

from zaplock.designs.change import show
from zaplock.designs.linux import NEWEST, OLDEST, linux
from zaplock.designs.observed import NOT_RULES
from zaplock.designs.proposals import PROPOSALS
from zaplock.designs.shipped import SHIPPED
from zaplock.errors import UserError, or_meant
from zaplock.protocols.design import Design


def load(name: str) -> Design:
    """Return a shipped design, a Linux release's, or NAME of a Python file for "FILE.py:NAME".

    Raises UserError where there is no such design, file or name, or where the file fails.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    file, colon, variable = name.rpartition(":")
    if colon and file.endswith(".py"):
        return _from_file(Path(file), variable)
    why = ""
    if name.startswith("linux-"):
        try:
            release, _, proposal = name.removeprefix("linux-").partition("-")
            if proposal in PROPOSALS:
                return PROPOSALS[proposal](linux(release))
            return linux(name.removeprefix("linux-"))
        except UserError as error:
            why = f" ({error})"
    others = f"linux-RELEASE from {OLDEST} to {NEWEST} (linux-6.6.30), or FILE.py:NAME for your own"
    meant = why or or_meant(name, SHIPPED)
    raise UserError(f"no design {name!r}{meant}; there are {', '.join(SHIPPED)}, {others}")


def _from_file(file: Path, variable: str) -> Design:
    if not file.is_file():
        raise UserError(f"design file {str(file)!r} does not exist; give FILE.py:NAME")
    try:
        names = runpy.run_path(str(file))
    except Exception as error:
        raise UserError(
            f"design file {str(file)!r} fails with {type(error).__name__}: {error}"
        ) from error
    design = names.get(variable)
    if not isinstance(design, Design):
        found = ", ".join(key for key, value in names.items() if isinstance(value, Design))
        raise UserError(
            f"{variable!r} in {str(file)!r} is not a Design; the file has {found or 'none'}"
        )
    return design


def differences(design: Design, other: Design) -> list[tuple[str, str, str]]:
    """List the fields in which a design differs from another: (field, its value, other's)."""
    return [
        (field.name, show(getattr(design, field.name)), show(getattr(other, field.name)))
        for field in fields(Design)
        if field.name not in NOT_RULES and getattr(design, field.name) != getattr(other, field.name)
    ]
