"""What else may have made a sequence differ: whoever else works on the machine, and the kernel.

The model has a machine to itself. So a difference counts if it came in peace, that is, between two
looks at the machine that show nothing of what is listed here: no setting changed or written to,
also if it was changed back; no memory reclaimed or moved about, no huge page that could not be had,
nor one that khugepaged made; no DAMON that looked which pages are used, which clears their marks,
and pages out what is idle; swap and the pools of huge pages as at the start; and, where ksmd was at
work, nobody else with memory that it may merge. All of it is told by counters that never go back,
by values, or by a watch on writes.

Not seen: settings that are written through another mount of sysfs (a container's own), a process
with mergeable memory that lives no longer than the run (other runs of zaplock wait: see
ksm.MergingTurn), or that has pages of an almost empty pool so long.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Collection, Iterable, Sequence
from errno import EBUSY
from pathlib import Path
from typing import NamedTuple

from zaplock.errors import UserError
from zaplock.oracle import ksm
from zaplock.oracle.huge_pool import POOLS, pool_of
from zaplock.oracle.machine_settings import (
    FOLDERS,
    SYSCTLS,
    Settings,
    Writes,
    changes,
    read_settings,
    settings_in,
    written,
)
from zaplock.oracle.ops import Op

_OF_MEMORY = (
    "drop_pagecache", "drop_slab", "thp_zero_page_alloc_failed", "thp_collapse_alloc_failed",
    "pgmigrate_success", "pgmigrate_fail", "compact_stall", "pgscan_kswapd", "pgscan_direct",
    "pgscan_khugepaged", "pgscan_proactive",
)  # fmt: skip
_FALLBACKS = ("thp_fault_fallback", "thp_file_fallback")
"""Huge pages that could not be had; those that a memory cgroup refused are counted twice, with
_charge, and only its own members notice."""
_PLENTY = 64  # huge pages, more than a sequence uses: other jobs of a run may have the rest
_POOLED = {"hugetlb", "gigantic", "hugetlbfs"}
_SWAPS = Path("/proc/swaps")
_KDAMOND_FILES = (
    ("/sys/kernel/mm/damon/admin/kdamonds", "*/pid"),
    ("/sys/module", "damon_*/parameters/kdamond_pid"),
)
"""Where DAMON tells its threads: by sysfs, and of its modules (reclaim, lru_sort)."""
_BUSY_TRIES = 1000
_MADE = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed")
"""How many huge pages khugepaged has made: MADV_COLLAPSE does not count there (khugepaged.c)."""
_LEAST_SWAP_KB = 32 << 10
_KSM = "ksm/"


class MachineLook(NamedTuple):
    """The machine at one moment; `written`: how much had been written to settings by then."""

    written: int
    settings: Settings
    figures: dict[str, str]
    counters: dict[str, str]
    mergers: tuple[str, ...]


class MachineWatch:
    """The machine, since both sides of a comparison began.

    `themes`: those whose sequences run; of what is lent for them the run itself makes use.
    """

    def __init__(self) -> None:
        """Begin to watch: before anything is found out about the machine that may change."""
        self.themes: Collection[str] = ()
        self._writes = Writes(settings_in(FOLDERS, SYSCTLS))
        self._swaps: list[int] = []
        self._swap_changes = select.poll()
        if _SWAPS.exists():  # a kernel may be built without swap
            self._swaps.append(os.open(_SWAPS, os.O_RDONLY | os.O_CLOEXEC))
            self._swap_changes.register(self._swaps[0], select.POLLPRI)
        self._settings = read_settings()
        self._free: dict[str, int] = {}
        self._figures = self._figures_now()
        self._free_at_first = dict(self._free)

    def free_at_first(self, size: int) -> int:
        """Return how many huge pages of so many bytes nobody used or had reserved at the start.

        In peace it is so many: asked at another moment, others might use some.
        """
        return self._free_at_first.get(pool_of(size).name, 0)

    def close(self) -> None:
        """Watch no more."""
        self._writes.close()
        for fd in self._swaps:
            os.close(fd)

    def _written_since(self, moment: int) -> list[str]:
        """Name what was written to."""
        if self._swap_changes.poll(0):  # an area came or went since the last time
            self._writes.note("the list of swap areas")
        return self._writes.seen()[moment:]

    def mark(self) -> int:
        """Return a moment for `changed_since`."""
        return len(self._written_since(0))

    def changed_since(self, moment: int) -> str:
        """Say which settings are others than at the start, or were written to since; or "".

        Those of KSM are left out: they change with each sequence of a run that uses ksmd, and what
        they change is mergeable memory only.
        """
        now = read_settings()
        told = changes(_without_ksm(self._settings), _without_ksm(now))
        return told or written(_but_ksm(self._written_since(moment)))

    def look(self) -> MachineLook:
        """Look at all that may make a sequence differ."""
        return MachineLook(
            self.mark(),
            read_settings(),
            self._figures_now(),
            self._counters(),
            tuple(ksm.mergers()) if "ksm" in self.themes else (),
        )

    def since(self, look: MachineLook) -> MachineLook:
        """Return a look, but for what happens often and is quickly told: DAMON is at work."""
        now = {name: _slices(name) for name in look.counters if name.startswith(_KDAMOND)}
        return look._replace(counters={**look.counters, **now}) if now else look

    def disturbed(self, before: MachineLook, sequence: Sequence[Op]) -> str:
        """Say what has disturbed a sequence that ran since a look; "" where nothing has."""
        now, names = self.look(), self._written_since(before.written)
        first = _without_ksm(self._settings)
        told = [
            changes(first, _without_ksm(before.settings)),
            changes(first, _without_ksm(now.settings)),
            written(_but_ksm(names)),
            _others(self._figures, before.figures, now.figures, bool(_POOLED & {*self.themes})),
            _counted(before.counters, now.counters),
            _have_mergeable({*before.mergers, *now.mergers}),
        ]
        if ksm.makes_mergeable(sequence) or ksm.scans(sequence):
            told += [self._merged(before, now, names)]
        return ", ".join(dict.fromkeys(part for part in told if part))

    def _merged(self, before: MachineLook, now: MachineLook, names: list[str]) -> str:
        """Say what was done to KSM by others: ksmd works, or its settings change."""
        own = {f"ksm/{name}" for name in ksm.WRITTEN} if "ksm" in self.themes else set[str]()
        told = [
            changes(before.settings, now.settings),
            written(name for name in names if name.startswith(_KSM) and name not in own),
        ]
        if "1" in (before.settings.get("ksm/run"), now.settings.get("ksm/run")):
            told.append("ksmd is at work (ksm/run is 1)")
        return ", ".join(part for part in told if part)

    def _figures_now(self) -> dict[str, str]:
        """Read how much there is of what a sequence may use up."""
        swaps = _SWAPS.read_text().splitlines()[1:] if self._swaps else []
        free = sum(int(kb) - int(used) for _, _, kb, used, *_ in map(str.split, swaps))
        areas = " and ".join(sorted(line.split()[0] for line in swaps)) or "none"
        figures = {"swap": areas if not swaps or free >= _LEAST_SWAP_KB else f"{areas}, full"}
        for pool in POOLS.glob("*"):
            total, free, reserved = (
                int((pool / f"{name}_hugepages").read_text()) for name in ("nr", "free", "resv")
            )
            self._free[pool.name] = free - reserved
            plenty = free - reserved >= _PLENTY
            shown = "plenty" if plenty else f"{free} of {total} free, {reserved} reserved"
            figures[f"hugepages/{pool.name}"] = shown
        return figures

    @staticmethod
    def _counters() -> dict[str, str]:
        """Read the counters of what happens to memory for others' sake."""
        told = dict(map(str.split, Path("/proc/vmstat").read_text().splitlines()))
        counters = {name: told[name] for name in _OF_MEMORY if name in told}
        for name in _FALLBACKS:
            refused = int(told.get(f"{name}_charge", 0))
            counters[name] = str(int(told.get(name, 0)) - refused)
        if _MADE.exists():  # a kernel may be built without huge pages
            counters["khugepaged/pages_collapsed"] = _MADE.read_text()
        for pid in _kdamonds():
            name = f"{_KDAMOND}{pid}"
            if slices := _slices(name):
                counters[name] = slices
        return counters


_KDAMOND = "kdamond "


def _kdamonds() -> set[str]:
    """Name DAMON's threads: -1 is none."""
    files = (file for where, name in _KDAMOND_FILES for file in Path(where).glob(name))
    return {pid for pid in map(_told, files) if pid}


def _told(file: Path) -> str:
    """Read a file of DAMON's, which refuses whoever reads while another one does (EBUSY)."""
    for _ in range(_BUSY_TRIES):
        try:
            return file.read_text().strip()
        except OSError as error:
            if error.errno != EBUSY:  # it has gone
                return ""
        time.sleep(0.001)
    raise UserError(f"{file} is busy all the time: end what reads it, or DAMON itself")


def _slices(name: str) -> str:
    """Tell how often a kdamond has run: it wakes once for each time that it looks."""
    try:
        with open(f"/proc/{name.removeprefix(_KDAMOND)}/schedstat") as file:
            return file.read()
    except OSError:  # there is none, or none any more
        return ""


def _without_ksm(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if not name.startswith(_KSM)}


def _but_ksm(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(_KSM)]


def _others(first: dict[str, str], before: dict[str, str], now: dict[str, str], pools: bool) -> str:
    """Say which figures are not what they were at first, those of pools only with `pools`."""
    names = sorted(
        name
        for name in first
        if (pools or name == "swap") and not first[name] == before.get(name) == now.get(name)
    )
    return ", ".join(f"{name} is not as at first ({first[name]})" for name in names)


def _counted(before: dict[str, str], now: dict[str, str]) -> str:
    """Say which counters have counted."""
    names = [name for name in now if now[name] != before.get(name)]
    return f"memory was wanted elsewhere ({', '.join(names)})" if names else ""


def _have_mergeable(who: set[str]) -> str:
    """Say whose memory ksmd may merge with a sequence's."""
    if not who:
        return ""
    named = sorted(who)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"ksmd also merges memory of {', '.join(named[:3])}{more}"


class Peace(MachineWatch):
    """Nobody else is there: the surroundings of a guest."""

    def __init__(self) -> None:
        """Watch nothing."""

    def close(self) -> None:
        """Nothing is open."""

    def mark(self) -> int:
        """Return a moment."""
        return 0

    def changed_since(self, moment: int) -> str:
        """Nothing changes."""
        return ""

    def look(self) -> MachineLook:
        """Look at nothing."""
        return MachineLook(0, {}, {}, {}, ())

    def since(self, look: MachineLook) -> MachineLook:
        """Nothing happens."""
        return look

    def disturbed(self, before: MachineLook, sequence: Sequence[Op]) -> str:
        """Nothing disturbs."""
        return ""
