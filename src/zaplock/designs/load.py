"""Find a design by its name, or a user's own by FILE.py:NAME; tell two designs apart."""

from __future__ import annotations

from dataclasses import fields

from zaplock.designs.change import show
from zaplock.designs.linux import NEWEST, OLDEST, linux, vendor_build, version
from zaplock.designs.own_files import is_reference, named_in_file
from zaplock.designs.proposals import PROPOSALS, with_proposals
from zaplock.designs.rivals import rivals
from zaplock.designs.rules_read import NOT_RULES
from zaplock.designs.shipped import SHIPPED
from zaplock.errors import UserError, or_meant
from zaplock.model.rwsem import RwsemPolicy
from zaplock.protocols.design import Design


def load(name: str) -> Design:
    """Return a shipped design, a Linux release's, or NAME of a Python file for "FILE.py:NAME".

    Raises UserError where there is no such design, file or name, or where the file fails.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if name in rivals():
        return rivals()[name]
    if is_reference(name):
        return _checked(named_in_file(name, Design, "a design"), name)
    why = ""
    if name.startswith("linux-"):
        told = name.removeprefix("linux-")
        try:
            release, _, proposed = told.partition("-")
            if proposed and all(one in PROPOSALS for one in proposed.split("+")):
                return with_proposals(linux(release), proposed.split("+"))
            return vendor_build(told) or linux(told)
        except UserError as error:
            why = f" ({error})"
    others = f"linux-RELEASE from {OLDEST} to {NEWEST} (linux-6.6.30), or FILE.py:NAME for your own"
    if why:
        raise UserError(f"no design {name!r}{why}; 'zaplock designs' lists them; or {others}")
    meant = _release_meant(name) or or_meant(name, SHIPPED)
    raise UserError(f"no design {name!r}{meant}; there are {', '.join(SHIPPED)}, {others}")


def _release_meant(name: str) -> str:
    release = name.lower().removeprefix("linux-").removeprefix("v")
    try:
        return f" (did you mean linux-{version(release)}?)"
    except UserError:
        return ""


def _checked(design: Design, name: str) -> Design:
    for field in ("munmap", "do_munmap", "page_fault", "proc_cmdline"):
        if not callable(getattr(design, field)):
            raise UserError(f"design {name!r}: {field} is {getattr(design, field)!r}, no protocol")
    if not isinstance(design.rwsem, RwsemPolicy):
        raise UserError(f"design {name!r}: rwsem is {design.rwsem!r}, no RwsemPolicy")
    return design


def differences(design: Design, other: Design) -> list[tuple[str, str, str]]:
    """List the fields in which a design differs from another: (field, its value, other's)."""
    return [
        (field.name, show(getattr(design, field.name)), show(getattr(other, field.name)))
        for field in fields(Design)
        if field.name not in NOT_RULES and getattr(design, field.name) != getattr(other, field.name)
    ]
