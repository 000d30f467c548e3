"""Make the store of a believable fleet: hosts with kernels and services, stalls with known causes.

Each host runs some of `causes.SERVICES` under the kernel of its kind. A service's stalls come from
its cause, more by day than by night, and from small frees as everywhere; a few hosts stall ten
times as often as others like them. What was put in is written beside the store (`truth.json`):
that is what a report is judged by.

There are `VARIANTS` simulated episodes of each service, kernel and cause, and each stall of a host
is one of them at its own time. So a fleet of ten thousand hosts has as many kinds of stalls as one
of a hundred, which is enough for sums and sizes, and not for new findings. Of each host and unit
the day's longest stall has its recording in the store, as an agent with a small budget would keep.

Everything follows from the seed: the same hosts, days and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
import numpy as np
import polars as pl

from zaplock.errors import UserError
from zaplock.executors import Executor, divided, flat
from zaplock.fleet.causes import CAUSES, SERVICES, Episode, Service, WantedEpisode, simulate
from zaplock.fleet_store.object_names import Partition, recording_id
from zaplock.fleet_store.store import TRUTH, FleetStore, Recorded
from zaplock.fleet_store.waits import SCHEMA
from zaplock.trace.manifest import FILE, encode

VARIANTS = 6
DAY_NS = 86_400 * 10**9
FIRST_DAY = "2026-01-05"
"""A Monday, so that a fleet does not depend on when it is made."""
KERNELS = (("linux-5.15", 0.35), ("linux-6.1", 0.25), ("linux-6.6", 0.15), ("linux-6.18", 0.25))
"""Designs, and which share of the hosts runs each."""
ODD_SHARE = 0.01
ODD_TIMES = 10
"""An odd host's stalls are so many times as frequent."""
_UNITS = 3
_HOURS = np.array([1, 1, 1, 1, 1, 2, 3, 5, 8, 9, 9, 8, 8, 9, 9, 8, 7, 6, 5, 4, 3, 2, 2, 1], float)
"""How much of a day's work falls into each hour (UTC)."""
_PARTS = 32


@dataclass(frozen=True, slots=True)
class Host:
    """A simulated host."""

    name: str
    design: str
    services: tuple[Service, ...]
    odd: bool


@dataclass(frozen=True)
class Pool:
    """All episodes: their waits in one table, and which rows are whose."""

    episodes: tuple[Episode, ...]
    waits: pl.DataFrame
    first: tuple[int, ...]
    places: dict[tuple[str, str, bool], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Made:
    """What was written."""

    hosts: int
    waits: int
    recordings: int
    parts: int


@dataclass(frozen=True)
class _Task:
    url: str
    hosts: tuple[Host, ...]
    days: tuple[str, ...]
    seed: int
    pool: Pool


def fleet_of(hosts: int, seed: int) -> list[Host]:
    """Choose the hosts: kernels, services and which are odd, by a seed.

    Raises UserError for less than one host.
    """
    if hosts < 1:
        raise UserError(f"{hosts} hosts are no fleet: give at least one")
    random = Random(seed)
    found = []
    for number in range(hosts):
        design = random.choices([one for one, _ in KERNELS], [share for _, share in KERNELS])[0]
        services = random.sample(SERVICES, _UNITS)
        odd = random.random() < ODD_SHARE and any(one.cause for one in services)
        found.append(Host(f"host-{number:05d}", design, tuple(services), odd))
    return found


def days_of(count: int, first: str = FIRST_DAY) -> tuple[str, ...]:
    """List so many days from one on. Raises UserError for less than one, or no date."""
    if count < 1:
        raise UserError(f"{count} days are none: give at least one")
    try:
        begin = datetime.strptime(first, "%Y-%m-%d")
    except ValueError:
        raise UserError(f"{first!a} is no day: give it as YYYY-MM-DD") from None
    return tuple((begin + timedelta(days=day)).strftime("%Y-%m-%d") for day in range(count))


def make_pool(workers: Executor, designs: Sequence[str], variants: int = VARIANTS) -> Pool:
    """Simulate every episode that is needed."""
    wanted = [
        WantedEpisode(service, design, noise, nth)
        for design in designs
        for service in SERVICES
        for noise in ((False, True) if service.cause else (True,))
        for nth in range(variants)
    ]
    parts = divided(wanted, 4 * workers.workers)
    episodes = flat(workers.map(_simulate_all, parts))
    first, places, rows = [0], dict[tuple[str, str, bool], list[int]](), 0
    for number, one in enumerate(episodes):
        rows += one.waits.height
        first.append(rows)
        key = one.wanted.service.unit, one.wanted.design, one.wanted.noise
        places.setdefault(key, []).append(number)
    waits = pl.concat([one.waits for one in episodes])
    return Pool(tuple(episodes), waits, tuple(first), {k: tuple(v) for k, v in places.items()})


def _simulate_all(wanted: list[WantedEpisode]) -> list[Episode]:
    return [simulate(one) for one in wanted]


def simulate_fleet(
    url: str,
    hosts: int,
    days: Sequence[str],
    workers: Executor,
    *,
    seed: int = 1,
    variants: int = VARIANTS,
    progress: Callable[[str], None] = lambda _line: None,
) -> Made:
    """Write the store of a simulated fleet. Raises UserError where there is a store already."""
    store = FleetStore(url)
    if store.days():
        raise UserError(f"{url} is a store already: name another place, or remove it")
    fleet = fleet_of(hosts, seed)
    progress("simulating the episodes")
    pool = make_pool(workers, sorted({host.design for host in fleet}), variants)
    store.objects.put(TRUTH, msgspec.json.format(msgspec.json.encode(_truth(fleet, days, seed))))
    tasks = [_Task(url, tuple(part), tuple(days), seed, pool) for part in divided(fleet, _PARTS)]
    made = Made(0, 0, 0, 0)
    for one in workers.map(_write_hosts, tasks):
        made = Made(
            made.hosts + one.hosts,
            made.waits + one.waits,
            made.recordings + one.recordings,
            made.parts + one.parts,
        )
        progress(f"{made.hosts:,} of {hosts:,} hosts, {made.waits:,} waits")
    return made


def _truth(fleet: Sequence[Host], days: Sequence[str], seed: int) -> dict[str, Any]:
    services = [one for one in SERVICES if one.cause]
    return {
        "seed": seed,
        "hosts": len(fleet),
        "days": list(days),
        "causes": [
            {
                "name": one.cause.name,
                "unit": one.unit,
                "process": one.process,
                "operation": one.cause.operation,
                "hosts": sum(one in host.services for host in fleet),
            }
            for one in services
            if one.cause
        ],
        "odd_hosts": [host.name for host in fleet if host.odd],
        "noise": [one.unit for one in SERVICES if one.cause not in CAUSES],
    }


def _write_hosts(task: _Task) -> Made:
    store = FleetStore(task.url)
    waits = recordings = parts = 0
    for host in task.hosts:
        for day in task.days:
            for service in host.services:
                begun = _stalls(host, service, day, task.seed, task.pool)
                if not begun:
                    continue
                count = _write_unit(
                    store, Partition(day, host.name, service.unit), begun, task.pool
                )
                waits, recordings, parts = waits + count, recordings + 1, parts + 1
    return Made(len(task.hosts), waits, recordings, parts)


def _stalls(host: Host, service: Service, day: str, seed: int, pool: Pool) -> list[tuple[int, int]]:
    """Choose a unit's stalls of a day: when each began (ns since 1970), and which episode it is."""
    random = np.random.default_rng([seed, *f"{host.name} {service.unit} {day}".encode()])
    midnight = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    begin_ns = int(midnight.timestamp()) * 10**9
    found: list[tuple[int, Any]] = []
    for noise in (False, True) if service.cause else (True,):
        places = pool.places[service.unit, host.design, noise]
        a_day = pool.episodes[places[0]].wanted.cause.a_day
        count = int(random.poisson(a_day * (ODD_TIMES if host.odd and not noise else 1)))
        hours = random.choice(24, count, p=_HOURS / _HOURS.sum())
        at_ns = begin_ns + hours * (DAY_NS // 24) + random.integers(0, DAY_NS // 24, count)
        found += zip(at_ns.tolist(), np.array(places)[random.integers(0, len(places), count)])
    return sorted((int(at_ns), int(number)) for at_ns, number in found)


def _write_unit(
    store: FleetStore, place: Partition, begun: list[tuple[int, int]], pool: Pool
) -> int:
    """Write a unit's waits of a day and the recording of its longest stall; count the waits."""
    names = [recording_id(place.host, place.unit, str(at_ns)) for at_ns, _ in begun]
    spans = [range(pool.first[number], pool.first[number + 1]) for _, number in begun]
    rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    counts = [len(span) for span in spans]
    offset = np.repeat([at_ns for at_ns, _ in begun], counts)
    frame = pool.waits[rows].with_columns(
        time=(pl.col("time").to_physical() + pl.Series(offset, dtype=pl.Int64)).cast(
            SCHEMA["time"]
        ),
        recording=pl.Series(np.repeat(names, counts), dtype=pl.String),
    )
    at_ns, _ = begun[0]
    worst = max(pool.episodes[number].worst_ns for _, number in begun)
    kernel = pool.episodes[begun[0][1]].manifest.kernel
    name = recording_id(place.host, place.unit, place.day)
    store.put_waits(Recorded(place, name, at_ns, frame.height, worst, kernel), frame)
    _write_recording(store, place, begun, names, pool)
    return frame.height


def _write_recording(
    store: FleetStore, place: Partition, begun: list[tuple[int, int]], names: list[str], pool: Pool
) -> None:
    longest = max(range(len(begun)), key=lambda row: (pool.episodes[begun[row][1]].worst_ns, -row))
    at_ns, number = begun[longest]
    episode = pool.episodes[number]
    at = datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="seconds")
    manifest = encode(msgspec.structs.replace(episode.manifest, started_at=at))
    files = [(name, manifest if name == FILE else content) for name, content in episode.files]
    told = Recorded(
        place, names[longest], at_ns, episode.waits.height, episode.worst_ns,
        episode.manifest.kernel, episode.wanted.cause.name,
    )  # fmt: skip
    store.put_recording(told, files)
