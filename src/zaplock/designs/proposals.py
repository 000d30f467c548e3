"""Proposals of zaplock's own: munmaps that stall nobody, on top of any release from 6.18 on.

They are named after the release that they stand on: linux-6.18-dying, linux-7.1-cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from zaplock.protocols.cut import do_munmap_cut, vm_munmap_cut
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


def cut(base: Design) -> Design:
    """Return a design whose unmaps cut page tables out and zap them after the unlock."""
    return replace(
        base,
        name=f"{base.name}-cut",
        kernel=f"{base.kernel} + cut tables",
        summary="a proposal: page tables are cut out under the lock, and zapped under none",
        munmap=vm_munmap_cut,
        do_munmap=do_munmap_cut,
        munmap_downgrades=False,
        brk_downgrades=False,
        mremap_downgrades=False,
        cuts=True,
    )


PROPOSALS: dict[str, Callable[[Design], Design]] = {"dying": dying, "cut": cut}
"""What a name ends with -> how the design is made of the release before it."""
