"""Put a process under a CPU quota: a cgroup of its own for as long as a measurement takes.

Both versions of the cpu controller (see `recorder.quota_watch`). Needs root and a controller that
groups may be made in; inside a container there is often none.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from zaplock.errors import UserError
from zaplock.recorder.control_groups import hierarchy
from zaplock.trace.quotas import CpuMax

_PATIENCE_S = 5.0


@contextlib.contextmanager
def limited(pid: int, limit: CpuMax) -> Iterator[None]:
    """Give a process this quota while the block runs. Raises UserError where that can't be had."""
    folder = _made(limit)
    try:
        home = folder.parent / "cgroup.procs"
        (folder / "cgroup.procs").write_text(str(pid))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it has ended
                home.write_text(str(pid))
    finally:
        _removed(folder)


def _made(limit: CpuMax) -> Path:
    where = hierarchy("cpu")
    if where is None:
        raise UserError("there is no cgroup file system here for --cpu-max: leave it out")
    root, controller = where
    folder = root / f"zaplock-{os.getpid()}-{time.monotonic_ns()}"
    quota_us, period_us = limit.quota_ns // 1000, limit.period_ns // 1000
    try:
        folder.mkdir()
    except OSError as error:
        raise UserError(_why_not(folder, error)) from None
    try:
        if controller:
            (folder / "cpu.cfs_period_us").write_text(str(period_us))
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (folder / "cpu.max").write_text(f"{quota_us} {period_us}")
    except OSError as error:
        _removed(folder)
        raise UserError(_why_not(folder, error)) from None
    return folder


def _removed(folder: Path) -> None:
    """Remove a group; a process that has just ended may still stand in it for a moment."""
    end = time.monotonic() + _PATIENCE_S
    while folder.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.02)


def _why_not(folder: Path, error: OSError) -> str:
    return (
        f"no cgroup with a CPU quota can be made at {folder.parent} ({error.strerror}): run as "
        "root where the cpu controller is on, or leave out --cpu-max"
    )
