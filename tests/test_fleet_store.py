"""The store: what is put is whole or not there, counted once, and any Parquet reader reads it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from zaplock.designs import load
from zaplock.errors import UserError
from zaplock.fleet_store.object_names import ObjectName, Partition, parse, place_at
from zaplock.fleet_store.store import FleetStore, Recorded, files_of
from zaplock.fleet_store.waits import SCHEMA, WallClock, packed, unpacked, waits_of
from zaplock.lab import profiles
from zaplock.lab.experiment import SimulatedExperiment, checked
from zaplock.lab.teardown import run
from zaplock.trace.analysis import analyse
from zaplock.trace.recording_file import Manifest, read, write
from zaplock.trace.summary import summarise

AT_NS = 1_795_000_000_123_456_789
HOST, UNIT = "web/7 €", "user@1000.service"


class Killed(BaseException):
    """What a SIGKILL is to the code that it hits: nothing after it runs."""


class BadStorage(MemoryFileSystem):
    """Object storage at its worst, by a seed: tears, fails after the fact, shows things late.

    `kill_at` ends the writer at its nth put, half-way through it.
    """

    cachable = False
    protocol = "bad"

    def __init__(self, seed: int, *, kill_at: int = -1, bad: bool = True) -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self._random, self._kill_at, self._bad = Random(seed), kill_at, bad
        self._hidden: dict[str, int] = {}
        self.puts = 0

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        self.puts += 1
        does = self._random.choice(("put", "put", "torn", "silently torn", "put, then fail"))
        does = does if self._bad else "put"
        dies = self.puts - 1 == self._kill_at
        half = dies or "torn" in does
        super().pipe_file(path, value[: len(value) // 2] if half else value, **kwargs)
        if dies:
            raise Killed
        if self._bad:
            self._hidden[path] = self._random.randrange(3)
        if does in ("torn", "put, then fail"):
            raise ConnectionResetError("connection reset")

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if self._bad and self._random.random() < 0.3:
            raise TimeoutError("slow down")
        found = super().find(path, *args, **kwargs)
        for name in [name for name in found if self._hidden.get(name, 0) > 0]:
            self._hidden[name] -= 1
            del found[name]
        return found


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated munmap of 1 GiB under 5.15 beside a fault and an mmap, as a recording."""
    plan = SimulatedExperiment(1 << 30, bystanders=("fault", "mmap"), period_ns=1_000_000)
    events = run(load("linux-5.15"), checked(plan), profiles.load(profiles.DEFAULT)).events
    path = tmp_path_factory.mktemp("store") / "one.zaplock"
    write(path, events, Manifest(source="simulation", kernel="5.15"))
    return path


def waits_in(recording: Path, name: str) -> pl.DataFrame:
    analysis = analyse(read(recording).events, "5.15")
    return waits_of(summarise(analysis), name, WallClock(AT_NS))


def about(recording: Path, name: str = "0123456789ab", host: str = HOST) -> Recorded:
    frame = waits_in(recording, name)
    worst = int(frame["wait_ns"].max())  # type: ignore[arg-type]
    return Recorded(place_at(AT_NS, host, UNIT), name, AT_NS, frame.height, worst, "5.15")


def put(
    store: FleetStore, recording: Path, name: str = "0123456789ab", host: str = HOST
) -> Recorded:
    told = about(recording, name, host)
    store.put_waits(told, waits_in(recording, name))
    store.put_recording(told, files_of(recording))
    return told


def test_a_listing_tells_all_without_opening_anything(tmp_path: Path, recording: Path) -> None:
    store = FleetStore(str(tmp_path / "fleet"))
    told = put(store, recording)
    assert store.days() == [told.place.day]
    (waits,), (entry,) = store.waits().objects, store.recordings().objects
    assert waits.place == entry.place == Partition(told.place.day, HOST, UNIT)
    for one in (waits.name, entry.name):
        assert (one.at_ns, one.recording, one.waits) == (AT_NS, told.recording, told.waits)
        assert one.worst_ns == told.worst_ns > 10_000_000
    assert store.recordings(["1999-01-01"]).objects == ()


def test_what_was_put_is_fetched_as_it_was(tmp_path: Path, recording: Path) -> None:
    store = FleetStore(str(tmp_path / "fleet"))
    put(store, recording)
    (entry,) = store.recordings().objects
    fetched = read(store.fetch(entry, tmp_path / "back"))
    assert not fetched.caveats
    assert (fetched.events["time_ns"] == read(recording).events["time_ns"]).all()
    (_, frame), *none = store.read_waits(store.waits().objects)
    assert not none
    assert frame.equals(waits_in(recording, "0123456789ab"))
    worst = frame.sort("wait_ns").row(-1, named=True)
    assert worst["culprit_operation"] == "munmap"
    assert worst["culprit_length"] == 1 << 30


def test_duckdb_and_polars_read_it_as_it_is(tmp_path: Path, recording: Path) -> None:
    store = FleetStore(str(tmp_path / "fleet"))
    rows = put(store, recording).waits + put(store, recording, "ba9876543210", "db").waits
    pattern = str(tmp_path / "fleet" / "waits" / "**" / "*.parquet")
    told = duckdb.sql(f"SELECT host, unit, count(*) FROM '{pattern}' GROUP BY ALL ORDER BY 1 DESC")
    assert told.fetchall() == [(HOST, UNIT, rows // 2), ("db", UNIT, rows // 2)]
    frame = pl.scan_parquet(pattern, hive_partitioning=True).collect()
    assert (frame.height, set(frame["host"])) == (rows, {HOST, "db"})


def test_a_second_try_is_counted_once(tmp_path: Path, recording: Path) -> None:
    store = FleetStore(str(tmp_path / "fleet"))
    told = put(store, recording)
    put(store, recording)
    assert len(store.waits().objects) == len(store.recordings().objects) == 1
    # One that an update of zaplock wrote differently, with a wait less, is not added to it.
    store.put_waits(told, waits_in(recording, told.recording).head(1))
    listing = store.waits()
    assert [one.name.waits for one in listing.objects] == [told.waits]
    assert listing.twice == 1


@pytest.mark.parametrize("seed", range(12))
def test_bad_storage_ends_in_a_whole_store(recording: Path, tmp_path: Path, seed: int) -> None:
    files = BadStorage(seed)
    store = FleetStore("/fleet", files, pause=lambda _s: None)
    done = given_up = 0
    while done < 3:
        try:
            put(store, recording, f"{done:012x}")
            done += 1
        except UserError:  # five failures in a row: the caller comes again
            given_up += 1
    assert store.objects.retries >= 4 * given_up
    assert store.objects.retries > 0
    seen = [len(store.recordings().objects) for _ in range(8)]
    assert seen == sorted(seen), "what a late listing showed once stays"
    assert seen[-1] == 3
    assert [len(store.waits().objects) for _ in range(8)][-1] == 3
    assert not store.waits().torn
    for number, entry in enumerate(store.recordings().objects):
        read(store.fetch(entry, tmp_path / str(number)))
    assert sum(frame.height for _, frame in store.read_waits(store.waits().objects)) == sum(
        one.name.waits for one in store.waits().objects
    )


def test_a_writer_that_dies_at_any_put_leaves_whole_recordings(
    recording: Path, tmp_path: Path
) -> None:
    last = BadStorage(0, bad=False)
    put(FleetStore("/fleet", last), recording)
    for dies_at in range(last.puts):
        files = BadStorage(0, kill_at=dies_at, bad=False)
        store = FleetStore("/fleet", files)
        with pytest.raises(Killed):
            put(store, recording)
        listing = store.waits()
        assert len(listing.objects) == (dies_at > 0)
        assert len(listing.torn) == (dies_at == 0)
        assert not store.recordings().objects, "an entry is there before its recording is"
        put(store, recording)  # it was started again
        (entry,), (waits,) = store.recordings().objects, store.waits().objects
        assert not store.waits().torn
        assert not read(store.fetch(entry, tmp_path / str(dies_at))).caveats
        assert waits.name.waits == entry.name.waits


def test_a_killed_process_leaves_a_store_that_opens(recording: Path, tmp_path: Path) -> None:
    """The same with SIGKILL and a real directory; it tells how far it came."""
    where = tmp_path / "fleet"
    told = about(recording)
    table = tmp_path / "waits.parquet"
    table.write_bytes(packed(waits_in(recording, told.recording)))
    program = (
        "import sys, dataclasses, pathlib, polars\n"
        "from zaplock.fleet_store.store import Partition, Recorded, FleetStore, files_of\n"
        "where, recording, table, begun, day = sys.argv[1:]\n"
        "frame, store, n = polars.read_parquet(table), FleetStore(where), int(begun)\n"
        "place = Partition(day, 'h', 'u')\n"
        "while True:\n"
        f"    numbers = {AT_NS}, frame.height, {told.worst_ns}\n"
        "    one = Recorded(place, f'{n:012x}', *numbers, '5.15')\n"
        "    print(n, flush=True)\n"
        "    store.put_waits(one, frame)\n"
        "    store.put_recording(one, files_of(pathlib.Path(recording)))\n"
        "    n += 1\n"
    )
    begun, random, store = 0, Random(3), FleetStore(str(where))
    for _ in range(int(os.environ.get("ZAPLOCK_STORE_KILLS", "3"))):
        arguments = [str(where), str(recording), str(table), str(begun), told.place.day]
        writer = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout
        for _ in range(random.randrange(1, 9)):
            begun = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        begun = max([begun, *map(int, writer.stdout.read().split())])
        writer.wait()
        assert not store.waits().torn
        for entry in store.recordings().objects:
            assert store.entry(entry).recording == entry.name.recording
    for entry in store.recordings().objects:
        assert not read(store.fetch(entry, tmp_path / "back" / entry.name.recording)).caveats
    names = [one.name.recording for one in store.recordings().objects]
    assert names == [f"{number:012x}" for number in range(len(names))]
    assert begun <= len(names) <= begun + 1  # the last may not be
    assert len(store.waits().objects) in (len(names), len(names) + 1)


def test_an_older_table_lacks_columns_and_a_newer_one_is_left_out(
    tmp_path: Path, recording: Path
) -> None:
    store = FleetStore(str(tmp_path / "fleet"))
    told = put(store, recording)
    frame = waits_in(recording, told.recording)
    old = io.BytesIO()
    frame.drop("reason", "role").write_parquet(old)
    read_back = unpacked(old.getvalue(), "old")
    assert list(read_back.columns) == list(SCHEMA)
    assert read_back["reason"].null_count() == frame.height
    (listed,) = store.waits().objects
    newer = listed.path.replace("_v1_", "_v2_").replace(told.recording, "f" * 12)
    store.objects.put(newer, packed(frame))
    listing = store.waits()
    assert len(listing.objects) == 1
    assert "newer version" in listing.caveats[0]


def test_damage_is_an_error_of_one_line(tmp_path: Path, recording: Path) -> None:
    store = FleetStore(str(tmp_path / "fleet"))
    put(store, recording)
    (listed,), (entry,) = store.waits().objects, store.recordings().objects
    for one, look in (
        (listed, lambda: list(store.read_waits([listed]))),
        (entry, lambda: store.entry(entry)),
    ):
        whole = bytearray(store.objects.get(one.path))
        whole[len(whole) // 2] ^= 1
        store.objects.put(one.path, bytes(whole))
        with pytest.raises(UserError, match="damaged"):
            look()


def test_a_removed_recording_leaves_its_waits_and_a_sweep_what_is_named(
    tmp_path: Path, recording: Path
) -> None:
    store = FleetStore(str(tmp_path / "fleet"))
    told = put(store, recording)
    orphan = f"recordings/{told.place}/{'e' * 12}/events-000000-{'0' * 16}.parquet"
    store.objects.put(orphan, b"half")
    assert store.sweep(HOST, AT_NS) == 0, "today's may be on their way"
    assert store.sweep("another", AT_NS + 2 * 86_400 * 10**9) == 0
    assert store.sweep(HOST, AT_NS + 2 * 86_400 * 10**9) == 1
    (entry,) = store.recordings().objects
    store.remove_recording(entry)
    assert not store.recordings().objects
    assert not store.objects.sizes("recordings")
    assert len(store.waits().objects) == 1


def test_names_say_what_they_were_made_of() -> None:
    name = ObjectName(AT_NS, "0123456789ab", 1, 7, 10**9, 4711, "f" * 16)
    place = place_at(AT_NS, HOST, UNIT)
    for kind in ("parquet", "json"):
        assert parse(f"waits/{place}/{name.spelt(kind)}") == (place, name)
    for other in ("waits/x.parquet", f"waits/{place}/.x.part", f"{name.spelt('json')}"):
        assert parse(other) is None
    with pytest.raises(UserError, match="--host"):
        place_at(AT_NS, "", UNIT)


@pytest.fixture(autouse=True)
def _own_memory() -> Iterator[None]:
    """Forget what fsspec's memory holds: it is one for all."""
    yield
    MemoryFileSystem.store.clear()
