"""Proposals of zaplock's own: munmaps that stall nobody, on top of any release from 6.18 on.

They are named RELEASE-dying: linux-6.18-dying, linux-7.1-dying.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from zaplock.protocols.design import Design
from zaplock.protocols.dying import do_munmap_dying, vm_munmap_dying


def dying(base: Design) -> Design:
    """Return a design whose munmap leaves a tombstone and zaps under no lock (protocols.dying)."""
    return replace(
        base,
        name=f"{base.name}-dying",
        kernel=f"{base.kernel} + tombstones",
        summary="a proposal: munmap leaves a tombstone and zaps under no lock of the address space",
        munmap=vm_munmap_dying,
        do_munmap=do_munmap_dying,
        munmap_downgrades=False,
        tombstones=True,
    )


PROPOSALS: dict[str, Callable[[Design], Design]] = {"dying": dying}
"""What a name ends with -> how the design is made of the release before it."""
