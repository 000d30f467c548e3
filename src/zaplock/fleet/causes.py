"""Stalls with known causes, made by the simulator: what `fleet simulate` sends over its hosts.

An episode is one run of the timed engine: a process with threads beside a call that holds its
lock, under the design of the host's kernel, with a profile's costs. What its waits are, and behind
whom, is found by the same analysis that reads real recordings; the cause that was put in is only
written beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

import polars as pl

from zaplock.designs import load
from zaplock.fleet_store.store import files_of
from zaplock.fleet_store.waits import WallClock, waits_of
from zaplock.lab import profiles
from zaplock.lab.bystanders import OPERATIONS, system_call
from zaplock.lab.lab import Laboratory
from zaplock.lab.subject import MAPPING, MM
from zaplock.model.flags import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_POPULATE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from zaplock.protocols.design import Cx
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mlock import mlock
from zaplock.protocols.mmap import mmap
from zaplock.protocols.mprotect import mprotect
from zaplock.scratch import Scratch
from zaplock.trace.analysis import analyse
from zaplock.trace.events import RecordedTask
from zaplock.trace.recording_file import Manifest, read_manifest, write
from zaplock.trace.summary import QUEUED_NS, summarise

MIB, GIB = 1 << 20, 1 << 30
_PERIOD_NS = 40_000
_MIB_NS = 30_000
"""About what 1 MiB of such a call takes."""
_ARRIVALS = 25
"""About so often each thread comes while the call lasts."""
_POPULATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE

Call = Callable[[Cx, int], Coroutine[Any, Any, Any]]


async def _munmap(cx: Cx, length: int) -> None:
    work = cx.design.munmap(cx, MAPPING, length)
    await system_call(cx, "munmap", work, MAPPING, length)


async def _dontneed(cx: Cx, length: int) -> None:
    work = madvise(cx, MAPPING, length, MADV_DONTNEED)
    await system_call(cx, "madvise", work, MAPPING, length, MADV_DONTNEED)


async def _mprotect(cx: Cx, length: int) -> None:
    work = mprotect(cx, MAPPING, length, PROT_READ)
    await system_call(cx, "mprotect", work, MAPPING, length, PROT_READ)


async def _mlock(cx: Cx, length: int) -> None:
    await system_call(cx, "mlock", mlock(cx, MAPPING, length), MAPPING, length)


async def _populate(cx: Cx, length: int) -> None:
    work = mmap(cx, 0, length, PROT_READ | PROT_WRITE, _POPULATE)
    await system_call(cx, "mmap", work, 0, length, _POPULATE)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a service's threads wait: `call` on about `length` bytes, so often a day and host.

    `operation` is what the kernel calls it. `seeded` says whether it is one of the truth, or only
    the noise that there is everywhere.
    """

    name: str
    operation: str
    call: Call
    length: int
    a_day: float
    seeded: bool = True


NOISE = Cause("small frees", "munmap", _munmap, 24 * MIB, 30, seeded=False)
CAUSES = (
    Cause("arena given back at once", "munmap", _munmap, 12 * GIB, 9),
    Cause("cache emptied by DONTNEED", "madvise(MADV_DONTNEED)", _dontneed, 12 * GIB, 8),
    Cause("heap made read-only by a compiler", "mprotect", _mprotect, 16 * GIB, 7),
    Cause("buffer pool locked", "mlock", _mlock, 4 * GIB, 6),
    Cause("input mapped with MAP_POPULATE", "mmap", _populate, 1 * GIB, 5),
)


@dataclass(frozen=True, slots=True)
class Service:
    """A unit, the name of its process, and what its stalls come from (None: noise alone)."""

    unit: str
    process: str
    cause: Cause | None = None


SERVICES = (
    Service("search.service", "searchd", CAUSES[0]),
    Service("cache.service", "cached", CAUSES[1]),
    Service("scripts.service", "scriptd", CAUSES[2]),
    Service("database.service", "dbd", CAUSES[3]),
    Service("ingest.service", "ingestd", CAUSES[4]),
    Service("web.service", "webd"),
    Service("mail.service", "maild"),
    Service("proxy.service", "proxyd"),
)


@dataclass(frozen=True, slots=True)
class WantedEpisode:
    """Which episode: of which service, under which design; noise, or its cause; the nth of them."""

    service: Service
    design: str
    noise: bool
    nth: int

    @property
    def cause(self) -> Cause:
        """What happens in it."""
        return NOISE if self.noise or self.service.cause is None else self.service.cause


@dataclass(frozen=True, slots=True)
class Episode:
    """A simulated stall: its waits, from time 0 on, and the recording's files and manifest."""

    wanted: WantedEpisode
    waits: pl.DataFrame
    files: tuple[tuple[str, bytes], ...]
    manifest: Manifest
    worst_ns: int


def simulate(wanted: WantedEpisode) -> Episode:
    """Run an episode; the same each time."""
    lab, service, cause = _laboratory(wanted), wanted.service, wanted.cause
    observed = lab.run()
    tasks = {
        tid: RecordedTask(tid, task.comm, 4000 + task.pid, service.process)
        if task.pid == MM
        else RecordedTask(tid, task.comm, 90_000 + task.pid, task.comm)
        for tid, task in observed.events.tasks.items()
    }
    owners = {mm: 4000 + MM if mm == MM else 90_000 + mm for mm in observed.events.mms}
    events = replace(observed.events, tasks=tasks, mms=owners)
    kernel = lab.design.kernel
    analysis = analyse(events, kernel)
    waits = waits_of(summarise(analysis), "", WallClock(0), QUEUED_NS)
    manifest = Manifest(
        source="simulation",
        kernel=kernel,
        target=service.process,
        cpus=16,
        notes=(f"simulated: {cause.name}",),
    )
    with Scratch("fleet") as folder:
        path = folder / "one.zaplock"
        write(path, events, manifest)
        files, manifest = tuple(files_of(path)), read_manifest(path)
    worst = waits["wait_ns"].max()
    return Episode(wanted, waits, files, manifest, worst if isinstance(worst, int) else 0)


def _laboratory(wanted: WantedEpisode) -> Laboratory:
    cause = wanted.cause
    random = Random(f"{wanted.service.unit}: {cause.name} under {wanted.design}, {wanted.nth}")
    length = int(cause.length * random.uniform(0.6, 1.4)) // MIB * MIB
    lab = Laboratory(
        load(wanted.design),
        _profile(),
        cpus=16,
        seed=random.randrange(1 << 30),
        record_sched=True,
    )
    lab.map(length)

    async def program(cx: Cx) -> None:
        await cause.call(cx, length)

    period_ns = max(_PERIOD_NS, length // MIB * _MIB_NS // _ARRIVALS)
    lab.thread("trimmer" if wanted.noise else "worker-0", program, at_ns=2 * period_ns)
    for number in range(1, random.randrange(3, 12)):
        does = OPERATIONS[random.choice(("fault", "fault", "fault", "mmap"))]
        own_ns = random.randrange(period_ns, 2 * period_ns)
        lab.bystander(f"worker-{number}", does=does, period_ns=own_ns)
    if random.random() < 0.3:
        lab.bystander("proc", period_ns=2 * period_ns)
    return lab


@lru_cache(1)
def _profile() -> profiles.Profile:
    return profiles.load(profiles.DEFAULT)
