"""What vendors' kernels carry of later releases, where their sources could be read.

A vendor's release names the mainline one that it began with, not what was carried back since.
"4.18.0-348.2.1.el8" is RHEL 8.5: mainline's 4.18 with (among much else) 5.10's munmap and 5.11's
rwsem. Each row here is one build whose sources were read, in mm/mmap.c, mm/mremap.c, mm/mincore.c,
mm/memory.c, mm/mmu_gather.c, kernel/locking/rwsem*.c and fs/proc/base.c; its clones (AlmaLinux,
CentOS, Oracle's compatible kernel, Rocky) have the build's number, too.

What was mended in a build since (348.7.1 of 348) is taken to leave locking as it is. A build
between two rows that decide alike decides as they do. Between two that don't, nobody knows without
its sources: it is judged as the row below it, and said to be unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBERS = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,4}")


@dataclass(frozen=True, slots=True)
class VendorBuild:
    """One build: its release without the architecture, the product, and the commits it took.

    `base` is the mainline release of its name; `changes` are upstream ids of `designs.changes`.
    """

    release: str
    product: str
    base: str
    changes: tuple[str, ...]

    @property
    def build(self) -> tuple[int, ...]:
        """The vendor's own number: (348, 2, 1) of 4.18.0-348.2.1.el8."""
        return _build(self.release)

    @property
    def line(self) -> str:
        """Which of the vendor's lines it is: "4.18.0-el8"."""
        return _line(self.release)


_EL8_0 = ("eb66ae030829",)
_EL8_3 = (
    *_EL8_0,
    "4b486b535c33",
    "a9e9bcb45b15",
    "134fca9063ad",
    "4f23dbc1e657",
    "d3681e269fff",
    "cf69482d62d9",
    "7d43f1ce9dd0",
    "e1b98fa31664",
    "99143f82a255",
)
_EL8_5 = (
    *_EL8_3,
    "dd2283f2605e",
    "9bc8039e715d",
    "85a06835f6f1",
    "5a28fc94c914",
    "7a30df49f63a",
    "1e426fe28261",
    "89b15332af7c",
    "246c320a8cfe",
    "617f3ef95177",
    "1a728dff855a",
    "2f06f702925b",
)
BUILDS = (
    VendorBuild("4.18.0-80.7.1.el8", "RHEL 8.0", "4.18", _EL8_0),
    VendorBuild("4.18.0-240.el8", "RHEL 8.3", "4.18", _EL8_3),
    VendorBuild("4.18.0-348.2.1.el8", "RHEL 8.5", "4.18", _EL8_5),
)
"""Each vendor's builds, oldest first."""


@dataclass(frozen=True, slots=True)
class Carried:
    """The row that stands for a release; `known` says that its sources, or those on both sides of
    it, were read and decide alike."""

    build: VendorBuild
    known: bool


def carried(release: str) -> Carried | None:
    """Return the row that stands for what `uname -r` says; None where no row is of its line.

    >>> carried("4.18.0-348.7.1.el8_5.x86_64").build.product
    'RHEL 8.5'
    """
    number = _build(release)
    rows = [row for row in BUILDS if row.line == _line(release) and row.build[:1] <= number[:1]]
    if not number or not rows:
        return None
    last = rows[-1]
    later = [row for row in BUILDS if row.line == last.line and row.build > last.build]
    alike = bool(later) and set(later[0].changes) == set(last.changes)
    return Carried(last, alike or number[0] == last.build[0])


def _line(release: str) -> str:
    found = re.match(r"(\d{1,3}\.\d{1,3}\.\d{1,3})-[\d.]{1,60}\.(el\d{1,2})", release)
    return f"{found[1]}-{found[2]}" if found else ""


def _build(release: str) -> tuple[int, ...]:
    found = _NUMBERS.match(release.partition("-")[2])
    return tuple(map(int, found[0].split("."))) if found else ()
