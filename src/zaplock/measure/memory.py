"""Whether an experiment fits into memory, asked before anything is mapped.

What is available is the least of /proc/meminfo's MemAvailable and of what every memory cgroup above
this process still allows (v1 and v2), less a reserve that stays untouched. What is needed is the
backing plus the page tables: one 4 KiB table for each 2 MiB that is mapped by PTEs, also for
the zero page (0.2 % of the size), and the same for THP, since a table is deposited with each huge
page so that a split can't fail. Swap is not counted: a measured teardown must not swap.

Not covered: memory that another process takes between the question and the mapping (the measured
process offers itself first to the OOM killer), and NUMA bindings.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zaplock.errors import UserError
from zaplock.experiment import BACKINGS
from zaplock.units import size
from zaplock.untrusted_names import read_text

TABLE_SPAN = 2 << 20
LARGEST = 1 << 47


@dataclass(frozen=True, slots=True)
class Need:
    """Memory that a mapping takes: its own pages, its page tables, pages from the hugetlb pool."""

    pages: int
    tables: int
    pool: int = 0

    @property
    def total(self) -> int:
        """Bytes of ordinary memory."""
        return self.pages + self.tables


def need(length: int, backing: str) -> Need:
    """Return what a fully populated mapping of `length` bytes takes."""
    tables = (length // TABLE_SPAN + length // (512 * TABLE_SPAN) + 8) * 4096
    if BACKINGS[backing].from_pool:
        return Need(0, (length // (512 * TABLE_SPAN) + 8) * 4096, length)
    return Need(length if BACKINGS[backing].takes_memory else 0, tables)


def meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes (counts for the HugePages_ lines)."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        found[name] = int(number) * (1024 if unit == "kB" else 1)
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _levels(root: Path, below: str) -> Iterator[Path]:
    """Yield a cgroup's directory and those of all its parents."""
    parts = [part for part in below.split("/") if part]
    for depth in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:depth])


def _cgroup_room(directory: Path) -> int | None:
    """Return what one cgroup still allows in bytes, its clean page cache counted as free."""
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, usage = _number(directory / limit_file), _number(directory / usage_file)
        if limit is not None and usage is not None:
            return limit - usage + _inactive_file(directory)
    return None


def _inactive_file(directory: Path) -> int:
    try:
        lines = (directory / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(values.get("total_inactive_file", values.get("inactive_file", "0")))


def cgroup_room(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what the memory cgroups above this process still allow (huge if there is no limit)."""
    try:
        lines = read_text(proc).splitlines()
    except OSError:
        return LARGEST
    rooms = [LARGEST]
    for line in lines:
        _, controllers, below = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            for base in (root, root / "memory", root / "unified"):
                rooms += [
                    room
                    for level in _levels(base, below)
                    if (room := _cgroup_room(level)) is not None
                ]
    return min(rooms)


def reserve(total: int) -> int:
    """Return what must stay free: a twentieth of the memory, at least 256 MiB."""
    return max(total // 20, 256 << 20)


def room() -> int:
    """Return how many bytes an experiment may take now."""
    info = meminfo()
    return max(0, min(info["MemAvailable"], cgroup_room()) - reserve(info["MemTotal"]))


def fits(length: int, backing: str) -> bool:
    """Say whether a populated mapping of this size and backing fits."""
    try:
        require(length, backing)
    except UserError:
        return False
    return True


def require(length: int, backing: str) -> None:
    """Raise UserError unless a populated mapping of this size and backing fits."""
    _require_address_space(length)
    wanted, available = need(length, backing), room()
    if wanted.pool:
        _require_pool(wanted.pool)
    if wanted.total > available:
        raise UserError(_refusal(length, backing, wanted, available))


def _refusal(length: int, backing: str, wanted: Need, available: int) -> str:
    text = (
        f"{size(length)} of {backing} backing needs {size(wanted.total)} of memory "
        f"(page tables {size(wanted.tables)}), but {size(available)} can be used now"
    )
    tables = need(length, "zero").tables
    if backing != "zero" and tables <= available:
        return f"{text}: use --backing zero, which needs only its page tables, {size(tables)}"
    least = 1 if backing == "zero" else 513
    most = available * 512 // least // TABLE_SPAN * TABLE_SPAN
    return f"{text}: choose a size of at most {size(most)}"


def _require_address_space(length: int) -> None:
    if length > LARGEST - (1 << 40):
        raise UserError(f"{size(length)} is more than a process can map: at most 127 TiB")
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY and length > soft - (1 << 30):
        raise UserError(
            f"{size(length)} is more than this shell's `ulimit -v` allows, {size(soft)}: raise it"
        )
    info = meminfo()
    left = info["CommitLimit"] - info["Committed_AS"]
    strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    if strict and length > left:
        raise UserError(
            f"{size(length)} is more than vm.overcommit_memory=2 lets be committed, {size(left)}: "
            "choose a smaller size"
        )


def _require_pool(length: int) -> None:
    info = meminfo()
    span = info.get("Hugepagesize", 0)
    free = info.get("HugePages_Free", 0) - info.get("HugePages_Rsvd", 0)
    wanted, used = length // TABLE_SPAN, info.get("HugePages_Total", 0) - free
    if span != TABLE_SPAN or free < wanted:
        raise UserError(
            f"{size(length)} of hugetlb backing needs {wanted} free huge pages of 2 MiB, "
            f"there are {free}: as root, sysctl vm.nr_hugepages={wanted + used}"
        )
