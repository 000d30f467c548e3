"""Rivals: address spaces of papers and of other systems, as designs.

What a rival says about its own locks is in its protocols and rules; for everything else it has the
rules of the newest Linux in the table, without per-VMA locks and without the downgrade of munmap,
so that two rivals differ in nothing but what they propose. Each function names its source, and what
of that was read and what is from memory.

`docs/rivals.md` shows them: who locks what, whom that stalls, what was checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from zaplock.designs.linux import NEWEST, linux
from zaplock.protocols.deferred_munmap import do_munmap_deferred
from zaplock.protocols.design import Design
from zaplock.protocols.dying import do_munmap_dying
from zaplock.protocols.fault import page_fault_mmap_lock
from zaplock.protocols.lazy_flush import do_munmap_latr
from zaplock.protocols.lockless_fault import page_fault_bonsai, page_fault_speculative
from zaplock.protocols.munmap import do_vmi_align_munmap
from zaplock.protocols.object_fault import page_fault_zircon
from zaplock.protocols.range_locked import (
    do_munmap_ranged,
    mmap_ranged,
    munmap_ranged,
    page_fault_ranged,
    proc_cmdline_ranged,
)


def _rival(name: str, summary: str, **rules: Any) -> Design:
    base = linux(NEWEST)
    kernel = f"{NEWEST} + {name}"
    return replace(base, name=name, kernel=kernel, summary=summary, **(_PLAIN | rules))


_PLAIN: dict[str, Any] = {
    "do_munmap": do_vmi_align_munmap,
    "page_fault": page_fault_mmap_lock,
    "munmap_downgrades": False,
    "brk_downgrades": False,
    "mremap_downgrades": False,
    "vma_locks": False,
    "fork_locks_vma": False,
    "growth_locks_vma": False,
    "dontneed_lock": "mmap",
    "maps_lock": "mmap",
    "guard_lock": "mmap",
    "smaps_lock": "mmap",
    "gathers_first": False,
}
"""Linux with one lock for everything, held to the end: what a rival changes something of."""


_RANGED: dict[str, Any] = {
    "munmap": munmap_ranged,
    "do_munmap": do_munmap_ranged,
    "mmap": mmap_ranged,
    "page_fault": page_fault_ranged,
    "proc_cmdline": proc_cmdline_ranged,
    "merges": False,
}


def big_lock() -> Design:
    """One exclusive lock for everything: the floor.

    illumos comes near: its AS_LOCK is a reader/writer lock that even readers of /proc/PID/map take
    for write (not read for this).
    """
    return _rival("big-lock", "one lock, always exclusive: faults, too", locking="exclusive")


def range_lock() -> Design:
    """The mmap_lock as a range lock that everybody takes whole (Bueso 2017, Dufour 2018).

    All patches of the series lock the full range first; it was slower than the rwsem, since nobody
    spins on the owner. From the series' cover letters.
    """
    return _rival(
        "range-lock", "the mmap_lock as a range lock, all of the range always", locking="ranges"
    )


def range_lock_faults() -> Design:
    """A range lock of which a fault takes its page, shared; all others take all of it.

    Kogan, Dice, Issa, "Scalable Range Locks for Scalable Address Spaces and Beyond" (EuroSys 2020,
    arXiv 2006.12144; the abstract was read, the refined faults are from memory), without their
    mprotect (range-lock-refined has it).
    """
    return _rival(
        "range-lock-faults", "a range lock: a fault holds its page, shared, others hold everything",
        locking="ranges", page_fault=page_fault_ranged, proc_cmdline=proc_cmdline_ranged,
    )  # fmt: skip


def range_lock_refined() -> Design:
    """A range lock whose mprotect, too, holds less than all where it only moves a border.

    Kogan, Dice, Issa (as range_lock_faults): mprotect looks its mapping up under a shared hold of
    everything, then holds that mapping and a page on both sides, and looks again; an allocator's
    arena that grows into its reserve moves a border. Whatever makes or frees a mapping holds
    everything, so a huge munmap stalls all of it as before. Read: the abstract; the rest is from
    memory.
    """
    return _rival(
        "range-lock-refined",
        "as range-lock-faults, and an mprotect that moves a border holds those mappings alone",
        locking="ranges", page_fault=page_fault_ranged, proc_cmdline=proc_cmdline_ranged,
        mprotect_refines=True,
    )  # fmt: skip


def zircon() -> Design:
    """Zircon: one mutex for the address space; a fault fills its page under its object's alone.

    zircon/kernel/vm was read in parts: an unmap holds the address space's mutex and the object's to
    the end (vm_mapping.cc, DestroyLocked), a fault finds its mapping under the first, gives that
    back and looks at it again under the second (vm_aspace.cc, PageFaultInternal; vm_mapping.cc,
    PageFaultLockedObject). `CurrentlyFaulting` looks like an unmap that leaves its work to
    another thread; it is not: the object's mutex is held as long as it lives, so the unmap that is
    left out is one that the faulting thread itself would do (of a zero page that it replaces).
    The object's mutex is a VMA's lock here: two faults of one object run side by side, which
    Zircon's don't.
    """
    return _rival(
        "zircon", "one mutex, held to the end of an unmap; a fault fills its page without it",
        locking="exclusive", page_fault=page_fault_zircon, vma_locks=True, fork_locks_vma=True,
        growth_locks_vma=True,
    )  # fmt: skip


def bonsai() -> Design:
    """Bonsai: faults look their VMA up under RCU, and again under the page-table lock.

    Clements, Kaashoek, Zeldovich, "Scalable address spaces using RCU balanced trees" (ASPLOS 2012;
    the abstract was read, the protocol is as it is known): mmap and munmap hold mmap_sem for write,
    to the end; a fault fills its entry if the VMA is still in the tree in that instant.
    """
    return _rival(
        "bonsai", "faults hold no lock and look twice; all others are as in Linux to 4.19",
        page_fault=page_fault_bonsai,
    )  # fmt: skip


def speculative_faults() -> Design:
    """Speculative page faults: the fill counts if the VMA has not changed since it was found.

    Laurent Dufour's series (2017 to 2019, a sequence count in each VMA) and Michel Lespinasse's
    (2021, one in the mm: no writer may be at work). The check here is both: the VMA is the same,
    and nobody holds the mmap_lock for write.
    """
    return _rival(
        "speculative-faults", "faults hold no lock; the fill counts if nothing has changed",
        page_fault=page_fault_speculative,
    )  # fmt: skip


def freebsd() -> Design:
    """FreeBSD: the map's lock for write; objects are let go of after the unlock.

    sys/vm/vm_map.c: vm_map_delete unlinks entries and removes the pages under the lock,
    vm_map_process_deferred drops the objects (read in excerpts). An entry leaves its tree without a
    need for memory.
    """
    return _rival(
        "freebsd", "pages go under the map's lock, objects after the unlock",
        do_munmap=do_munmap_deferred, munmap_downgrades=True, tree="rbtree",
    )  # fmt: skip


def xnu() -> Design:
    """XNU: entries go to a zap list under the map's lock, and are disposed of after it.

    osfmk/vm/vm_map.c: vm_map_delete, vm_map_zap_dispose (read in excerpts; its comments show a move
    to locks of ranges). In what the model has of them FreeBSD and XNU decide alike.
    """
    return _rival(
        "xnu", "entries go to a zap list under the map's lock and are disposed of after it",
        do_munmap=do_munmap_deferred, munmap_downgrades=True, tree="rbtree",
    )  # fmt: skip


def latr() -> Design:
    """LATR: munmap interrupts no CPU; each forgets the range at a tick of its own.

    Kumar et al., "LATR: Lazy Translation Coherence" (ASPLOS 2018), on Linux 4.10; read: the
    abstract and a part of its sources (sslab-gatech/latr, arch/x86/mm/tlb.c). Under the mmap_sem
    entries are cleared and the own CPU is flushed. Pages, page tables and addresses wait until
    every CPU has flushed itself at a tick; a thread in the background then gives them back, with
    the mmap_sem for write (there: after two seconds by the clock).
    It promises less than Linux: another thread may reach the old pages after munmap has returned.
    What is checked in place of that: no page is given back and no mapping stands at an address
    while a CPU translates it to what was there. Who names such an address (MAP_FIXED, say) has it
    flushed at once here. Its lazy MADV_DONTNEED is not told.
    """
    return _rival(
        "latr", "pages and addresses of an unmap wait until each CPU has flushed at its tick",
        do_munmap=do_munmap_latr, lazy_flush=True,
    )  # fmt: skip


def windows() -> Design:
    """Windows: a VAD that is marked DeleteInProgress stands in the tree until it is gone.

    From the published layout of MMVAD_FLAGS (DeleteInProgress, Lock, LockContended) and
    MMVAD_SHORT (ReferenceCount, PushLock); what the mark does is taken from its name: addresses
    stay taken, and the pages go under no lock of the address space. As zaplock's tombstones, with
    faults under the shared lock.
    """
    return _rival(
        "windows", "a descriptor marked DeleteInProgress keeps the range while its pages go",
        do_munmap=do_munmap_dying, tombstones=True,
    )  # fmt: skip


def radixvm() -> Design:
    """RadixVM: a radix tree of slots, a lock bit in each; operations lock their own range.

    Clements, Kaashoek, Zeldovich, "RadixVM: Scalable address spaces for multithreaded applications"
    (EuroSys 2013); kernel/vm.cc of its sources was read for this (in the artifact of CortenMM):
    munmap locks the slots of its range from left to right, takes the pages out, shoots translations
    down, unlocks; a fault locks one slot; fork locks all. Page tables of each core's own, and with
    them shootdowns of those cores alone that have faulted, are not in the model.
    """
    return _rival(
        "radixvm", "a lock for each slot: an operation excludes only what overlaps its range",
        locking="slots", **_RANGED,
    )  # fmt: skip


def cortenmm_rw() -> Design:
    """CortenMM with reader/writer locks on page-table pages, and no VMAs.

    "CortenMM: Efficient Memory Management with Strong Correctness Guarantees" (SOSP 2025,
    doi 10.1145/3731569.3764836); its artifact was read for this (TELOS-syslab/CortenMM-Artifact,
    f39c207): shared from the root down, exclusive on the lowest page-table page that covers the
    range. Addresses come from the model's gap search and are used again, where CortenMM's per-CPU
    allocator never does; translations are flushed at once, where it may let them wait for a tick.
    """
    return _rival(
        "cortenmm-rw",
        "reader/writer locks on page-table pages: the lowest that covers a range is held for write",
        locking="tables-rw", **_RANGED,
    )  # fmt: skip


def cortenmm_adv() -> Design:
    """CortenMM, advanced: finds the covering page-table page under RCU, locks it and all below.

    Source and limits as `cortenmm_rw`.
    """
    return _rival(
        "cortenmm-adv",
        "the page-table page that covers a range is found under RCU, and locked with all below it",
        locking="tables", **_RANGED,
    )  # fmt: skip


MAKERS: tuple[Callable[[], Design], ...] = (
    big_lock, range_lock, range_lock_faults, range_lock_refined, bonsai, speculative_faults,
    radixvm, cortenmm_rw, cortenmm_adv, latr, freebsd, xnu, windows, zircon,
)  # fmt: skip


@cache
def rivals() -> dict[str, Design]:
    """Return the rivals by name."""
    made = [make() for make in MAKERS]
    return {design.name: design for design in made}
