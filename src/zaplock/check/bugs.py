"""What history says: which kernels had which bug. The matrix is held against it.

A bug is told twice. In releases, as history tells it: the first with it, the first without it, the
stable ones that took the fix. And by the rules of a design that make it, which is how a design of
one's own has it. Tests hold the two against each other for every release that differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zaplock.designs.history import is_stock
from zaplock.linux_version import LinuxVersion, parse
from zaplock.protocols.design import Design
from zaplock.protocols.lockless_fault import page_fault_bonsai


@dataclass(frozen=True)
class Bug:
    """A bug that kernels had: where it shows, which have it, what mended it.

    since, until: the first release with it and the first without ("" where no release ever had it,
    or where it was never mended); "4.9" where it is older. backported: the first stable release of
    each series that took the fix. rules: whether a design's rules make it.
    """

    name: str
    scenarios: tuple[str, ...]
    since: str
    until: str
    rules: Callable[[Design], bool]
    source: str
    backported: tuple[str, ...] = ()

    def is_in(self, release: LinuxVersion) -> bool:
        """Return whether a release has the bug."""
        if not self.since or not release.carries(self.since):
            return False
        return not self.until or not release.carries(self.until, self.backported)


def _zaps_under_read(d: Design) -> bool:
    return d.munmap_downgrades


def _grows_into(d: Design) -> bool:
    """Whether a stack may grow into a range while it is torn down under read."""
    return d.downgrade_beside_growable and d.stack_growth == "read"


_GROWTH_UNDER_WRITE = ("6.1.37", "6.3.11", "6.4.1")

BUGS: tuple[Bug, ...] = (
    Bug("expand", ("expand", "munmap+grow", "dying-stack"), "4.20", "5.8",
        lambda d: _zaps_under_read(d) and _grows_into(d),
        "CVE-2020-29369, 246c320a8cfe", ("5.4.54", "5.7.11")),
    Bug("expand, by brk", ("grow+brk",), "4.20", "5.8",
        lambda d: d.brk_downgrades and _grows_into(d),
        "CVE-2020-29369, 246c320a8cfe: the RFC's brk does not downgrade", ("5.4.54", "5.7.11")),
    Bug("ceiling", ("ceiling",), "4.20", "5.8",
        lambda d: _zaps_under_read(d) and _grows_into(d) and d.bounds_read == "after",
        "read from the code; went with 246c320a8cfe", ("5.4.54", "5.7.11")),
    Bug("nested flush", ("nested-flush",), "4.20", "5.2",
        lambda d: _zaps_under_read(d) and d.nested_flush == "forget-tables",
        "7a30df49f63a", ("5.1.13",)),
    Bug("reader count", ("reader-count",), "4.9", "5.2",
        lambda d: not d.rwsem.counts_first, "70800c3c0cc5 brought it, a9e9bcb45b15 mended it",
        ("4.9.178", "4.14.121", "4.19.45", "5.0.18", "5.1.4")),
    Bug("read without ACQUIRE", ("rwsem-acquire",), "4.20", "5.3",
        lambda d: d.read_leaves_queue == "relaxed",
        "4b486b535c33 brought it, e1b98fa31664 mended it", ("5.2.12",)),
    Bug("sleep without ACQUIRE", ("rwsem-sleep",), "4.9", "5.3",
        lambda d: d.read_wakes == "relaxed", "99143f82a255", ("5.2.12",)),
    Bug("walk in a hole", ("hole-walk",), "4.20", "5.16",
        lambda d: _zaps_under_read(d) and not d.pgste_finds_vma,
        "dd2283f2605e made it harmful, fe3d10024073 mended it", ("5.4.163", "5.10.83", "5.15.3")),
    Bug("overtaking writers", ("overtaken-by-writers",), "4.9", "5.3",
        lambda d: d.rwsem.handoff_ns is None and d.rwsem.writer_spins != "never",
        "4f23dbc1e657: a writer that comes takes a free lock, whoever waits for it and how long"),
    Bug("overtaking readers", ("overtaken-by-readers",), "5.3", "5.11",
        lambda d: d.rwsem.reader_steals in ("spinning", "always"),
        "2f06f702925b: readers that join readers keep a waiting writer from ever being woken"),
    Bug("lost update", ("lost-update", "munmap-grow-read"), "4.20", "6.5",
        lambda d: _zaps_under_read(d) and d.stack_growth == "read",
        "read from the code; went with 8d7071af8907", _GROWTH_UNDER_WRITE),
    Bug("stale node", ("stack-rot",), "6.1", "6.5",
        lambda d: d.tree == "maple" and d.stack_growth == "read",
        "CVE-2023-3269, 8d7071af8907", _GROWTH_UNDER_WRITE),
    Bug("arch_unmap under R", ("arch-unmap",), "", "",
        lambda d: _zaps_under_read(d) and d.arch_unmap == "last",
        "the RFC's review; 4.20 calls it earlier"),
    Bug("nested munmap", ("arch-unmap",), "4.20", "5.2",
        lambda d: d.arch_unmap == "detached",
        "5a28fc94c914: the hook unmaps, with the outer VMAs detached and not zapped yet",
        ("5.0.19", "5.1.5")),
    Bug("fork without VMA locks", ("fork-copy",), "6.4", "6.5",
        lambda d: d.vma_locks and not d.fork_locks_vma,
        "fb49c455323f: a page is copied while another CPU still writes to it", ("6.4.3",)),
    Bug("hugetlb inversion", ("hugetlb",), "", "",
        lambda d: d.skip_vm_flags == "posted", "the review of the RFC as posted"),
    Bug("another process's VMA", ("vma-reuse",), "6.15", "6.17",
        lambda d: d.vma_locks and d.vma_reuse == "unpinned",
        "CVE-2025-38554: 3104138517fc brought it, 9bbffee67ffd mended it", ("6.15.10", "6.16.1")),
    Bug("killed waiter", ("rwsem-leavers",), "", "",
        lambda d: d.rwsem.del_waiter != "right",
        "1ea4b473504b brought it, 68bcd8b6e0b1 mended it, both between 7.0 and 7.1"),
    Bug("collapse of a freed table", ("collapse-dontneed",), "", "",
        lambda d: d.dontneed_lock == "vma" and d.reclaims_tables and not d.collapse_locks_first,
        "a6fde7add78d made it harmful, 366a4532d96f mended it, both between 6.16 and 6.17"),
    Bug("PFN flush", ("pfn-revoke",), "4.9", "5.19",
        lambda d: not d.flush_before_rmap,
        "CVE-2022-39188, b67fbebd4cf9; 895428ee124a and others in stable series",
        ("4.9.329", "4.14.294", "4.19.259", "5.4.214", "5.10.144", "5.15.69")),
    Bug("missed flush",
        ("missed-flush", "dontneed+dontneed", "dontneed+truncate", "dontneed+oom-reap",
         "pfn-revoke"),  # where PFN mappings are flushed early, but nobody waits for that
        "4.9", "4.13", lambda d: d.nested_flush == "ignore", "99baac21e458"),
    Bug("mremap flush", ("mremap-flush", "mremap+truncate"), "4.9", "4.19",
        lambda d: d.mremap_flush == "outside", "CVE-2018-18281, eb66ae030829",
        ("4.9.135", "4.14.78", "4.18.16")),
    Bug("I/O under the VMA lock", ("fork-served",), "", "",
        lambda d: d.major_fault == "hold" and d.fork_locks == "all",
        "found by zaplock: the fork waits for the fault, it for its server, that for the fork"),
    Bug("half a guard region", ("fork-guard",), "", "",
        lambda d: d.fork_locks != "all" and d.fork_copies == "needed",
        "found by zaplock: guards are put in under the VMA's lock, which this fork does not take"),
    Bug("no copy without an anon_vma", ("fork-pfn", "fork-guarded"), "", "",
        lambda d: d.fork_copies == "anon_vma",
        "Lorenzo Stoakes, 19 May 2026: device memory and guards are copied without one, too"),
    Bug("a fault behind a move", ("fault+mremap", "mremap-touch", "mremap-fork-read"), "", "",
        lambda d: d.page_fault is page_fault_bonsai,
        "found by zaplock: mremap has moved the pages, and the VMA is still in the tree"),
    Bug("two VMAs in one read", ("remote-two",), "", "",
        lambda d: d.remote_lock == "vma",
        "Suren Baghdasaryan and Lorenzo Stoakes, 19 June 2026: an unmap of both comes in between"),
    Bug("a hole after MAP_FIXED has failed", ("no-memory-fixed",), "4.9", "6.12",
        lambda d: not d.gathers_first,
        "f8d112a4e657: the old mapping was gone before memory for the new one was had"),
    Bug("a VMA that a driver has saved", ("driver-ioctl", "driver-shrink"), "4.20", "",
        lambda d: _zaps_under_read(d) or d.tombstones or d.cuts,
        "dd2283f2605e made it harmful; binder was mended (015ac18be7de), another driver may do so"),
    Bug("an old place that stays", ("no-memory-mremap",), "6.1", "",
        lambda d: d.tree == "maple",
        "read from the code: where the tree has no memory to forget the old place, mremap succeeds "
        "and leaves it there, empty"),
)  # fmt: skip
"""Three more are mutations, since no release has them: zero page (`zap-before-detach`), detached
re-check (`no-detached-recheck`) and event before unlock (`event-before-unlock`)."""

LIVENESS = "convoy"
"""The scenario of the liveness promise, which a queued writer breaks in every kernel."""


@dataclass(frozen=True)
class DesignPromise:
    """What a design may promise: in words, by which scenarios, and which keep it."""

    says: str
    scenarios: tuple[str, ...]
    keeps: Callable[[Design], bool]


PROMISES: tuple[DesignPromise, ...] = (
    DesignPromise(
        "a reader waits no longer than the exclusive part",
        (LIVENESS,),
        lambda d: d.locking in ("exclusive", "slots", "tables"),  # which have no shared holds
    ),
    DesignPromise(
        "who holds the lock neither waits nor works on pages without a bound",
        ("bounded-hold", "bounded-cut"),
        lambda d: d.tombstones or d.cuts,
    ),
    DesignPromise(
        "who unmaps waits for no disk", ("major-munmap",), lambda d: d.major_fault != "hold"
    ),
    DesignPromise(
        "who forks waits for no disk",
        ("major-fork",),
        lambda d: d.major_fault != "hold" or d.fork_locks != "all",
    ),
    DesignPromise(  # 6.17 on repeats it, as its review says ("repetitions [are] acceptable")
        "a reader of maps shows no range twice, whatever is merged meanwhile",
        ("maps-merge",),
        lambda d: d.maps_lock != "vma",
    ),
)
"""A scenario of a promise has to be broken under the designs that don't keep it."""


def promise_of(scenario: str) -> DesignPromise | None:
    """Return the promise that a scenario is about, if it is about one."""
    return next((one for one in PROMISES if scenario in one.scenarios), None)


def has(design: Design, bug: Bug) -> bool:
    """Return whether a design has a bug: a release by history, any other by its rules."""
    return bug.is_in(parse(design.kernel)) if is_stock(design) else bug.rules(design)


def expected(scenario: str, design: Design) -> Bug | None:
    """Return the known bug that a scenario shows under a design, None where it has to be proved."""
    for bug in BUGS:
        if scenario in bug.scenarios and has(design, bug):
            return bug
    return None
