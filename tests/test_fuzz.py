"""Whatever a file has in it: one line, no traceback, no long wait, and damage is not believed.

Each fuzzer takes something good and mutates it. `make test` runs a few hundred of each, always the
same; `make fuzz` runs as many as ZAPLOCK_FUZZ says, others each time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
import scenes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zaplock.check.operations import KINDS
from zaplock.check.scenarios import (
    InitialMapping,
    Kind,
    Scenario,
    TaskSpec,
    read_scenario,
    shipped_scenarios,
)
from zaplock.check.scenarios import check as bounded
from zaplock.check.tokens import read_token
from zaplock.check.verdicts import check, find_design
from zaplock.cli import main
from zaplock.engines.checking.exhaustive import SearchLimits
from zaplock.errors import UserError
from zaplock.lab import profiles
from zaplock.measure.guest import capsule, recording
from zaplock.oracle import corpus
from zaplock.outputs import walk
from zaplock.programs import recording as strace
from zaplock.trace import file, tables
from zaplock.trace.analysis import analyse
from zaplock.trace.events import EVENT
from zaplock.trace.summary import summarise
from zaplock.views.report_json import report_json

RUNS = int(os.environ.get("ZAPLOCK_FUZZ", "0"))
LONGEST_S = 5.0
HERE = Path(__file__).parent
WORDS = (
    *(b"0", b"-1", b"1e999", b"99999999999999999999", b"18446744073709551616", b"nan", b"\x00"),
    *(b"\xff\xfe", b"[" * 300, b"{" * 300, b'"', b"'", b"\n", b"=", b"0x", b"<<", b"\x1b[2J"),
)

fuzz = functools.partial(
    settings,
    deadline=None,
    derandomize=not RUNS,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def times(count: int) -> settings:
    return fuzz(max_examples=RUNS or count)


def mutations() -> st.SearchStrategy[list[tuple[int, float, float, int]]]:
    """A few changes: what is done, where, over what length, and with what."""
    at = st.floats(0, 1, exclude_max=True)
    one = st.tuples(st.integers(0, 5), at, at, st.integers(0, 255))
    return st.lists(one, min_size=1, max_size=4)


def mutated(content: bytes, changes: list[tuple[int, float, float, int]]) -> bytes:
    raw = bytearray(content)
    for kind, where, length, value in changes:
        at = int(where * len(raw))
        span = int(length * min(64, len(raw) - at)) + 1
        if kind == 0 and raw:
            raw[at] ^= 1 << (value % 8)
        elif kind == 1:
            del raw[at : at + span]
        elif kind == 2:
            raw[at:at] = raw[at : at + span] * (1 + value % 3)
        elif kind == 3:
            raw[at : at + span % 4] = WORDS[value % len(WORDS)]
        elif kind == 4:
            raw[at : at + span] = bytes([value]) * span
        else:
            del raw[at:]
    return bytes(raw)


@contextlib.contextmanager
def well_behaved() -> Iterator[None]:
    """Only UserError, of one line, and soon."""
    began, told = time.thread_time(), ""
    try:
        yield
    except UserError as error:
        told = str(error)
    assert "\n" not in told
    assert time.thread_time() - began < LONGEST_S, "that took too long"


@functools.cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="zaplock-fuzz-"))
    import atexit

    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def written(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


def understood(path: Path) -> None:
    """Read a recording and work out everything that a report tells."""
    found = file.read(path)
    found.events.check()
    about = found.manifest
    span = (about.started_ns, about.ended_ns) if about.ended_ns else None
    analysis = analyse(found.events, about.kernel, span=span, caveats=found.caveats)
    report_json(analysis, top=3)
    summarise(analysis, explain=20)


@functools.cache
def good_recording() -> dict[str, bytes]:
    path = folder() / "good.zaplock"
    file.write(path, scenes.database(), file.Manifest(source="simulation", kernel="6.18.44"))
    return {one.name: one.read_bytes() for one in sorted(path.iterdir())}


def recording_with(files: dict[str, bytes]) -> Path:
    path = folder() / "bad.zaplock"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@times(200)
@given(st.integers(0, 3), mutations())
def test_a_damaged_recording(which: int, changes: list[tuple[int, float, float, int]]) -> None:
    files = dict(good_recording())
    name = sorted(files)[which % len(files)]
    changed = mutated(files[name], changes)
    same = changed == files[name]
    files[name] = changed
    path = recording_with(files)
    with well_behaved():
        found = file.read(path)
        assert same or name == "manifest.json" or found.caveats, "damage was believed"
        understood(path)


@times(120)
@given(st.integers(0, 3), mutations())
def test_a_damaged_recording_of_version_1(
    which: int, changes: list[tuple[int, float, float, int]]
) -> None:
    """Without sums, damage may be believed; but it breaks nothing."""
    files = {}
    for name, content in good_recording().items():
        kind, _, rest = name.partition("-")
        plain = {"events": "events-000000.parquet"}.get(kind, f"{kind}.parquet") if rest else name
        files[plain] = content
    files["manifest.json"] = (
        b'{"format": "zaplock recording", "version": 1, "kernel": "6.1", "complete": true, '
        b'"operations": ["munmap", "mmap"], "started_ns": 0, "ended_ns": 200000000}'
    )
    name = sorted(files)[which % len(files)]
    files[name] = mutated(files[name], changes)
    path = recording_with(files)
    with well_behaved():
        understood(path)


def numbers(dtype: np.dtype) -> st.SearchStrategy[int]:  # type: ignore[type-arg]
    info = np.iinfo(dtype)
    small = st.integers(max(-2, int(info.min)), 14)
    return small | st.integers(int(info.min), int(info.max))


@times(150)
@given(st.data())
def test_a_recording_of_numbers_that_no_kernel_writes(data: st.DataObject) -> None:
    events = scenes.database()
    columns = {name: events[name].copy() for name in EVENT.names or ()}
    count = len(events)
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(sorted(columns)))
        row = data.draw(st.integers(0, count - 1))
        columns[name][row] = data.draw(numbers(columns[name].dtype))
    frame = pl.DataFrame(columns)
    if data.draw(st.booleans()):
        victim = data.draw(st.sampled_from(frame.columns))
        kind = data.draw(st.sampled_from([pl.Float64, pl.String, pl.Int64, pl.Int8, pl.UInt64]))
        frame = frame.with_columns(frame[victim].cast(pl.String).cast(kind, strict=False))
    files = {k: v for k, v in good_recording().items() if not k.startswith("events")}
    path = recording_with(files)
    with walk(path) as where:
        tables.put(where, "events", 0, frame)
    with well_behaved():
        understood(path)


@functools.cache
def good_scenarios() -> list[bytes]:
    source = HERE.parent / "src/zaplock/check/scenario_files"
    return [one.read_bytes() for one in sorted(source.glob("*.toml"))]


SOON = SearchLimits(states=300, seconds=1.0)


@times(120)
@given(st.integers(0, 1 << 20), mutations())
def test_a_scenario(which: int, changes: list[tuple[int, float, float, int]]) -> None:
    good = good_scenarios()
    path = written("scenario.toml", mutated(good[which % len(good)], changes))
    with well_behaved():
        check(read_scenario(path), find_design("linux-6.18"), SOON)


@st.composite
def operations(draw: st.DrawFn) -> str:
    number = st.integers(-2, 20) | st.sampled_from([64, 512, 1023, 1 << 14, 1 << 15, 1 << 64])
    name = draw(st.sampled_from(sorted(KINDS)))
    return " ".join([name, *(str(draw(number)) for _ in KINDS[name].arguments)])


@st.composite
def mappings(draw: st.DrawFn) -> InitialMapping:
    page = st.integers(0, 24) | st.sampled_from([64, 511, 512, 1024, -1, 1 << 40])
    first, last = sorted((draw(page), draw(page)))
    low, high = sorted((draw(page), draw(page)))
    return InitialMapping(
        (first, last),
        draw(st.sampled_from(get_args(Kind))),
        draw(st.sampled_from(["r", "rw", "none"])),
        draw(st.sampled_from([None, (first, last), (low, high)])),
        draw(st.booleans()),
        draw(st.integers(0, 3)),
        draw(st.integers(0, 3)),
    )


def tasks() -> st.SearchStrategy[TaskSpec]:
    return st.builds(
        TaskSpec,
        st.lists(operations(), max_size=3).map(tuple),
        mm=st.integers(0, 3),
        killed=st.booleans(),
        cached=st.lists(st.integers(0, 30), max_size=2).map(tuple),
    )


def scenarios() -> st.SearchStrategy[Scenario]:
    return st.builds(
        Scenario,
        st.just("x"),
        st.lists(tasks(), max_size=3).map(tuple),
        st.lists(mappings(), max_size=3).map(tuple),
        st.just("x"),
        fair=st.booleans(),
        grain=st.integers(0, 3),
        max_map_count=st.integers(0, 70),
        batch=st.integers(0, 3),
        cmdline=st.none() | st.integers(0, 30),
        brk=st.none() | st.integers(0, 30),
    )


@times(150)
@given(scenarios())
def test_a_scenario_of_any_numbers(scenario: Scenario) -> None:
    with well_behaved():
        bounded(scenario)
        check(scenario, find_design("linux-6.18"), SOON)


@times(150)
@given(mutations())
def test_a_profile(changes: list[tuple[int, float, float, int]]) -> None:
    good = profiles.find(profiles.DEFAULT).read_bytes()
    path = written("profile.toml", mutated(good, changes))
    with well_behaved():
        profiles.load(path)


@times(200)
@given(st.integers(0, 1 << 20), mutations())
def test_a_sequence_of_the_corpus(which: int, changes: list[tuple[int, float, float, int]]) -> None:
    good = sorted((HERE / "corpus").glob("*.json"))
    path = written("sequence.json", mutated(good[which % len(good)].read_bytes(), changes))
    with well_behaved():
        corpus.load(path)


@times(60)
@given(st.integers(0, 1 << 20), mutations())
def test_a_recording_of_strace(which: int, changes: list[tuple[int, float, float, int]]) -> None:
    good = [one for one in sorted((HERE / "fixtures/strace").iterdir()) if one.suffix == ".strace"]
    raw = good[which % len(good)].read_bytes()[:20_000]
    with well_behaved():
        strace.parse(written("strace.txt", mutated(raw, changes)))


@times(200)
@given(st.text(max_size=60) | st.builds("{}@{}~{}".format, *[st.text(max_size=12)] * 3))
def test_a_token(text: str) -> None:
    with well_behaved():
        read_token(text)


# ---- what a guest hands over


FACTS = b"release=6.1.0\nversion=#1\nnr_cpus=2\ntarget_pid=7\nbegin_ns=10\nend_ns=20\ncpu_ns=5\n"
LAYOUTS = HERE / "fixtures" / "format-6.18" / "events"


@functools.cache
def good_capsule() -> bytes:
    records = {"facts": FACTS, "tasks": b"7 7 zap\n", "kernel_log": b"x\n"}
    records["lane/fault/7/8"] = struct.pack("<4q", 1, 2, 3, 4)
    records["pages/cpu0"] = bytes(range(256)) * 32
    for one in sorted(LAYOUTS.rglob("*")):
        if one.is_file():
            records[f"events/{one.relative_to(LAYOUTS)}"] = one.read_bytes()
    body = io.BytesIO()
    for name, content in records.items():
        body.write(struct.pack("<IIQ", len(name), 0, len(content)))
        for part in (name.encode(), content):
            body.write(part + bytes(-len(part) % 8))
    whole = body.getvalue()
    return struct.pack("<8sQQQ", b"ZAPCAPS1", 32 + len(whole), 3, 0) + whole


def handed_over(raw: bytes) -> None:
    path = written("capsule", raw)
    found = capsule.read(path)
    if found is not None:
        assert found.lanes is not None
        recording.events(found)


@times(200)
@given(mutations())
def test_a_capsule(changes: list[tuple[int, float, float, int]]) -> None:
    with well_behaved():
        handed_over(mutated(good_capsule(), changes))


@times(60)
@given(st.integers(0, 1 << 62), st.integers(0, 8192))
def test_pages_of_a_hostile_kernel(seed: int, committed: int) -> None:
    pages = bytearray(np.random.default_rng(seed).bytes(8192))
    pages[8:16] = pages[4104:4112] = struct.pack("<Q", committed)  # the sizes of both pages
    with well_behaved():
        handed_over(good_capsule().replace(bytes(range(256)) * 32, bytes(pages)))


@pytest.mark.parametrize(
    "name", ["events/../../../../tmp/x", "/etc/x", "lane/a/b/c", "pages/cpu", "é"]
)
def test_a_record_whose_name_leads_somewhere_is_refused(name: str, tmp_path: Path) -> None:
    record = struct.pack("<IIQ", len(name.encode()), 0, 0) + name.encode()
    record += bytes(-len(record) % 8)
    header = struct.pack("<8sQQQ", b"ZAPCAPS1", 32 + len(record), 3, 0)
    (tmp_path / "capsule").write_bytes(header + record)
    with pytest.raises(UserError, match="the guest handed over what can't be read"):
        capsule.read(tmp_path / "capsule")


# ---- through the command line


@times(40)
@given(st.integers(0, 3), mutations())
def test_the_verbs(which: int, changes: list[tuple[int, float, float, int]]) -> None:
    files = dict(good_recording())
    names = [name for name in sorted(files) if name != "manifest.json"]
    files[names[which % len(names)]] = mutated(files[names[which % len(names)]], changes)
    path = recording_with(files)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["report", str(path)]) in (0, 2)
        bad = written("scenario.toml", mutated(good_scenarios()[which], changes))
        arguments = ["--design", "linux-6.18", "--max-seconds", "1", "--max-states", "200"]
        assert main(["check", str(bad), *arguments]) in (0, 1, 2, 3, 4)
    assert "Traceback" not in err.getvalue()


def test_what_is_shipped_is_within_the_bounds() -> None:
    for scenario in shipped_scenarios().values():
        bounded(scenario)
