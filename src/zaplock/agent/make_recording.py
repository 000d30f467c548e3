"""The agent's child: make a recording of a spooled trouble, and put it into the store.

    python -m zaplock.agent.make_recording FOLDER

Settings are JSON on stdin, what was found is JSON on stdout.

Everything that needs polars happens here. Done twice it does the same: the recording's name follows
from the host and the instant of the trouble.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from zaplock.agent import spool
from zaplock.agent.spool import Trouble
from zaplock.errors import UserError
from zaplock.fleet_store.object_names import place_at, recording_id
from zaplock.fleet_store.store import FleetStore, Recorded, files_of
from zaplock.fleet_store.waits import NOT_KNOWN, SCHEMA, WallClock, joined, waits_of
from zaplock.outputs import unwritable, walk
from zaplock.recorder.decode_spool import decode
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.new_recording import UNDECODED
from zaplock.trace.recording_file import read
from zaplock.trace.summary import QUEUED_NS, operation_name, summarise

_NICE = 10
_MOST_TOLD = 2_000
_MOST_CULPRITS = 10
"""So many lines of the log a unit has of one recording: the worst wait behind each culprit."""
_HOLD_NS = 1_000_000
_NEAR_NS = 5_000_000
_DAY_NS = 86_400 * 10**9


def ship(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Make a recording of a spooled trouble, put it, and tell what is in it."""
    trouble, path = spool.read(folder), spool.recording_in(folder)
    _decode(path)
    recording = read(path)
    about = recording.manifest
    analysis = analyse(
        recording.events,
        about.kernel,
        span=(about.started_ns, about.ended_ns),
        caveats=recording.caveats,
    )
    at_ns = trouble.fired.start_ns + trouble.clock_offset_ns
    name = recording_id(settings["host"], str(trouble.fired.mm), str(at_ns))
    store = FleetStore(settings["store"])
    told = _put(store, trouble, analysis, path, settings, name, at_ns)
    removed = keep_within(store, settings, time.time_ns())
    store.sweep(settings["host"], time.time_ns() - _DAY_NS)
    return {
        **told,
        "recording": name,
        "retries": store.objects.retries,
        "removed": removed,
    }


def _decode(path: Path) -> None:
    """Decode what was spooled, unless a child did so that could not put it into the store."""
    if (path / UNDECODED).exists():
        try:
            with walk(path) as folder:
                decode(folder)
        except OSError as error:
            raise unwritable(path, error) from None


def _put(
    store: FleetStore,
    trouble: Trouble,
    analysis: Analysis,
    path: Path,
    settings: dict[str, Any],
    name: str,
    at_ns: int,
) -> dict[str, Any]:
    """Put each unit's waits and the recording; tell the waits, the holds and who was in trouble."""
    summary = summarise(analysis)
    clock = WallClock(trouble.clock_offset_ns)
    owners: dict[str, set[int]] = {}
    for mm, pid in analysis.events.mms.items():
        if pid in trouble.units:
            owners.setdefault(trouble.units[pid], set()).add(mm)
    waits, troubles = [], []
    for unit, mms in sorted(owners.items()):
        frame = waits_of(summary, name, clock, QUEUED_NS, mms)
        if unit == trouble.units.get(trouble.pid) and not _has(frame, trouble, at_ns):
            frame = joined([_as_noticed(trouble, name, analysis, at_ns), frame])
        if frame.is_empty():
            continue
        rows = [{**row, "unit": unit} for row in frame.drop("time").to_dicts()]
        rows.sort(key=lambda row: -row["wait_ns"])
        place = place_at(at_ns, settings["host"], unit)
        about = Recorded(place, name, at_ns, frame.height, rows[0]["wait_ns"], analysis.kernel)
        store.put_waits(about, frame)
        waits += rows
        late = [row for row in rows if row["wait_ns"] >= settings["limit_ns"]]
        troubles += [{**row, "waits": frame.height} for row in _by_culprit(late)]
    unit = trouble.units.get(trouble.pid, "unknown")
    own = [row for row in waits if row["unit"] == unit]
    worst_ns = max((row["wait_ns"] for row in own), default=0)
    place = place_at(at_ns, settings["host"], unit)
    about = Recorded(place, name, at_ns, len(own), worst_ns, analysis.kernel,
                     f"a wait of {trouble.fired.lasted_ns / 1e6:.0f} ms or more")  # fmt: skip
    store.put_recording(about, files_of(path))
    holds = list(_holds(trouble, analysis))
    return {
        "waits": waits[:_MOST_TOLD],
        "holds": holds[:_MOST_TOLD],
        "untold": sum(max(0, len(rows) - _MOST_TOLD) for rows in (waits, holds)),
        "troubles": troubles,
    }


def _by_culprit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave the first row of each culprit and what it did."""
    first = dict[tuple[str, str], dict[str, Any]]()
    for row in rows:
        first.setdefault((row["culprit_process"], row["culprit_operation"]), row)
    return list(first.values())[:_MOST_CULPRITS]


def _has(frame: pl.DataFrame, trouble: Trouble, at_ns: int) -> bool:
    """Say whether the wait that was noticed is in the recording."""
    own = frame.filter(
        (pl.col("time").to_physical() <= at_ns + _NEAR_NS)
        & (pl.col("time").to_physical() + pl.col("wait_ns") >= at_ns + trouble.fired.lasted_ns)
    )
    return not own.is_empty()


def _as_noticed(trouble: Trouble, name: str, analysis: Analysis, at_ns: int) -> pl.DataFrame:
    """Make the row of a wait that was over before all events were on, from the first look.

    It lasted so long or longer; who had the lock then is to blame, if one task was seen to.
    """
    fired = trouble.fired
    tasks = analysis.events.tasks
    who = tasks.get(fired.tid)
    holder = trouble.holders[0] if len(trouble.holders) == 1 else None
    blamed = tasks.get(holder.tid) if holder else None
    row = dict.fromkeys(SCHEMA, NOT_KNOWN) | {
        "time": at_ns,
        "recording": name,
        "kernel": analysis.kernel,
        "process": (who.process or who.comm) if who else NOT_KNOWN,
        "task": who.comm if who else NOT_KNOWN,
        "exclusive": fired.write,
        "wait_ns": fired.lasted_ns,
        "culprit_process": (blamed.process or blamed.comm) if blamed else NOT_KNOWN,
        "culprit_task": blamed.comm if blamed else NOT_KNOWN,
        "culprit_operation": holder.operation or NOT_KNOWN if holder else NOT_KNOWN,
        "culprit_length": holder.length if holder else 0,
        "culprit_detail": holder.detail if holder else 0,
        "culprit_ns": fired.lasted_ns if holder else 0,
        "role": "holder" if holder else NOT_KNOWN,
        "unexplained_ns": 0 if holder else fired.lasted_ns,
    }
    return pl.DataFrame([tuple(row.values())], SCHEMA, orient="row")


def _holds(trouble: Trouble, analysis: Analysis) -> Iterator[dict[str, Any]]:
    holds = analysis.holds
    for row in np.flatnonzero(holds["hold_ns"] >= _HOLD_NS).tolist():
        pid = analysis.events.mms.get(int(holds["mm"][row]), 0)
        task = analysis.events.tasks.get(pid)
        yield {
            "unit": trouble.units.get(pid, "unknown"),
            "process": task.process or task.comm if task else NOT_KNOWN,
            "operation": operation_name(holds.operations, int(holds["op"][row])),
            "hold_ns": int(holds["hold_ns"][row]),
        }


def keep_within(store: FleetStore, settings: dict[str, Any], now_ns: int) -> int:
    """Remove this host's recordings beyond its budget, the least interesting first; count them.

    What is too old goes; of the rest those with the shortest waits, until number and bytes fit.
    """
    own = store.recordings_of(settings["host"]).objects
    old = [one for one in own if one.name.at_ns < now_ns - settings["keep_days"] * _DAY_NS]
    kept = sorted((one for one in own if one not in old), key=lambda one: -one.name.worst_ns)
    removed, size = list(old), 0
    for place, one in enumerate(kept):
        size += sum(count for _, count, _ in store.entry(one).files)
        if place >= settings["keep"] or (place and size > settings["keep_bytes"]):
            removed.append(one)
    for one in removed:
        store.remove_recording(one)
    return len(removed)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other child works on a folder: one of an agent that was killed may still."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def main() -> int:
    """Ship one folder; exit 2 with one line where that can't be done."""
    folder = Path(sys.argv[1])
    os.nice(_NICE)
    try:
        with alone(folder):
            print(json.dumps(ship(folder, json.load(sys.stdin))))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
