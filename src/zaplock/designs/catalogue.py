"""All designs that have a name, by groups: each group can be asked for like one design."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from zaplock.designs.linux import NEWEST
from zaplock.designs.proposals import OWN
from zaplock.designs.proposals_2026 import PROPOSALS_2026
from zaplock.designs.rivals import rivals
from zaplock.designs.shipped import SHIPPED

NEWEST_NAME: Final = f"linux-{NEWEST}"


def _kernels() -> list[str]:
    standing = [name for name in SHIPPED if not name.endswith(tuple(OWN))]
    return [*standing, NEWEST_NAME]


def _proposals() -> list[str]:
    own = [name for name in SHIPPED if name.endswith(tuple(OWN))]
    return [*own, *(f"{NEWEST_NAME}-{proposal}" for proposal in PROPOSALS_2026)]


GROUPS: Final[dict[str, Callable[[], list[str]]]] = {
    "kernels": _kernels,
    "proposals": _proposals,
    "rivals": lambda: list(rivals()),
}
"""What a group is called -> how its designs are."""


def named(names: Iterable[str]) -> list[str]:
    """List designs that are named one by one or by their group, each once."""
    spelled = [one for name in names for one in (GROUPS[name]() if name in GROUPS else [name])]
    return list(dict.fromkeys(spelled))
