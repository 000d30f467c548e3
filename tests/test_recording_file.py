"""A recording comes back as it was written, and is whole after whatever stopped its writer."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from zaplock.errors import UserError
from zaplock.trace import file
from zaplock.trace.events import EVENT, NO_OP, EventKind, Events, RecordedTask

MM = 0xFFFF_8880_0000_1000


def events(count: int, start_ns: int = 0) -> Events:
    columns = {name: np.zeros(count, EVENT[name]) for name in EVENT.names or ()}
    columns["time_ns"][:] = start_ns + np.arange(count)
    columns["mm"][:] = MM
    columns["op"][:] = NO_OP
    columns["address"][:] = 2**64 - 4096
    columns["result"][:] = -4095
    return Events(columns, ("munmap",), {7: RecordedTask(7, "worker", 5, "db")}, {MM: 5})


def test_every_column_comes_back(tmp_path: Path) -> None:
    written = events(1000)
    file.write(tmp_path / "a.zaplock", written)
    read = file.read(tmp_path / "a.zaplock")
    read.events.check()
    for name in EVENT.names or ():
        assert (read.events[name] == written[name]).all(), name
    assert (read.events.tasks, read.events.mms) == (written.tasks, written.mms)
    assert read.manifest.operations == ("munmap",)
    assert (read.manifest.started_ns, read.manifest.ended_ns) == (0, 999)
    assert read.manifest.complete


def test_blocks_that_overlap_come_back_in_order(tmp_path: Path) -> None:
    with file.Writer(tmp_path / "a.zaplock", file.Manifest(operations=("munmap",))) as writer:
        writer.append(events(10, start_ns=5).columns)
        writer.append(events(10, start_ns=0).columns)
    read = file.read(tmp_path / "a.zaplock").events
    read.check()
    assert read["time_ns"].tolist() == sorted([*range(5, 15), *range(10)])


def test_losses_are_counted_in_the_manifest(tmp_path: Path) -> None:
    lossy = events(3)
    lossy["kind"][:] = EventKind.LOST
    lossy["length"][:] = [40, -1, 2]
    file.write(tmp_path / "a.zaplock", lossy)
    manifest = file.read_manifest(tmp_path / "a.zaplock")
    assert (manifest.lost_events, manifest.unknown_losses) == (42, 1)


def test_the_flight_recorder_forgets_old_blocks(tmp_path: Path) -> None:
    with file.Writer(tmp_path / "a.zaplock", file.Manifest(operations=("munmap",))) as writer:
        for start_ns in (0, 100, 200):
            writer.append(events(100, start_ns).columns)
        assert writer.drop_before(150) == 1
    assert file.read(tmp_path / "a.zaplock").events["time_ns"].tolist() == list(range(100, 300))


@pytest.mark.parametrize("reader", ["duckdb", "pandas", "polars"])
def test_anybody_can_read_the_tables(tmp_path: Path, reader: str) -> None:
    file.write(tmp_path / "a.zaplock", events(100))
    blocks = tmp_path / "a.zaplock" / "events-000000.parquet"
    if reader == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        row = duckdb.sql(f"select count(*), max(time_ns), max(mm) from '{blocks}'").fetchall()[0]
    elif reader == "pandas":
        table = pytest.importorskip("pandas").read_parquet(blocks)
        row = (len(table), table.time_ns.max(), table.mm.max())
    else:
        frame = pl.read_parquet(blocks)
        row = (len(frame), frame["time_ns"].max(), frame["mm"].max())
    assert tuple(map(int, row)) == (100, 99, MM)


def test_a_killed_writer_leaves_whole_blocks(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_recording_file import events, file
        writer = file.Writer({str(tmp_path / "a.zaplock")!r}, file.Manifest(operations=("munmap",)))
        for block in range(10_000):
            writer.append(events(1000, block * 1000).columns)
            print(block, flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    written = 0
    for line in child.stdout:
        written = int(line) + 1
        if written == 20:
            break
    child.send_signal(signal.SIGKILL)
    written += len(child.stdout.readlines())
    child.wait()
    read = file.read(tmp_path / "a.zaplock")
    assert len(read.events) % 1000 == 0
    assert written * 1000 <= len(read.events) <= (written + 1) * 1000
    assert not read.manifest.complete


def test_what_is_no_recording_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no recording .* 'zaplock record'"):
        file.read(tmp_path)
    with pytest.raises(UserError, match="is no recording"):
        file.read(tmp_path / "nowhere")
    file.write(tmp_path / "a.zaplock", events(1))
    with pytest.raises(UserError, match="already there"):
        file.write(tmp_path / "a.zaplock", events(1))
    (tmp_path / "a.zaplock" / "events-000000.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="can't be read"):
        file.read(tmp_path / "a.zaplock")
    manifest = tmp_path / "a.zaplock" / "manifest.json"
    manifest.write_text('{"format": "zaplock recording", "version": 99}')
    with pytest.raises(UserError, match=r"version 99.*update zaplock"):
        file.read(tmp_path / "a.zaplock")
    manifest.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        file.read(tmp_path / "a.zaplock")
