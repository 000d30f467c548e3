"""What else may have made a sequence differ: whoever else works on the machine, and the kernel.

The model has a machine to itself. So a difference counts only if the sequence was run once more in
peace, that is, between two looks at the machine that show nothing of what is listed here: no
setting changed or written to, also if it was changed back; no memory reclaimed or moved about, no
huge page that could not be had, nobody killed for want of memory; swap and the pools of huge pages
as at the start; and, where ksmd was at work, nobody else with memory that it may merge. All of it
is told by counters that never go back, by values, or by a watch on writes.

Not seen: settings that are written through another mount of sysfs (a container's own), a process
with mergeable memory that lives no longer than the run (other runs of zaplock wait: see
ksm.MergingTurn), and pages that DAMON takes, for which nothing counts.
"""

from __future__ import annotations

import os
import select
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from zaplock.oracle import ksm
from zaplock.oracle.huge_pool import POOLS
from zaplock.oracle.machine_settings import (
    FOLDERS,
    SYSCTLS,
    VM,
    Settings,
    Writes,
    changes,
    read_settings,
    settings_in,
    written,
)
from zaplock.oracle.ops import Op

_TRIGGERS = {f"vm/{name}": str(VM / name) for name in ("drop_caches", "compact_memory")}
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
_LEAST_SWAP_KB = 32 << 10


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
        files = dict(settings_in(FOLDERS, SYSCTLS))
        files |= {name: path for name, path in _TRIGGERS.items() if os.access(path, os.R_OK)}
        self._writes = Writes(files)
        self._swaps = os.open("/proc/swaps", os.O_RDONLY | os.O_CLOEXEC)
        self._swap_changes = select.poll()
        self._swap_changes.register(self._swaps, select.POLLPRI)
        self._settings = read_settings()
        self._figures = self._figures_now()

    def close(self) -> None:
        """Watch no more."""
        self._writes.close()
        os.close(self._swaps)

    def _written_since(self, moment: int) -> list[str]:
        """Name what was written to, but for what the run writes itself."""
        if self._swap_changes.poll(0):  # an area came or went since the last time
            self._writes.note("the list of swap areas")
        own = {f"ksm/{name}" for name in ksm.WRITTEN} if "ksm" in self.themes else set[str]()
        return [name for name in self._writes.seen()[moment:] if name not in own]

    def mark(self) -> int:
        """Return a moment for `changed_since`."""
        self._written_since(0)
        return len(self._writes.seen())

    def changed_since(self, moment: int) -> str:
        """Say which settings are others than at the start, or were written to since; or ""."""
        told = changes(self._settings, read_settings())
        names = [name for name in self._written_since(moment) if name not in _TRIGGERS]
        return told or written(names)

    def look(self) -> MachineLook:
        """MachineLook at all that may make a sequence differ."""
        return MachineLook(
            self.mark(),
            read_settings(),
            self._figures_now(),
            self._counters(),
            tuple(ksm.mergers()) if "ksm" in self.themes else (),
        )

    def disturbed(self, before: MachineLook, sequence: Sequence[Op]) -> str:
        """Say what has disturbed a sequence that ran since a look; "" where nothing has."""
        now = self.look()
        told = [
            changes(self._settings, before.settings) or changes(self._settings, now.settings),
            written(self._written_since(before.written)),
            _others(self._figures, before.figures, now.figures, bool(_POOLED & {*self.themes})),
            _counted(before.counters, now.counters),
            _have_mergeable({*before.mergers, *now.mergers}),
            self._is_merged(sequence),
        ]
        return ", ".join(part for part in told if part)

    def _is_merged(self, sequence: Sequence[Op]) -> str:
        """Say whether ksmd has run all the time, where a sequence has mergeable memory."""
        running = self._settings.get("ksm/run") == "1" and ksm.makes_mergeable(sequence)
        return "ksmd is at work (ksm/run is 1)" if running else ""

    def _figures_now(self) -> dict[str, str]:
        """Read how much there is of what a sequence may use up."""
        swaps = Path("/proc/swaps").read_text().splitlines()[1:]
        free = sum(int(kb) - int(used) for _, _, kb, used, *_ in map(str.split, swaps))
        areas = " and ".join(sorted(line.split()[0] for line in swaps)) or "none"
        figures = {"swap": areas if not swaps or free >= _LEAST_SWAP_KB else f"{areas}, full"}
        for pool in POOLS.glob("*"):
            total, free, reserved = (
                int((pool / f"{name}_hugepages").read_text()) for name in ("nr", "free", "resv")
            )
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
        return counters


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


class Peace:
    """Nobody else is there: the surroundings of a guest."""

    def mark(self) -> int:
        """Return a moment."""
        return 0

    def changed_since(self, moment: int) -> str:
        """Nothing changes."""
        return ""

    def look(self) -> None:
        """MachineLook at nothing."""

    def disturbed(self, before: None, sequence: Sequence[Op]) -> str:
        """Nothing disturbs."""
        return ""
