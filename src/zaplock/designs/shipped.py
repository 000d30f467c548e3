"""The designs that are laid side by side unless others are named."""

from __future__ import annotations

from zaplock.designs.linux import (
    LINUX_4_9,
    LINUX_4_18,
    LINUX_4_20,
    LINUX_5_10,
    LINUX_6_1,
    LINUX_6_18,
    RFC_V6,
    RFC_V6_POSTED,
)
from zaplock.designs.proposals import cut, dying
from zaplock.protocols.design import Design

SHIPPED: dict[str, Design] = {
    design.name: design
    for design in (
        LINUX_4_9,
        LINUX_4_18,
        RFC_V6_POSTED,
        RFC_V6,
        LINUX_4_20,
        LINUX_5_10,
        LINUX_6_1,
        LINUX_6_18,
        dying(LINUX_6_18),
        cut(LINUX_6_18),
    )
}
"""The designs that `compare`, `replay` and `check --all` take unless told otherwise."""
