"""Proposals: zaplock's own munmaps that stall nobody, and those of others (proposals_2026).

They are named after the release that they stand on, any from 6.18 on: linux-6.18-dying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from zaplock.designs.proposals_2026 import PROPOSALS_2026
from zaplock.errors import UserError
from zaplock.linux_version import LinuxVersion, find
from zaplock.protocols.cut_munmap import do_munmap_cut
from zaplock.protocols.design import Design
from zaplock.protocols.dying import CHUNK, do_munmap_dying, vm_munmap_chunked

OLDEST = LinuxVersion(6, 18)
"""The first release that has what the proposals stand on: VMA locks, gather and complete."""


def dying(base: Design) -> Design:
    """Return a design whose munmap leaves a tombstone and zaps under no lock (protocols.dying)."""
    require_base(base)
    return replace(
        base,
        name=f"{base.name}-dying",
        kernel=f"{base.kernel} + tombstones",
        summary="a proposal: munmap leaves a tombstone and zaps under no lock of the address space",
        do_munmap=do_munmap_dying,
        munmap_downgrades=False,
        tombstones=True,
    )


def dying_chunked(base: Design) -> Design:
    """Return `dying` whose munmap takes a range of many VMAs in pieces (vm_munmap_chunked)."""
    whole = dying(base)
    return replace(
        whole,
        name=f"{whole.name}-chunked",
        summary=f"as dying, but {CHUNK} VMAs at a time: shorter holds, no longer all or nothing",
        munmap=vm_munmap_chunked,
    )


def cut(base: Design) -> Design:
    """Return a design whose unmaps cut page tables out and zap them after the unlock."""
    require_base(base)
    return replace(
        base,
        name=f"{base.name}-cut",
        kernel=f"{base.kernel} + cut tables",
        summary="a proposal: page tables are cut out under the lock, and zapped under none",
        do_munmap=do_munmap_cut,
        munmap_downgrades=False,
        brk_downgrades=False,
        mremap_downgrades=False,
        cuts=True,
    )


def require_base(base: Design) -> None:
    """Raise UserError for a release that lacks what the proposals stand on."""
    release = find(base.kernel)
    if release is None or release < OLDEST:
        raise UserError(f"{base.name} can't carry a proposal: they stand on linux-6.18 or later")


OWN: dict[str, Callable[[Design], Design]] = {
    "dying": dying,
    "dying-chunked": dying_chunked,
    "cut": cut,
}
PROPOSALS: dict[str, Callable[[Design], Design]] = OWN | PROPOSALS_2026
"""What a name ends with -> how the design is made of the release before it."""


def with_proposals(base: Design, names: Sequence[str]) -> Design:
    """Return a release with some proposals, named for all of them.

    Raises UserError where the release lacks what they stand on.
    """
    require_base(base)
    made = base
    for name in names:
        made = PROPOSALS[name](made)
    return replace(
        made,
        name=f"{base.name}-{'+'.join(names)}",
        kernel=f"{base.kernel} + {', '.join(names)}" if made.kernel == base.kernel else made.kernel,
    )
