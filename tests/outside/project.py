"""A project of somebody else's that uses the whole public face; `make lint` checks its types.

It is only looked at by type checkers, and by a test that runs it; `assert_type` fails where a
checker would see `Any` or something wider than what is promised.
"""

from __future__ import annotations

import asyncio
import mmap
from concurrent.futures import Future
from pathlib import Path
from typing import assert_type

import numpy as np
import polars
from numpy.typing import NDArray

import zaplock
from zaplock.author import Cx, munmap_addr_sanity
from zaplock.notebook import (
    ComparisonResult,
    LabRun,
    Picture,
    RecordedReport,
    ScenarioVerdict,
)
from zaplock.release import Released, release_soon


def frees() -> None:
    """Release memory in each way."""
    array = zaplock.buffers.empty((1 << 20,), np.uint8)
    assert_type(array, NDArray[np.uint8])
    zaplock.buffers.populate(array)
    grown = zaplock.buffers.resize(array, (1 << 21,))
    assert_type(grown, NDArray[np.uint8])
    assert_type(zaplock.buffers.empty(10), NDArray[np.float64])
    assert_type(zaplock.buffers.empty(10, "f4"), NDArray[np.generic])
    done = zaplock.release(grown, max_stall_ns=5_000_000)
    assert_type(done, Released)
    assert_type(done.length, int)
    with zaplock.buffers.borrowed((1 << 20,), np.float32) as scratch:
        assert_type(scratch, NDArray[np.float32])
    later = zaplock.release.release_soon(mmap.mmap(-1, 1 << 21))
    assert_type(later, Future[Released])
    assert_type(release_soon(mmap.mmap(-1, 1 << 21)), Future[Released])
    zaplock.release.flush()
    assert_type(zaplock.release.pending(), int)
    assert_type(asyncio.run(frees_async()), Released)


async def frees_async() -> Released:
    """Await a release."""
    return await zaplock.release.release_async(mmap.mmap(-1, 1 << 21))


def compares(folder: Path) -> None:
    """Compare designs."""
    result = zaplock.compare("64M", designs=["linux-4.9", "rfc-v6"])
    assert_type(result, ComparisonResult)
    assert_type(result.frame, polars.DataFrame)
    assert_type(result.sentences, list[str])
    assert_type(result.plot(), Picture)
    result.plot(folder / "who.svg")
    for row in result.block(("fault", "proc")):
        assert_type(row.exclusive_hold_ns, int | None)
        assert_type(row.stalls["fault"].max_ns, int)


async def looks(cx: Cx) -> bool:
    """Look at a range, as a munmap does before anything else."""
    return munmap_addr_sanity(cx, 0x1000, 4096)


def tries(folder: Path) -> None:
    """Try an address space, and a program of one's own on a simulated machine."""
    space = zaplock.AddressSpace("rfc-v6")
    heap = space.mmap(1 << 30, populate=True)
    assert_type(heap, int)
    assert_type(space.counters(), dict[str, int])
    space.munmap(heap, 1 << 30)
    assert_type(space.locks, list[str])
    lab = zaplock.Lab("rfc-v6")
    there = lab.map("64M", backing="anonymous")
    lab.thread("db", lambda cx: cx.design.munmap(cx, there, 64 << 20))
    lab.thread("looker", looks)
    lab.bystander("proc")
    seen = lab.run()
    assert_type(seen, LabRun)
    assert_type(seen.stalls["proc"].p99_ns, int)
    assert_type(seen.waits, polars.DataFrame)
    seen.save(folder / "seen.zaplock")
    assert_type(seen.results["db"], int | None)


def proves() -> None:
    """Prove a scenario."""
    found = zaplock.prove("munmap+fault", "linux-4.20")
    assert_type(found, ScenarioVerdict)
    assert_type(found.verdict, str)
    assert_type(found.result.states, int)


def reads(path: Path) -> None:
    """Read a recording, or be told in a line why not."""
    try:
        told = zaplock.report(path)
    except zaplock.UserError as error:
        assert_type(error.exit_code, int)
        return
    assert_type(told, RecordedReport)
    assert_type(told.holds, polars.DataFrame)
    assert_type(told.save(path.with_suffix(".html")), Path)
