"""What a recorder spools: decoded whole, in pieces, late or damaged; small while it records."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zaplock.errors import UserError
from zaplock.outputs import walk
from zaplock.recorder import decode_spool, session, spool
from zaplock.recorder.buffers import Buffers
from zaplock.recorder.exec_watch import ExecWatch
from zaplock.recorder.few_events import events_of, numbers_of
from zaplock.recorder.layouts import read_layouts
from zaplock.recorder.meanings import MMAP_LOCK
from zaplock.recorder.options import Options
from zaplock.recorder.pages import walk as walk_pages
from zaplock.recorder.session import decode_left, record_to
from zaplock.recorder.spool import EntryKind, SpoolReader, SpoolWriter
from zaplock.recorder.tracefs import Instance, opened
from zaplock.trace import recording_file
from zaplock.trace.events import EventKind

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root")
ME = os.getpid()


def spooled(path: Path, rounds: int = 3_000, **how: object) -> None:
    """Record ourselves mapping and unmapping, and let nobody decode it."""
    left = iter(range(20))

    def ended() -> bool:
        for _ in range(rounds // 20):
            mmap.mmap(-1, 4096).close()
        return next(left, None) is None

    options = Options(pids=(ME,), groups=("mmap_lock", "syscalls"), kernel_stacks=True)
    with pytest.raises(UserError, match=rf"waits for 'zaplock record --finish {path}'"):
        record_to(path, options, ended=ended, decoder="zaplock.no_such_module", **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of which everything waits to be decoded, in many pieces."""
    path = tmp_path_factory.mktemp("left") / "a.zaplock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "PIECE_BYTES", 16 << 10)
        spooled(path)
    assert len(list(path.glob("spool-0*.raw"))) > 5
    return path


@pytest.fixture
def copy(left: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(left, tmp_path / "a.zaplock"))


@pytest.mark.root
@needs_root
def test_what_nobody_decoded_is_decoded_later_as_if_nothing_had_been(copy: Path) -> None:
    before = recording_file.read(copy)
    assert len(before.events) == 0
    assert "is not decoded" in before.caveats[0]
    told = decode_left(copy)
    recording = recording_file.read(copy)
    assert recording.caveats == ()
    assert recording.manifest.complete
    assert told.events == len(recording.events) > 10_000
    assert told.lost_events == 0
    recording.events.check()
    assert not list(copy.glob("spool-*"))
    assert recording.events.tasks[ME].comm


@pytest.mark.root
@needs_root
def test_a_decoder_that_is_killed_again_and_again_loses_and_doubles_nothing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(copy, tmp_path / "whole.zaplock"))
    decode_left(whole)
    monkeypatch.setattr(decode_spool, "_BLOCK_EVENTS", 2_000)

    class Killed(BaseException):
        pass

    forget, kills = SpoolReader.forget, 0

    def forgotten(reader: SpoolReader) -> None:
        forget(reader)
        nonlocal kills
        kills += 1
        raise Killed

    monkeypatch.setattr(SpoolReader, "forget", forgotten)
    with contextlib.suppress(StopIteration):
        for _ in iter(lambda: kills, 100):
            try:
                decode_left(copy)
            except Killed:
                assert "is not decoded" in recording_file.read(copy).caveats[0]
            else:
                break
    assert kills > 3
    first, again = recording_file.read(whole), recording_file.read(copy)
    assert again.caveats == ()
    for name, column in first.events.columns.items():
        assert np.array_equal(column, again.events[name]), name
    assert again.events.tasks == first.events.tasks
    assert again.events.mms == first.events.mms


@pytest.mark.root
@needs_root
def test_what_was_cut_off_at_any_byte_is_complete_up_to_its_last_drain(copy: Path) -> None:
    draw = random.Random(7)
    pieces = sorted(copy.glob("spool-0*.raw"))
    for piece in pieces[len(pieces) // 2 + 1 :]:
        piece.unlink()
    last = pieces[len(pieces) // 2]
    os.truncate(last, draw.randrange(last.stat().st_size))
    decode_left(copy)
    recording = recording_file.read(copy)
    recording.events.check()
    assert "has no end" in recording.caveats[0]
    assert not (recording.events["kind"] == EventKind.LOST).any(), "an end is no loss"


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_spool_is_told_in_one_line_or_makes_a_recording(copy: Path, seed: int) -> None:
    draw = random.Random(seed)
    begin = copy / "spool-begin.raw"
    file = begin if seed % 2 else draw.choice(sorted(copy.glob("spool-0*.raw")))
    raw = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 5, 50])):
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    file.write_bytes(raw)
    said = ""
    try:
        decode_left(copy)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    with contextlib.suppress(UserError):
        recording_file.read(copy).events.check()


@pytest.mark.root
@needs_root
def test_a_spool_of_somebody_else_is_not_decoded(copy: Path) -> None:
    for one in (copy, copy / "spool-begin.raw"):
        os.chown(one, 65534, 65534)
        with pytest.raises(UserError, match="recorded by user 65534"):
            decode_left(copy)
        os.chown(one, 0, 0)


@pytest.mark.root
@needs_root
def test_hashed_pointers_are_the_same_before_and_behind_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zaplock"
    spooled(path, hash_pointers=True)
    monkeypatch.setattr(decode_spool, "_BLOCK_EVENTS", 2_000)
    forget, kills = SpoolReader.forget, [1]

    def forgotten(reader: SpoolReader) -> None:
        forget(reader)
        if kills:
            kills.pop()
            raise KeyboardInterrupt

    monkeypatch.setattr(SpoolReader, "forget", forgotten)
    with pytest.raises(KeyboardInterrupt):
        decode_left(path)
    decode_left(path)
    events = recording_file.read(path).events
    own = events["mm"][(events["tid"] == ME) & (events["kind"] == EventKind.RELEASED)]
    assert len(own) > 1_000
    assert len(np.unique(own)) == 1
    assert int(own[0]) >> 48 == 0xFFFF, "what is kept of a pointer"


@pytest.mark.root
@needs_root
def test_a_recorder_holds_little_under_a_storm_and_imports_no_numpy(tmp_path: Path) -> None:
    """Kernel and decoder apart: what a user has to spare on a machine in trouble."""
    path, storm = tmp_path / "a.zaplock", "import mmap\nwhile True: mmap.mmap(-1, 4096).close()"
    with subprocess.Popen([sys.executable, "-c", storm]) as target:
        command = [sys.executable, "-m", "zaplock", "record", "-p", str(target.pid), "-o", path]
        recorder = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while sum(one.stat().st_size for one in path.glob("spool-0*")) < 32 << 20:
                assert recorder.poll() is None
                time.sleep(0.05)
            status = Path(f"/proc/{recorder.pid}/status").read_text()
            maps = Path(f"/proc/{recorder.pid}/maps").read_text()
            children = Path(f"/proc/{recorder.pid}/task/{recorder.pid}/children").read_text()
            recorder.terminate()
            assert recorder.wait(250) == 0
        finally:
            recorder.kill()
            target.kill()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    assert int(peak[1]) < 40 << 10
    assert "numpy" not in maps
    assert children == "", "nobody decodes meanwhile"
    assert recording_file.read(path).manifest.complete


def test_entries_are_read_while_they_are_written(tmp_path: Path) -> None:
    with walk(tmp_path) as folder:
        writer = SpoolWriter(folder)
        reader, said = SpoolReader(folder), list[bytes]()

        def more() -> bool:
            """Write the next one when all that is there was read."""
            if len(said) < 3:
                writer.add(EntryKind.PAGES, b"page %d" % len(said), cpu=1)
                if len(said) == 1:
                    writer.drained(5)
            return len(said) < 3

        for entry in reader.entries(more):
            if entry.kind is EntryKind.PAGES:
                said.append(entry.content)
        assert said == [b"page 0", b"page 1", b"page 2"]
        with pytest.raises(UserError, match="is being recorded"), spool.left_behind(folder):
            pass
        writer.close()
        with spool.left_behind(folder):
            spool.remove(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.root
@needs_root
def test_few_events_are_read_as_many_are() -> None:
    """One after the other, or all pages at once: the same events at the same times."""
    with opened() as tracefs, Instance(tracefs, buffer_kb=1024) as instance:
        layouts = read_layouts(tracefs.path, MMAP_LOCK)
        buffers = Buffers([instance], layouts.page.page_size)
        for event in MMAP_LOCK:
            instance.enable(event)
        instance.start()
        for pause_s in (0, 0, 0.3):  # an event after a pause has a time of its own
            for _ in range(200):
                mmap.mmap(-1, 4096).close()
            time.sleep(pause_s)
        instance.stop()
        pages = b"".join(chunk for _, chunk in buffers.drain())
        buffers.close()
    found = walk_pages(np.frombuffer(pages, np.uint8), layouts.page)
    many = list(zip(found.offset.tolist(), found.time_ns.tolist()))
    assert list(events_of(pages, layouts.page)) == many
    assert len(many) > 1_000
    assert len({mm for mm, _ in numbers_of(pages, layouts, "mm")}) >= 1


def test_an_exec_is_noticed_and_an_end_is_none() -> None:
    program = "read x; exec sh -c 'read y'"
    with subprocess.Popen(["sh", "-c", program], stdin=subprocess.PIPE) as process:
        assert process.stdin
        watch = ExecWatch([process.pid])
        try:
            assert watch.changed() == set()
            process.stdin.write(b"\n")
            process.stdin.flush()
            end = time.monotonic() + 250
            while watch.changed() != {process.pid} and time.monotonic() < end:
                time.sleep(0.01)
            watch.again(process.pid)
            assert watch.changed() == set()
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.wait()
            assert watch.changed() == set()
        finally:
            watch.close()


class Storm:
    """Ends a recording when it has mapped and unmapped for so many turns."""

    def __init__(self, turns: int) -> None:
        self._left = turns

    def __call__(self) -> bool:
        for _ in range(500):
            mmap.mmap(-1, 4096).close()
        self._left -= 1
        return self._left < 0


@pytest.mark.root
@needs_root
def test_a_large_spool_is_decoded_beside_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "BESIDE_BYTES", 1 << 18)
    monkeypatch.setattr(session, "_LOOK_NS", 10_000_000)
    path, storm, seen = tmp_path / "a.zaplock", Storm(40), list[bool]()
    deadline = time.monotonic() + 200

    def ended() -> bool:
        """Go on until a block was written beside, however late that is."""
        over = storm()
        seen.append(bool(list(path.glob("events-*.parquet"))))
        if over and not seen[-1]:
            time.sleep(0.1)
        return over and (seen[-1] or time.monotonic() > deadline)

    options = Options(pids=(ME,), groups=("mmap_lock", "syscalls"))
    progress = record_to(path, options, ended=ended)
    assert seen[-1], "nothing was decoded while it was recorded"
    recording = recording_file.read(path)
    assert recording.caveats == ()
    assert (progress.lost_events, progress.events) == (0, len(recording.events))
    own = recording.events["tid"] == ME
    for kind in (EventKind.ACQUIRED, EventKind.RELEASED):
        assert (own & (recording.events["kind"] == kind)).sum() > 500 * len(seen)
    assert not list(path.glob("spool-*"))


@pytest.mark.root
@needs_root
def test_beyond_its_limit_a_spool_takes_nothing_and_the_loss_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SPOOL_BYTES", 1 << 17)
    monkeypatch.setattr(session, "_LOOK_NS", 10_000_000)
    options = Options(pids=(ME,), groups=("mmap_lock", "syscalls"), buffer_kb=64)
    progress = record_to(tmp_path / "a.zaplock", options, ended=Storm(40))
    recording = recording_file.read(tmp_path / "a.zaplock")
    assert progress.lost_events == recording.manifest.lost_events > 0
    assert (recording.events["kind"] == EventKind.LOST).any()
