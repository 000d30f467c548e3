"""Whatever a file has in it: one line, no traceback, no long wait, and damage is not believed.

Each fuzzer takes something good and mutates it. `make test` runs a few hundred of each, always the
same; `make fuzz` runs as many as ZAPLOCK_FUZZ says, others each time.
"""

from __future__ import annotations

import functools
import gzip
import io
import random
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
import scenes
from fuzzing import (
    HERE,
    RUNS,
    good_recording,
    good_scenarios,
    mutated,
    mutations,
    recording_with,
    times,
    well_behaved,
    written,
)
from hypothesis import given
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
from zaplock.engines.checking.exhaustive import SearchLimits
from zaplock.errors import UserError
from zaplock.lab import profiles
from zaplock.measure.guest import capsule, recording
from zaplock.oracle import corpus
from zaplock.outputs import walk
from zaplock.programs import parser as strace
from zaplock.programs.replay import StraceReplay
from zaplock.recorder import symbols
from zaplock.trace import foreign, recording_file, tables
from zaplock.trace.analysis import analyse
from zaplock.trace.events import EVENT
from zaplock.trace.summary import summarise
from zaplock.views.report_json import report_json


def understood(path: Path) -> None:
    """Read a recording and work out everything that a report tells."""
    found = recording_file.read(path)
    found.events.check()
    about = found.manifest
    span = (about.started_ns, about.ended_ns) if about.ended_ns else None
    analysis = analyse(found.events, about.kernel, span=span, caveats=found.caveats)
    report_json(analysis, top=3)
    summarise(analysis, explain=20)


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
        found = recording_file.read(path)
        assert same or name == "manifest.json" or found.caveats, "damage was believed"
        understood(path)


def test_no_bit_of_an_event_block_can_flip_unnoticed() -> None:
    """Over the whole block, its ends and the length of its footer among the rest."""
    files = dict(good_recording())
    [name] = [one for one in files if one.startswith("events")]
    chosen, whole = random.Random(RUNS), files[name]
    for _ in range(RUNS or 100):
        damaged = bytearray(whole)
        damaged[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        path = recording_with({**files, name: bytes(damaged)})
        with pytest.raises(UserError, match="is not what was written"):
            recording_file.read(path)


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
        packed = io.BytesIO()
        frame.write_parquet(packed)
        tables.put(where, "events", 0, packed.getvalue())
    with well_behaved():
        understood(path)


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
        StraceReplay(strace.parse(written("strace.txt", mutated(raw, changes)))).play()


# ---- traces of other tools


TRACES = ("ftrace-6.18.txt", "perf-script-6.18.txt", "trace-cmd-format.txt")


@functools.cache
def good_traces() -> list[bytes]:
    """Some lines of each, and all of it packed."""
    texts = [(HERE / "fixtures/recorder" / name).read_bytes()[:8_000] for name in TRACES]
    return [*texts, gzip.compress(texts[0], mtime=0)]


@times(150)
@given(st.integers(0, 3), mutations())
def test_a_text_trace(which: int, changes: list[tuple[int, float, float, int]]) -> None:
    path = written("trace.txt", mutated(good_traces()[which], changes))
    with well_behaved():
        imported(path)


def imported(path: Path) -> None:
    """Import a trace: what comes of it can be written and read again."""
    events = foreign.read_foreign(str(path)).events
    events.check()
    target = recording_with({})
    target.rmdir()
    recording_file.write(target, events, recording_file.Manifest(source="import"))
    caveats = " ".join(recording_file.read(target).caveats)
    assert "missing" not in caveats
    assert "no end" not in caveats


@functools.cache
def good_perfetto() -> bytes:
    pb = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = pb.Trace()
    thread = trace.packet.add().process_tree.threads.add()
    thread.tid, thread.tgid, thread.name = 11, 10, "mapper"
    bundle = trace.packet.add().ftrace_events
    bundle.cpu, bundle.lost_events = 3, True
    for number, name in enumerate(("start_locking", "acquire_returned", "released")):
        event = bundle.event.add()
        event.timestamp, event.pid = 1000 * number, 11
        event.generic.event_name = f"mmap_lock_{name}"
        for key, value in {"mm": 1 << 40, "write": 1, "success": 1}.items():
            field = event.generic.field.add()
            field.name, field.uint_value = key, value
    bundle.compact_sched.switch_timestamp.extend([1, 2, 3])
    bundle.compact_sched.switch_prev_state.extend([0, 1, 0])
    bundle.compact_sched.switch_next_pid.extend([11, 12, 11])
    return bytes(trace.SerializeToString())


@times(200)
@given(mutations())
def test_a_trace_of_perfetto(changes: list[tuple[int, float, float, int]]) -> None:
    path = written("trace.pftrace", mutated(good_perfetto(), changes))
    with well_behaved():
        imported(path)


# ---- what a recorded process has in its files


@functools.cache
def good_program() -> bytes:
    """A small ELF file with symbols: a library of Python's own."""
    import _ctypes

    return Path(_ctypes.__file__).read_bytes()


@times(100)
@given(mutations(), st.booleans())
def test_an_elf_file(changes: list[tuple[int, float, float, int]], in_head: bool) -> None:
    good = good_program()
    head = 64 if in_head else len(good)
    path = written("program", mutated(good[:head], changes) + good[head:])
    with well_behaved(), path.open("rb") as program:
        found = symbols.read_elf(program.fileno())
        for offset in (0, 1, 0x1000, 0x4000, len(good), 1 << 62, (1 << 64) - 1):
            symbols.readable(found.find(offset) or "")


@times(100)
@given(mutations())
def test_a_perf_map(changes: list[tuple[int, float, float, int]]) -> None:
    good = b"".join(b"%x %x py::f%d:/x.py\n" % (4096 * at, 100, at) for at in range(1, 40))
    path = written("perf.map", mutated(good, changes))
    with well_behaved(), path.open("rb") as runtime:
        found = symbols.read_perf_map(runtime.fileno())
        for address in (0, 4096, 8200, 1 << 63, (1 << 64) - 1):
            assert symbols.readable(found.find(address) or "").isprintable()


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


def test_what_is_shipped_is_within_the_bounds() -> None:
    for scenario in shipped_scenarios().values():
        bounded(scenario)
