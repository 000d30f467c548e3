"""Every view says where the holder and the waiter were."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chromium import opened
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
from scenes import MS, database

from zaplock.cli import main
from zaplock.trace import recording_file
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import (
    KERNEL,
    AddressKind,
    NamedAddress,
    StackRow,
    in_order,
    program_stack,
)
from zaplock.trace.summary import summarise
from zaplock.views.html import write_html
from zaplock.views.live import why_json, why_lines
from zaplock.views.pprof import message_class
from zaplock.views.report_json import report_json
from zaplock.views.stacks import ROOTS, folded

DB, FREER, ALLOCATOR, PS = 100, 101, 102, 200
ENTRY, ZAP, QUEUE = 0xFFFFFFFF81000001, 0xFFFFFFFF81000002, 0xFFFFFFFF81000003
MAIN, PURGE, GROW, STUB = 0x401000, 0x401100, 0x401200, 0x7F0000001000
NAMES = {
    (KERNEL, ENTRY): NamedAddress("entry_SYSCALL_64_after_hwframe"),
    (KERNEL, ZAP): NamedAddress("zap_pte_range"),
    (KERNEL, QUEUE): NamedAddress("rwsem_down_write_slowpath"),
    (DB, STUB): NamedAddress("munmap (libc.so.6)", AddressKind.AFTER_SYSCALL),
    (DB, MAIN): NamedAddress("main (db)", AddressKind.AFTER_CALL),
    (DB, PURGE): NamedAddress("cache::purge<int>() (db)", AddressKind.AFTER_CALL),
    (DB, GROW): NamedAddress("grow; or not (db)", AddressKind.AFTER_CALL),
}
ROWS = [
    StackRow(1_900, DB, FREER, StackReason.LOCKED, (), (STUB, MAIN), PURGE),
    StackRow(50 * MS, DB, FREER, StackReason.SAMPLED, (ENTRY,), ()),
    StackRow(60 * MS, DB, FREER, StackReason.SAMPLED, (ZAP, ENTRY), ()),
    StackRow(61 * MS, DB, FREER, StackReason.SAMPLED, (ZAP, ENTRY), ()),
    StackRow(1 * MS + 900, DB, ALLOCATOR, StackReason.QUEUED, (QUEUE, ENTRY), (GROW, MAIN), MAIN),
    StackRow(400 * MS, PS, PS, StackReason.SAMPLED, (ZAP,), ()),
]


def recorded(path: Path) -> Path:
    """The database's recording with the stacks of whoever holds and waits."""
    events = database()
    with recording_file.Writer(
        path, recording_file.Manifest(operations=events.operations)
    ) as writer:
        writer.append(events.columns)
        writer.append_stacks(ROWS)
        writer.name(events.tasks, events.mms)
        writer.name_frames(NAMES)
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return recorded(tmp_path / "db.zaplock")


@pytest.fixture
def analysis(recording: Path) -> Analysis:
    return analyse(
        recording_file.read(recording).events, "6.18", stacks=recording_file.read_stacks(recording)
    )


def test_a_hold_has_the_commonest_sample_of_its_time_and_the_stack_it_was_taken_with(
    analysis: Analysis,
) -> None:
    shared = next(row for row in range(len(analysis.holds)) if analysis.holds["tid"][row] == FREER
                  and not analysis.holds["exclusive"][row])  # fmt: skip
    stack = analysis.hold_stack(shared)
    assert stack.kernel == ("zap_pte_range", "entry_SYSCALL_64_after_hwframe")
    exclusive = next(row for row in range(len(analysis.holds)) if analysis.holds["exclusive"][row])
    taken = analysis.hold_stack(exclusive)
    assert taken.user == ("munmap (libc.so.6)", "cache::purge<int>() (db)", "main (db)")


def test_a_stack_outside_of_a_hold_or_a_wait_tells_nothing_of_it(analysis: Analysis) -> None:
    waits = [row for row in range(len(analysis.waits)) if analysis.waits["tid"][row] == PS]
    assert waits
    assert not any(analysis.wait_stack(row) for row in waits)


def test_report_and_why_say_both_stacks(
    recording: Path, analysis: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(recording)]) == 0
    said = capsys.readouterr().out
    why = "\n".join(why_lines(summarise(analysis), seconds=1))
    for text in (said, why):
        assert "the waiter was in grow; or not (db) < main (db); in the kernel: rwsem_down" in text
        assert "db-free was in the kernel: zap" in text
        assert "in the kernel: zap_pte_range" in text
        assert "entry_SYSCALL" not in text


def test_the_json_has_each_stack_innermost_first_or_none(analysis: Analysis) -> None:
    told = report_json(analysis, top=10)
    wait = next(wait for wait in told["waits"] if wait["tid"] == ALLOCATOR)
    assert wait["stack"]["user"] == ["grow; or not (db)", "main (db)"]
    assert wait["blame"][0]["stack"]["kernel"][0] == "zap_pte_range"
    assert "stack" not in next(wait for wait in told["waits"] if wait["tid"] == PS)
    json.dumps(why_json(analysis))


def test_folded_text_has_a_line_for_each_stack_and_adds_up(analysis: Analysis) -> None:
    summary = summarise(analysis)
    lines = [line.rpartition(" ") for line in folded(summary)]
    sums = {path: int(value) for path, _, value in lines}
    assert all(path.count(";") >= 3 for path in sums)
    victim = next(path for path in sums if path.startswith("waited;db;db-alloc"))
    assert victim == "waited;db;db-alloc;main (db);grow: or not (db);" + (
        "rwsem_down_write_slowpath_[k]"
    )
    waited = sum(value for path, value in sums.items() if path.startswith("waited;"))
    assert waited == summary.waited_ns
    blamed = sum(value for path, value in sums.items() if path.startswith("made others wait;"))
    assert blamed == sum(b.share_ns for found in summary.explained for b in found.blame)


def test_a_pprof_profile_has_the_same_sums_and_go_reads_it(
    recording: Path, analysis: Analysis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pb.gz"
    assert main(["report", str(recording), "--pprof", str(path)]) == 0
    assert f"next: go tool pprof -top {path}" in capsys.readouterr().out
    profile = message_class().FromString(gzip.decompress(path.read_bytes()))
    texts = list(profile.string_table)
    kinds = [texts[one.type] for one in profile.sample_type]
    assert kinds == ["made_others_wait", "waited", "held_exclusively", "held_shared"]
    sums = [sum(sample.value[place] for sample in profile.sample) for place in range(4)]
    folds = dict.fromkeys(ROOTS, 0)
    for line in folded(summarise(analysis)):
        folds[line.partition(";")[0]] += int(line.rpartition(" ")[2])
    assert sums == list(folds.values())
    functions = {one.id: one for one in profile.function}
    names = {one.id: texts[functions[one.line[0].function_id].name] for one in profile.location}
    stacks = [[names[number] for number in sample.location_id] for sample in profile.sample]
    assert ["rwsem_down_write_slowpath", "grow; or not", "main"] in stacks
    files = {texts[one.name]: texts[one.filename] for one in profile.function}
    assert (files["munmap"], files["zap_pte_range"]) == ("libc.so.6", "[kernel]")
    if go := shutil.which("go"):
        command = [go, "tool", "pprof", "-raw", "-symbolize=none", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "waited/nanoseconds" in said
        assert "rwsem_down_write_slowpath" in said


def test_perfetto_has_each_stack_as_a_sample_of_its_reason(recording: Path, tmp_path: Path) -> None:
    assert main(["report", str(recording), "--perfetto", str(tmp_path / "x.pftrace")]) == 0
    trace = Trace.FromString((tmp_path / "x.pftrace").read_bytes())
    told: dict[int, dict[str, dict[int, Any]]] = {}
    found = []
    for packet in trace.packet:
        if not packet.HasField("perf_sample"):
            continue
        sequence = packet.trusted_packet_sequence_id
        if packet.sequence_flags & 1:
            told[sequence] = {"functions": {}, "frames": {}, "callstacks": {}}
        new, known = packet.interned_data, told[sequence]
        known["functions"] |= {one.iid: one.str.decode() for one in new.function_names}
        known["frames"] |= {one.iid: one.function_name_id for one in new.frames}
        known["callstacks"] |= {one.iid: one.frame_ids for one in new.callstacks}
        frames = known["callstacks"][packet.perf_sample.callstack_iid]
        stack = [known["functions"][known["frames"][number]] for number in frames]
        found.append((packet.timestamp, packet.perf_sample.tid, stack))
    assert len(told) == 3  # got it, sampled, queued
    assert len(found) == len(ROWS)
    assert (61 * MS, FREER, ["zap_pte_range"]) in found
    assert (1_900, FREER, ["main", "cache::purge<int>()", "munmap"]) in found


def test_the_tables_have_the_stacks_as_columns(recording: Path, tmp_path: Path) -> None:
    assert main(["report", str(recording), "--parquet", str(tmp_path / "out")]) == 0
    waits = pl.read_parquet(tmp_path / "out" / "waits.parquet")
    said = waits.filter(pl.col("tid") == ALLOCATOR)["user_stack"].to_list()
    assert "main (db);grow; or not (db)" in said
    assert pl.read_parquet(tmp_path / "out" / "holds.parquet")["kernel_stack"].dtype == pl.String


def test_perfetto_has_them_as_arguments_of_the_slices(recording: Path, tmp_path: Path) -> None:
    assert main(["report", str(recording), "--perfetto", str(tmp_path / "x.pftrace")]) == 0
    trace = Trace.FromString((tmp_path / "x.pftrace").read_bytes())
    notes = {
        (packet.track_event.name, note.name, note.string_value)
        for packet in trace.packet
        for note in packet.track_event.debug_annotations
    }
    wanted = "zap_pte_range < entry_SYSCALL_64_after_hwframe"
    assert ("hold shared", "kernel stack", wanted) in notes
    assert ("wait exclusive", "user stack", "grow; or not (db) < main (db)") in notes


def test_the_page_tells_both_stacks_and_finds_a_function(
    analysis: Analysis, tmp_path: Path
) -> None:
    page = write_html(summarise(analysis), tmp_path / "page.html")

    async def look() -> tuple[str, str]:
        async with opened(page) as shown:
            await shown.click("#waits tr.row:nth-child(1)")
            story = await shown.ask("document.getElementById('story').textContent")
            await shown.ask("zaplock.search('zap_pte')")
            found = await shown.ask("document.getElementById('holds-count').textContent")
            assert shown.errors == []
            return story, found

    story, found = asyncio.run(look())
    assert "its stack, innermost function first" in story
    assert "grow; or not (db)" in story
    assert "zap_pte_range (kernel)" in story
    assert "the stack of db-free" in story
    assert found.startswith("1 match")


@pytest.mark.parametrize("option", ["--folded", "--pprof"])
def test_without_stacks_a_file_of_stacks_is_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording_file.write(tmp_path / "plain.zaplock", database())
    command = ["report", str(tmp_path / "plain.zaplock"), option, str(tmp_path / "x")]
    assert main(command) == 2
    assert "no stacks" in capsys.readouterr().err


def test_a_recording_of_the_first_version_still_has_its_user_stacks(tmp_path: Path) -> None:
    path = recorded(tmp_path / "old.zaplock")
    for block in path.glob("stacks-*.parquet"):
        block.unlink()
    frames = {f"frame{place}": [0] for place in range(8)} | {"frame0": [PURGE], "frame1": [MAIN]}
    schema = {"time_ns": pl.Int64, "tid": pl.Int32, **dict.fromkeys(frames, pl.UInt64)}
    table = pl.DataFrame({"time_ns": [1_900], "tid": [FREER], **frames}, schema)
    table.write_parquet(path / "stacks-000001.parquet")
    stacks = recording_file.read_stacks(path)
    assert stacks is not None
    assert stacks.of_hold(FREER, DB, 1_500, 5_000).user == ("cache::purge<int>() (db)", "main (db)")


def test_a_hold_that_was_never_sampled_shows_where_it_had_to_leave_its_cpu() -> None:
    rows = [
        StackRow(50 * MS, DB, FREER, StackReason.READY, (ZAP, ENTRY), ()),
        StackRow(400 * MS, DB, FREER, StackReason.READY, (QUEUE,), ()),
    ]
    assert in_order(rows, NAMES).of_hold(FREER, DB, 0, 100 * MS).kernel[0] == "zap_pte_range"
    rows += [StackRow(60 * MS, DB, FREER, StackReason.SAMPLED, (ENTRY,), ())]
    sampled = in_order(rows, NAMES).of_hold(FREER, DB, 0, 100 * MS)
    assert sampled.kernel == ("entry_SYSCALL_64_after_hwframe",), "a sample tells more"


def test_equal_chains_are_kept_once() -> None:
    rows = [
        StackRow(3, 7, 7, 0, (1,), ()),
        StackRow(1, 7, 7, 0, (1,), ()),
        StackRow(2, 7, 7, 0, (), (2,)),
    ]
    stacks = in_order(rows, {})
    assert len(stacks.chains) == 2
    assert stacks.time_ns.tolist() == [1, 2, 3]


def test_the_caller_of_a_stub_is_put_in_only_where_it_is_one() -> None:
    assert program_stack((STUB, MAIN), DB, PURGE, NAMES) == (STUB, PURGE, MAIN)
    assert program_stack((STUB, PURGE), DB, PURGE, NAMES) == (STUB, PURGE)
    assert program_stack((MAIN,), DB, PURGE, NAMES) == (MAIN,), "not in a system call's stub"
    assert program_stack((STUB, MAIN), DB, 0x1234, NAMES) == (STUB, MAIN), "no address after a call"
    assert program_stack((STUB, MAIN), PS, PURGE, NAMES) == (STUB, MAIN), "another process"


def test_a_stack_ends_where_the_process_has_no_code() -> None:
    names = {**NAMES, (DB, 0x1234): NamedAddress("0x1234", AddressKind.NOWHERE)}
    assert program_stack((STUB, 0x1234, MAIN), DB, PURGE, names) == (STUB, PURGE)
    assert program_stack((0x1234,), DB, 0, names) == ()
