"""Proposals of 2026 from linux-mm, by author and month, on top of a release.

They are named after the release that they stand on: linux-7.3-song-2026-04-retry. Several may be
put together with a plus sign: linux-7.3-wilcox-2026-05-hold+song-2026-05-fork.

Sources. Faults that wait for I/O, and fork: the thread of "[PATCH v2 0/5] mm: reduce mmap_lock
contention and improve page fault performance" (Barry Song, 30 April 2026,
20260430040427.4672-1-baohua@kernel.org) with the answers of Matthew Wilcox (May), Suren
Baghdasaryan (18 May and 20 June), Lorenzo Stoakes (18 and 19 May) and Yang Shi (18 and 19 May).
Remote reads: "[PATCH v2 0/3] mm: __access_remote_vm with per-VMA lock" (Rik van Riel, 16 and 24
June 2026). The patches of the April series were read; of the others what the messages say.
`docs/proposals.md` has the questions and what comes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from zaplock.protocols.design import Design


def _with(summary: str, **rules: Any) -> Callable[[Design], Design]:
    def proposed(base: Design) -> Design:
        return replace(base, summary=f"a proposal: {summary}", **rules)

    return proposed


PROPOSALS_2026: dict[str, Callable[[Design], Design]] = {
    "song-2026-04-retry": _with(
        "a fault that has waited for I/O is taken again under the VMA lock (VM_FAULT_RETRY_VMA)",
        major_fault="vma",
    ),
    "wilcox-2026-05-hold": _with(
        "a fault holds the VMA lock while it waits for I/O", major_fault="hold"
    ),
    "baghdasaryan-2026-06-flags": _with(
        "VM_FAULT_RETRY becomes two flags: retry under the VMA lock, or under the mmap_lock",
        major_fault="vma",
    ),
    "song-2026-05-fork": _with(
        "fork write-locks only anonymous and copy-on-write VMAs", fork_locks="cow"
    ),
    "shi-2026-05-fork": _with(
        "fork write-locks, and copies the page tables of, only VMAs with an anon_vma",
        fork_locks="anon_vma",
        fork_copies="anon_vma",
    ),
    "shi-2026-05-fork-copying": _with(
        "fork write-locks only VMAs with an anon_vma, and copies all that it does today",
        fork_locks="anon_vma",
    ),
    "riel-2026-06-remote-v1": _with(
        "a read of another process's memory locks one VMA after the other", remote_lock="vma"
    ),
    "riel-2026-06-remote": _with(
        "a read of another process's memory locks the VMA, if it lies in one", remote_lock="one-vma"
    ),
}
"""What a name ends with -> how the design is made of the release before it.

In what the model has of them, the two ways to retry under the VMA lock are one: it has no other
reason to retry than I/O, a userfaultfd and the want of the mmap_lock.
"""
