"""A recording comes back as it was written, and is whole after whatever stopped its writer."""

import errno
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.outputs import Folder, walk
from zaplock.trace import recording_file, separate_parser, tables
from zaplock.trace.events import EVENT, NO_OP, EventKind, Events, RecordedTask
from zaplock.trace.gaps import segments
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import AddressKind, NamedAddress, StackRow

MM = 0xFFFF_8880_0000_1000
TEXT = 0xFFFF_FFFF_8123_4560


def events(count: int, start_ns: int = 0) -> Events:
    columns = {name: np.zeros(count, EVENT[name]) for name in EVENT.names or ()}
    columns["time_ns"][:] = start_ns + np.arange(count)
    columns["mm"][:] = MM
    columns["op"][:] = NO_OP
    columns["address"][:] = 2**64 - 4096
    columns["result"][:] = -4095
    return Events(columns, ("munmap",), {7: RecordedTask(7, "worker", 5, "db")}, {MM: 5})


def parquet(frame: pl.DataFrame) -> bytes:
    """Return a frame as polars writes it, as recordings of earlier versions were."""
    packed = io.BytesIO()
    frame.write_parquet(packed)
    return packed.getvalue()


def test_every_column_comes_back(tmp_path: Path) -> None:
    written = events(1000)
    recording_file.write(tmp_path / "a.zaplock", written)
    read = recording_file.read(tmp_path / "a.zaplock")
    read.events.check()
    for name in EVENT.names or ():
        assert (read.events[name] == written[name]).all(), name
    assert (read.events.tasks, read.events.mms) == (written.tasks, written.mms)
    assert read.manifest.operations == ("munmap",)
    assert (read.manifest.started_ns, read.manifest.ended_ns) == (0, 999)
    assert read.manifest.complete


def test_blocks_that_overlap_come_back_in_order(tmp_path: Path) -> None:
    with recording_file.Writer(
        tmp_path / "a.zaplock", recording_file.Manifest(operations=("munmap",))
    ) as writer:
        writer.append(events(10, start_ns=5).columns)
        writer.append(events(10, start_ns=0).columns)
    read = recording_file.read(tmp_path / "a.zaplock").events
    read.check()
    assert read["time_ns"].tolist() == sorted([*range(5, 15), *range(10)])


def test_losses_are_counted_in_the_manifest(tmp_path: Path) -> None:
    lossy = events(3)
    lossy["kind"][:] = EventKind.LOST
    lossy["length"][:] = [40, -1, 2]
    recording_file.write(tmp_path / "a.zaplock", lossy)
    manifest = recording_file.read_manifest(tmp_path / "a.zaplock")
    assert (manifest.lost_events, manifest.unknown_losses) == (42, 1)


def test_the_flight_recorder_forgets_old_blocks(tmp_path: Path) -> None:
    with recording_file.Writer(
        tmp_path / "a.zaplock", recording_file.Manifest(operations=("munmap",))
    ) as writer:
        for start_ns in (0, 100, 200):
            writer.append(events(100, start_ns).columns)
        assert writer.drop_before(150) == 1
    assert recording_file.read(tmp_path / "a.zaplock").events["time_ns"].tolist() == list(
        range(100, 300)
    )


@pytest.mark.parametrize("reader", ["duckdb", "pandas", "polars"])
def test_anybody_can_read_the_tables(tmp_path: Path, reader: str) -> None:
    recording_file.write(tmp_path / "a.zaplock", events(100))
    [blocks] = (tmp_path / "a.zaplock").glob("events-*.parquet")
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
        from test_recording_file import events, recording_file
        manifest = recording_file.Manifest(operations=("munmap",))
        writer = recording_file.Writer({str(tmp_path / "a.zaplock")!r}, manifest)
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
    read = recording_file.read(tmp_path / "a.zaplock")
    assert len(read.events) % 1000 == 0
    assert written * 1000 <= len(read.events) <= (written + 1) * 1000
    assert not read.manifest.complete


def test_what_is_no_recording_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no recording .* 'zaplock record'"):
        recording_file.read(tmp_path)
    with pytest.raises(UserError, match="is no recording"):
        recording_file.read(tmp_path / "nowhere")
    of_calls = tmp_path / "calls.trace"
    of_calls.write_text("# pid: 100\n# begin: 555555554000-555555556000 r-xp 0 fe:00 1 prog\n")
    with pytest.raises(UserError, match="of system calls, not of locks: zaplock oracle --strace /"):
        recording_file.read(of_calls)
    recording_file.write(tmp_path / "a.zaplock", events(1))
    with pytest.raises(UserError, match="already there"):
        recording_file.write(tmp_path / "a.zaplock", events(1))
    block(tmp_path / "a.zaplock").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="can't be read"):
        recording_file.read(tmp_path / "a.zaplock")
    manifest = tmp_path / "a.zaplock" / "manifest.json"
    manifest.write_text('{"format": "zaplock recording", "version": 99}')
    with pytest.raises(UserError, match=r"version 99.*update zaplock"):
        recording_file.read(tmp_path / "a.zaplock")
    manifest.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        recording_file.read(tmp_path / "a.zaplock")


# ---- a recording that isn't what was written is not told as one


def block(path: Path, number: int = 0, kind: str = "events") -> Path:
    [found] = path.glob(f"{kind}-{number:06d}-*.parquet")
    return found


def three_blocks(path: Path, start_ns: int = 1000) -> Path:
    manifest = recording_file.Manifest(
        operations=("munmap",), started_ns=start_ns, ended_ns=start_ns + 300
    )
    with recording_file.Writer(path, manifest) as writer:
        for number in range(3):
            writer.append(events(100, start_ns + 100 * number).columns)
        writer.name({7: RecordedTask(7, "worker", 5, "db")}, {MM: 5})
    return path


def test_no_bit_of_a_block_can_flip_unnoticed(tmp_path: Path) -> None:
    path = three_blocks(tmp_path / "a.zaplock")
    chosen = random.Random(1)
    for victim in (block(path, 1), block(path, 0, "tasks"), path / "manifest.json"):
        whole = victim.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
            victim.write_bytes(damaged)
            with pytest.raises(UserError) as caught:
                recording_file.read(path)
            assert "\n" not in str(caught.value)
        victim.write_bytes(whole)
    assert recording_file.read(path).caveats == ()


@pytest.mark.parametrize(
    ("number", "gap"), [(0, (1000, 1100)), (1, (1099, 1200)), (2, (1199, 1300))]
)
def test_a_block_that_was_moved_away_is_a_gap(
    tmp_path: Path, number: int, gap: tuple[int, int]
) -> None:
    path = three_blocks(tmp_path / "a.zaplock")
    block(path, number).unlink()
    read = recording_file.read(path)
    assert read.caveats == ("A block is missing from this recording: a gap.",)
    [row] = np.flatnonzero(read.events["kind"] == EventKind.LOST).tolist()
    assert (int(read.events["detail"][row]), int(read.events["time_ns"][row])) == gap
    [found] = segments(read.events, (1000, 1300)).gaps
    assert (found.cpu, found.count, found.end_ns) == (-1, -1, gap[1])
    assert found.start_ns <= gap[0]


def test_an_unfinished_recording_says_so_in_every_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.zaplock"
    writer = recording_file.Writer(path, recording_file.Manifest(operations=("munmap",)))
    writer.append(events(100, 1000).columns)
    assert recording_file.read(path).caveats == (
        "This recording has no end: its recorder still runs, or was killed.",
    )
    shown = ([], ["--json"], ["--html", "page.html"], ["--perfetto", "p.pftrace"])
    for option in (*shown, ["--csv", "csv"], ["--parquet", "parquet"]):
        where = [str(tmp_path / one) if one[0] != "-" else one for one in option]
        assert main(["report", str(path), *where]) == 0
        printed = capsys.readouterr()
        assert "has no end" in printed.err
        assert option not in shown or "has no end" in printed.out + _text(tmp_path, option)
        assert "none lost" not in printed.out


def _text(folder: Path, option: list[str]) -> str:
    return (folder / option[1]).read_text(errors="replace") if len(option) > 1 else ""


def test_a_flight_recorder_that_was_killed_begins_where_it_kept(tmp_path: Path) -> None:
    writer = recording_file.Writer(
        tmp_path / "a.zaplock", recording_file.Manifest(operations=("munmap",))
    )
    for number in range(3):
        writer.append(events(100, 1000 + 100 * number).columns)
    writer.drop_before(1150)
    read = recording_file.read(tmp_path / "a.zaplock")
    assert read.manifest.started_ns == 1100
    assert not (read.events["kind"] == EventKind.LOST).any()
    writer.close()
    assert recording_file.read(tmp_path / "a.zaplock").manifest.started_ns == 1099
    assert recording_file.read(tmp_path / "a.zaplock").caveats[0].startswith("The table tasks")


def test_a_recording_of_version_1_is_read_and_said_to_be_unchecked(tmp_path: Path) -> None:
    path = three_blocks(tmp_path / "a.zaplock")
    for table in path.glob("*.parquet"):
        kind, number, _ = table.name.split("-")
        plain = f"{kind}-{number}" if kind == "events" else kind
        table.rename(path / f"{plain}.parquet")
    old = {"format": "zaplock recording", "version": 1, "operations": ["munmap"],
           "started_ns": 1000, "ended_ns": 1300, "complete": True}  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(old))
    read = recording_file.read(path)
    assert len(read.events) == 300
    assert read.events.tasks[7].comm == "worker"
    assert read.caveats == (
        "This recording is from an earlier zaplock, without sums: damage isn't noticed.",
    )
    (path / "events-000001.parquet").unlink()
    assert "A block is missing" in recording_file.read(path).caveats[1]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("tid", pl.Series([2**32 + 7] * 10)),
        ("kind", pl.Series([200] * 10, dtype=pl.UInt8)),
        ("time_ns", pl.Series([1.5] * 10)),
        ("time_ns", pl.Series([-1] * 10)),
        ("mm", pl.Series([0.5] * 10)),
        ("op", pl.Series([3] * 10, dtype=pl.Int16)),
        ("write", pl.Series([7] * 10, dtype=pl.UInt8)),
        ("cpu", pl.Series([None] * 10, dtype=pl.Int16)),
        ("address", None),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    tmp_path: Path, column: str, values: pl.Series | None
) -> None:
    frame = pl.DataFrame({name: events(10)[name] for name in EVENT.names or ()})
    frame = frame.drop(column) if values is None else frame.with_columns(values.alias(column))
    path = tmp_path / "a.zaplock"
    recording_file.write(path, events(10))
    block(path).unlink()
    with walk(path) as folder:
        tables.put(folder, "events", 0, parquet(frame))
    with pytest.raises(UserError, match=column) as caught:
        recording_file.read(path)
    assert "\n" not in str(caught.value)


def test_a_path_is_a_path(tmp_path: Path) -> None:
    recording_file.write(tmp_path / "run[1].zaplock", events(10))
    recording_file.write(tmp_path / "run1.zaplock", events(20))
    assert len(recording_file.read(tmp_path / "run[1].zaplock").events) == 10
    recording_file.write(tmp_path / "*.zaplock", events(30))
    assert len(recording_file.read(tmp_path / "*.zaplock").events) == 30


@pytest.mark.parametrize("victim", ["manifest.json", "events", "tasks"])
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "directory"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, victim: str, kind: str) -> None:
    path = three_blocks(tmp_path / "a.zaplock")
    odd = path / victim if "." in victim else block(path, 0, victim)
    odd.unlink()
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "directory":
        odd.mkdir()
    else:
        odd.symlink_to(kind)
    with pytest.raises(UserError, match=r"can't be read|no plain file"):
        recording_file.read(path)


def test_a_bomb_is_refused_before_its_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three_blocks(tmp_path / "a.zaplock")
    frame = pl.DataFrame({name: np.zeros(1 << 23, EVENT[name]) for name in EVENT.names or ()})
    with walk(path) as folder:
        tables.put(folder, "events", 3, parquet(frame))
    assert block(path, 3).stat().st_size < 1 << 20
    with pytest.raises(UserError, match="claims 8,388,608 rows"):
        recording_file.read(path)
    block(path, 3).unlink()
    monkeypatch.setattr(tables, "_available", lambda: 20_000)
    with pytest.raises(UserError, match=r"needs .* MiB of memory"):
        recording_file.read(path)


def claiming(content: bytes, size: int) -> bytes:
    """Let the first page of a table say that it unpacks to so many bytes."""
    pq = pytest.importorskip("pyarrow.parquet")
    group = pq.read_metadata(io.BytesIO(content)).row_group(0)
    at = group.column(0).data_page_offset + 3  # behind its kind, and the head of the next field
    said, beyond = varint(content, at)
    packed, end = varint(content, beyond + 1)
    told = as_varint(2 * size)  # signed numbers are doubled
    packed -= 2 * (len(told) - len(as_varint(said)))
    return content[:at] + told + content[beyond : beyond + 1] + as_varint(packed) + content[end:]


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Read a number; return it and where it ends."""
    end = next(place for place in range(at, at + 10) if content[place] < 128) + 1
    return sum((content[place] & 127) << 7 * (place - at) for place in range(at, end)), end


def as_varint(number: int) -> bytes:
    digits = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def bomb(path: Path) -> Path:
    """Write a recording with right sums, of whose block a page claims two gigabytes."""
    written = events(2000)
    written["time_ns"][:] = np.sort(np.random.default_rng(1).integers(0, 1 << 60, 2000))
    recording_file.write(path, written)
    whole = block(path)
    content = claiming(whole.read_bytes(), (1 << 31) - 1)
    (path / f"events-000000-{hashlib.sha256(content).hexdigest()[:16]}.parquet").write_bytes(
        content
    )
    whole.unlink()
    return path


def test_a_table_that_breaks_the_parser_breaks_nobody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, good = bomb(tmp_path / "bomb.zaplock"), tmp_path / "good.zaplock"
    with pytest.raises(UserError, match=r"can't be read \(it breaks the parser\)"):
        recording_file.read(path)
    assert main(["report", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    recording_file.write(good, events(10))
    assert len(recording_file.read(good).events) == 10


def test_a_signal_for_the_whole_group_does_not_blame_the_table(tmp_path: Path) -> None:
    """What `timeout` sends reaches the parser too: only who asks it is meant."""
    content, parser = written(tmp_path), separate_parser.TableParser()
    try:
        parser.look(content)
        process = parser._process
        assert process is not None
        for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            process.send_signal(one)
        assert parser.look(content)[0] == 10
        assert parser._process is process
        process.kill()
        with pytest.raises(ValueError, match="was killed, perhaps for want of memory: try again"):
            parser.look(content)
        assert parser.look(content)[0] == 10
    finally:
        parser.end()


def written(tmp_path: Path) -> bytes:
    recording_file.write(tmp_path / "a.zaplock", events(10))
    return next((tmp_path / "a.zaplock").glob("events-*.parquet")).read_bytes()


def test_a_parser_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording_file.write(tmp_path / "a.zaplock", events(10))
    recording_file.read(tmp_path / "a.zaplock")
    parser = separate_parser.PARSER._process
    assert parser is not None
    parser.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(separate_parser, "_WALL", 0.05)
    with pytest.raises(UserError, match="reading it takes too long"):
        recording_file.read(tmp_path / "a.zaplock")
    assert parser.returncode == -signal.SIGKILL
    monkeypatch.undo()
    assert len(recording_file.read(tmp_path / "a.zaplock").events) == 10


def test_a_forked_child_has_a_parser_of_its_own(tmp_path: Path) -> None:
    recording_file.write(tmp_path / "a.zaplock", events(10))
    script = textwrap.dedent(f"""
        import os, pathlib
        from zaplock.trace import separate_parser
        content = pathlib.Path({str(block(tmp_path / "a.zaplock"))!r}).read_bytes()
        rows = lambda: separate_parser.PARSER.look(content)[0]
        assert rows() == 10
        ours = separate_parser.PARSER._process.pid
        child = os.fork()
        assert rows() == 10
        assert (separate_parser.PARSER._process.pid == ours) == (child > 0)
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


@pytest.mark.parametrize("what", ["RLIMIT_CPU, (3, 3)", "RLIMIT_AS, (5 << 29, 5 << 29)"])
def test_a_user_who_has_limits_of_his_own_can_read(tmp_path: Path, what: str) -> None:
    recording_file.write(tmp_path / "a.zaplock", events(10))
    script = textwrap.dedent(f"""
        import pathlib, resource
        from zaplock.trace import separate_parser
        content = pathlib.Path({str(block(tmp_path / "a.zaplock"))!r}).read_bytes()
        resource.setrlimit(resource.{what})
        assert separate_parser.PARSER.look(content)[0] == 10
        assert separate_parser.PARSER.parse(content, 1 << 22, ["tid"]).num_rows == 10
    """)
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_parser_answers_what_a_table_holds_and_ends_with_who_asks() -> None:
    """It is run as a module here, so that its lines count (`make coverage`)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    home = str(Path(pl.__file__).parents[1])
    command = [sys.executable, "-m", "zaplock.trace.parser_process", str(theirs.fileno()), home]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    table = io.BytesIO()
    pl.DataFrame({"name": ["a", "b"], "ns": [1, 2]}).write_parquet(table)

    def answer(content: bytes, **request: object) -> tuple[dict[str, Any], bytes]:
        file = os.memfd_create("table")
        os.write(file, content)
        asked = json.dumps({"bytes": 1 << 30, "cpu_s": 60, **request}).encode()
        socket.send_fds(ours, [asked], [file])
        told = json.loads(ours.recv(1 << 16))
        with os.fdopen(file, "rb") as left:
            left.seek(0)
            return told, left.read()

    with ours:
        assert answer(table.getvalue(), ask="look")[0] == {"rows": 2, "columns": ["name", "ns"]}
        told, parsed = answer(table.getvalue(), ask="parse", columns=["ns"])
        assert (told, pl.read_ipc(parsed).to_dict(as_series=False)) == ({}, {"ns": [1, 2]})
        told, left = answer(table.getvalue()[:-9], ask="parse", columns=["ns"])
        assert told["error"]
        assert left == table.getvalue()[:-9]
    assert process.wait() == 0


def test_a_table_that_lost_its_sum_is_said_to_be_unchecked(tmp_path: Path) -> None:
    path = three_blocks(tmp_path / "a.zaplock")
    block(path, 1).rename(path / "events-000001.parquet")
    assert recording_file.read(path).caveats == (
        "A table of this recording has lost the sum in its name: damage isn't noticed.",
    )


def test_a_recording_is_its_owners_alone(tmp_path: Path) -> None:
    path = three_blocks(tmp_path / "a.zaplock")
    assert path.stat().st_mode & 0o777 == 0o700
    assert {one.stat().st_mode & 0o777 for one in path.iterdir()} == {0o600}


def test_hashed_pointers_tell_only_which_are_the_same(tmp_path: Path) -> None:
    written = events(4)
    written["mm"][:] = [MM, MM + 0x5000, MM, 0]
    written["kind"][3] = EventKind.CONTENTION_BEGIN
    written["address"][3] = MM + 0x68
    with recording_file.Writer(
        tmp_path / "a", recording_file.Manifest(operations=("munmap",)), hash_pointers=True
    ) as to:
        to.append(written.columns)
        to.name({}, {MM: 5, MM + 0x5000: 6})
        to.append_stacks(
            [StackRow(1, 5, 5, int(StackReason.LOCKED), (TEXT, TEXT + 9), (0x400,), 0)]
        )
        to.name_frames(
            {
                (0, TEXT): NamedAddress("do_munmap", AddressKind.OTHER),
                (0, TEXT + 9): NamedAddress(hex(TEXT + 9), AddressKind.OTHER),
                (5, 0x400): NamedAddress("main", AddressKind.OTHER),
            }
        )
    kept = b"".join(one.read_bytes() for one in (tmp_path / "a").glob("frames-*"))
    rows = pl.read_parquet(kept).rows()
    assert [row[2] for row in rows if row[0] == 5] == ["main"]
    assert TEXT not in [row[1] for row in rows]
    assert hex(TEXT + 9) not in [row[2] for row in rows]
    stacks = recording_file.read_stacks(tmp_path / "a")
    assert stacks is not None
    read = recording_file.read(tmp_path / "a")
    first, second, third, none = read.events["mm"].tolist()
    assert first == third != second
    assert none == 0
    assert MM not in (first, second)
    assert read.events.mms == {first: 5, second: 6}
    assert int(read.events["address"][3]) == first + 0x68
    assert read.events["address"][0] == written["address"][0]
    assert read.manifest.hashed_pointers


def test_a_full_disk_at_the_start_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        recording_file.Writer(tmp_path / "a.zaplock", recording_file.Manifest())
    assert list(tmp_path.iterdir()) == []
