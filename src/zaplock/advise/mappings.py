"""Advice from /proc/PID: the mappings whose end would stall the process.

Only `maps`, `status` and `comm` are read: on 6.18 none takes the target's mmap_lock, on older
kernels `maps` takes it for read, a few pages of text at a time. `smaps`, `numa_maps` and `pagemap`,
which would tell how much of each mapping is present, hold the lock that this is about; so what is
present is taken to be as much as can be (the mapping's size, but no more than the process has of
that kind), and the figures are upper bounds. Huge pages can't be told from small ones: both
figures are given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zaplock.advise.advice import Advice, left
from zaplock.advise.advice_by_kind import BRK, MUNMAP
from zaplock.advise.costs import Costs
from zaplock.advise.runtimes import Runtime, recognise
from zaplock.errors import UserError
from zaplock.units import duration, size

FULL_SHARE = 0.8
"""Share of vm.max_map_count from which on it is worth a warning."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    access: str
    name: str

    @property
    def length(self) -> int:
        """Its size in bytes."""
        return self.end - self.start

    @property
    def anonymous(self) -> bool:
        """Whether its pages are the process's own."""
        return self.access.endswith("p") and (not self.name or self.name.startswith("["))

    @property
    def backing(self) -> str:
        """Which counter of /proc/PID/status its pages are in."""
        if self.anonymous:
            return "RssAnon"
        shmem = self.name.startswith(("/dev/shm/", "/memfd:", "/dev/zero", "/SYSV"))
        return "RssShmem" if shmem else "RssFile"


def parse_maps(text: str) -> Iterator[Mapped]:
    """Read the lines of a maps file."""
    for line in text.splitlines():
        bounds, access, _offset, _device, _inode, *name = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        yield Mapped(start, end, access, name[0] if name else "")


def parse_status(text: str) -> dict[str, int]:
    """Read the counters of a status file: bytes for those in kB, else the number."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def require_readable(pid: int) -> None:
    """Raise UserError, before anything is measured, where `from_process` would."""
    if not _read(pid, "maps"):
        raise UserError(f"{pid} is a kernel thread or has ended: it has no address space")


def from_process(pid: int, costs: Costs, *, least_ns: int) -> list[Advice]:
    """Return advice on the mappings of a process whose munmap could stall it for `least_ns`.

    Raises UserError if there is no such process or it may not be read.
    """
    maps, status = list(parse_maps(_read(pid, "maps"))), parse_status(_read(pid, "status"))
    name = _read(pid, "comm").rstrip("\n")
    return advise(maps, status, costs, least_ns=least_ns, runtime=recognise(pid, name))


def advise(
    maps: list[Mapped],
    status: dict[str, int],
    costs: Costs,
    *,
    least_ns: int,
    runtime: Runtime | None = None,
) -> list[Advice]:
    """Return advice on mappings whose teardown, if all that can be is present, is that long."""
    found = []
    for mapped in maps:
        present = min(mapped.length, status.get(mapped.backing, 0))
        advice = _advice(mapped, present, costs, runtime)
        if advice is not None and advice.now_ns >= least_ns:
            found.append(advice)
    return found


def _advice(mapped: Mapped, present: int, costs: Costs, runtime: Runtime | None) -> Advice | None:
    kind = BRK if mapped.name == "[heap]" else MUNMAP
    now_ns = costs.of(kind.cost, present)
    if now_ns is None or mapped.access.startswith("---") or mapped.name == "[stack]":
        return None
    huge_ns = costs.of("munmap of huge pages", present)
    small = f"; {duration(huge_ns)} if huge pages" if huge_ns and mapped.anonymous else ""
    name = mapped.name or "anonymous"
    return Advice(
        what=f"{mapped.start:#x} {name}",
        kind=kind,
        length=mapped.length,
        now_ns=now_ns,
        then_ns=left(kind, costs),
        seen=False,
        note=f"{size(present)} present at most{small}",
        runtime=runtime,
    )


def warnings(pid: int) -> list[str]:
    """Return what else is worth knowing of a process: the number of its mappings, lone threads."""
    maps, status = _read(pid, "maps").count("\n"), parse_status(_read(pid, "status"))
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    found = []
    if maps > FULL_SHARE * limit:
        found.append(
            f"{maps} mappings of at most {limit} (vm.max_map_count): the next mmap may fail"
        )
    if status.get("Threads") == 1:
        found.append("one thread: only foreign readers (ps, monitoring) can be stalled")
    return found


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise UserError(f"there is no process {pid}: see `ps -e` for those that are") from None
    except PermissionError:
        user = os.environ.get("USER", "this user")
        raise UserError(
            f"process {pid} may not be read by {user}: run as its owner or as root"
        ) from None
