"""Whatever form another tool's trace has: it is read, or named as what it is in one line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.system_calls import BY_NUMBER, TRACED, TRACED_NAMES
from zaplock.trace import foreign, recording_file, text
from zaplock.trace.analysis import analyse
from zaplock.trace.events import EventKind, Events
from zaplock.trace.text_events import operation_row

FIXTURES = Path(__file__).parent / "fixtures" / "recorder"
LOCK = "mmap_lock:mmap_lock_start_locking: mm=0xffff888100000040 memcg_id=1 write=true"


def first(line: str) -> tuple[int, int, int, str]:
    """Return (tid, cpu, pid, comm) of a line's event."""
    events = text.parse([line]).events
    assert len(events) == 1, line
    tid = int(events["tid"][0])
    task = events.tasks.get(tid)
    return tid, int(events["cpu"][0]), task.pid if task else 0, task.comm if task else ""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"  python3 20112 [001]  4604.072603740:  {LOCK}", (20112, 1, 20112, "python3")),
        (f"  python3 18853/32346 [001]  4604.072603: {LOCK}", (32346, 1, 18853, "python3")),
        (f"  tokio rt 18853/32346   4604.072603: {LOCK}", (32346, -1, 18853, "tokio rt")),
        (f"  32346 [001]  4604.072603: {LOCK}", (32346, 1, 0, "")),
        (f"  32346  4604.072603: {LOCK}", (32346, -1, 0, "")),
        (f"  18853/32346  4604.072603:          1 {LOCK}", (32346, -1, 18853, "")),
        (f"  a-b 7-1234    ( 1200) [000] d..1. 10.000001: {LOCK}", (1234, 0, 1200, "a-b 7")),
        (f"  ab [1]-1234    (-------) [000] .....  10.000001: {LOCK}", (1234, 0, 1234, "ab [1]")),
        (f"  ps aux-4712  [000]   100.000020: {LOCK}", (4712, 0, 4712, "ps aux")),
        (f"  3.25: x-4712  [000]   100.000020: {LOCK}", (4712, 0, 4712, "3.25: x")),
    ],
)  # fmt: skip
def test_the_thread_is_found_in_every_tools_line(
    line: str, told: tuple[int, int, int, str]
) -> None:
    assert first(line) == told


GRAPH = "mmap_lock_start_locking: mm=00000000a7d3f1c2 memcg_path= write=true */"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"  594.380146 |   8)  a_-15002  |           |  /* {GRAPH}", (15002, 8, 15002, "a_")),
        (f" 9.5 |   0)  a-b c-7   |  d..1. |               |    /* {GRAPH}", (7, 0, 7, "a-b c")),
        (f"  3.239079 |   0)    zap-23    |  d.h.            |  /* {GRAPH}", (23, 0, 23, "zap")),
        (f"  594.380146 |    zap-42   |  /* {GRAPH}", (42, -1, 42, "zap")),
        (f"  594.380146 |   1)   <...>-42     |               |  /* {GRAPH}", (42, 1, 0, "")),
    ],
)  # fmt: skip
def test_an_event_among_function_graphs_calls_is_read(
    line: str, told: tuple[int, int, int, str]
) -> None:
    assert first(line) == told


def test_function_graph_without_its_time_or_thread_names_the_options() -> None:
    for line in (f" 0)               |  /* {GRAPH}", f"  9.000001 |   0)        |  /* {GRAPH}"):
        with pytest.raises(UserError, match="echo 1 > options/funcgraph-abstime"):
            text.parse([line])


def test_function_graph_with_latency_format_tells_flags_and_the_release() -> None:
    waking = "sched_waking: comm=zap pid=23 prio=120 target_cpu=000 */"
    trace = text.parse(
        [
            "# function_graph latency trace v1.1.5 on 4.9.0",
            f"    3.239079 |   0)    <idle>-0    |  d.h.              |  /* {waking}",
            f"   15.637386 |   0)     zap-88     |  d..5. |               |  /* {waking}",
        ]
    )
    assert trace.kernel == "4.9.0"
    assert trace.events["detail"].tolist() == [0, 88], "an interrupt woke it, then zap did"


def test_an_mm_that_the_kernel_hid_is_said_to_be_hidden() -> None:
    line = f"  9.000001 |   0)  zap-42  |  /* {GRAPH}".replace(
        "00000000a7d3f1c2", "(____ptrval____)"
    )
    with pytest.raises(UserError, match="no_hash_pointers"):
        text.parse([line])


def test_function_graphs_calls_and_other_comments_are_passed_over() -> None:
    lines = (
        "  9.000001 |   0)    zap-42    |               |  __x64_sys_munmap(regs=0xffff) {",
        "  9.000002 |   0)    zap-42    |   0.541 us    |    up_read(); /* <-vm_munmap ret=0x0 */",
        "  9.000003 |   0)    zap-42    | $ 1502232 us  |  } /* __x64_sys_munmap ret=0x0 */",
        " 0)   zap-42    =>    bash-12 ",
    )
    assert not len(text.parse(lines).events)


def test_every_call_that_record_knows_is_read() -> None:
    assert set(TRACED_NAMES) <= set(BY_NUMBER.values())
    for operation in TRACED:
        begin = (
            f"a-1 [000] 1.000001: sys_enter_{operation.name}: a: 1, b: 2, c: 3, d: 4, e: 5, f: 6"
        )
        end = f"a-1 [000] 1.000002: sys_exit_{operation.name}: 0x0"
        events = text.parse([begin, end]).events
        assert [events.operations[op] for op in events["op"]] == [operation.name] * 2
        for column, position in operation.shown.items():
            assert events[column][0] == (0 if position is None else position + 1)


def test_raw_system_calls_are_told_by_number() -> None:
    lines = [
        "a-1 [000] 1.000001: sys_enter: NR 11 (7f0000000000, 400000, 0, 0, 0, 0)",
        "a-1 [000] 1.000002: sys_exit: NR 11 = 0",
        "a-1 [000] 1.000003: sys_enter: NR 0 (3, 0, 0, 0, 0, 0)",
    ]
    events = text.parse(lines).events
    assert [EventKind(kind).name for kind in events["kind"]] == ["OP_BEGIN", "OP_END"]
    assert (events.operations[events["op"][0]], int(events["length"][0])) == ("munmap", 4 << 20)


def test_the_end_of_a_task_is_an_exit_unless_it_called_one() -> None:
    """As in a recording: of a task that a signal or another thread ended, its end alone tells."""
    lines = [
        "a-1 [000] 1.000001: sys_exit_group(error_code: 0)",
        "a-1 [000] 1.000002: sched_process_exit: comm=a pid=1 prio=120 group_dead=true",
        "b-2 [000] 1.000003: sched_process_exit: comm=b pid=2 prio=120",
        "c-3 [000] 1.000004: sched:sched_process_exit: c:3 [120]",
    ]
    events = text.parse(lines).events
    told = [
        (events.operations[op], tid, result)
        for op, tid, result in zip(events["op"], events["tid"], events["result"])
    ]
    assert told == [("exit_group", 1, 0), ("exit", 2, 0), ("exit", 3, 0)]


def test_trace_cmds_own_form_of_scheduling() -> None:
    lines = [
        "a-1 [000] 1.000001: sched_switch: bash:12 [120] S ==> kworker/0:1:13 [120]",
        "a-1 [000] 1.000002: sched_wakeup: bash:12 [120] success=1 CPU:000",
    ]
    events = text.parse(lines).events
    told = list(zip(events["kind"].tolist(), events["tid"].tolist(), events["detail"].tolist()))
    assert told == [
        (EventKind.SCHED_OUT, 12, 1),
        (EventKind.SCHED_IN, 13, 0),
        (EventKind.WAKEUP, 12, 0),  # written by whatever CPU it runs on: nobody woke it there
    ]


@pytest.mark.parametrize(
    ("flags", "waker"),
    [("d..2. ", 1), ("dNh2. ", 0), ("d.s3. ", 0), ("d.Z1. ", 0), ("", 0)],
)
def test_who_woke_it_is_known_by_the_flags(flags: str, waker: int) -> None:
    """An interrupt's wake-up is not the doing of the thread on that CPU; perf prints no flags."""
    waking = "sched_waking: comm=bash pid=12 prio=120 target_cpu=001"
    events = text.parse([f"a-1 [000] {flags}1.000001: {waking}"]).events
    assert events["kind"].tolist() == [EventKind.WAKEUP]
    assert (events["tid"].tolist(), events["detail"].tolist()) == ([12], [waker])


def test_overwritten_buffers_are_losses() -> None:
    lines = [
        "# tracer: nop",
        "# entries-in-buffer/entries-written: 3/323886   #P:2",
        f"a-1 [000] d.... 1.000001: {LOCK}",
        "##### CPU 1 buffer started ####",
        f"b-2 [001] d.... 1.500000: {LOCK}",
        f"a-1 [000] d.... 2.000000: {LOCK}",
    ]
    events = text.parse(lines).events
    events.check()
    lost = np.flatnonzero(events["kind"] == EventKind.LOST)
    assert events["length"][lost].tolist() == [323883, 0]
    analysis = analyse(events, "6.18")
    assert analysis.segments.lost_events >= 323883
    whole = text.parse(["# entries-in-buffer/entries-written: 3/3   #P:2", *lines[2:3]]).events
    assert not (whole["kind"] == EventKind.LOST).any()


@pytest.mark.parametrize(
    "line",
    [
        " " * 100_000,
        "a" + " " * 100_000 + "b",
        "a " * 50_000,
        "(" * 100_000,
        "a=(" * 33_000,
        "1" * 100_000,
        "1.1: " * 20_000,
        "a-1 [000] 1.000001: sched_switch: " + "prev_pid=1 prev_state=S ==> " * 3_000,
        "a-1 [000] 1.000001: sys_munmap(" + "a(" * 50_000,
        "a-1 [000] 1.000001: sys_enter_munmap: " + "x" * 100_000,
        "a-1 [000] 1.000001: sys_enter_munmap: " + "a: (" * 25_000,
        "CPU:" * 25_000,
        "PERF_RECORD_LOST" * 6_000,
        "[" * 100_000 + "1.5: x",
    ],
    ids=lambda line: f"{line[:12]}...{len(line)}",
)
def test_no_line_takes_long(line: str) -> None:
    """Four times as long a line must not take sixteen times as long (twelve: room for noise)."""

    def took(line: str) -> float:
        began = time.process_time()
        with contextlib.suppress(UserError):
            text.parse([line])
        return time.process_time() - began

    quarter = min(took(line[: len(line) // 4]) for _ in range(3))
    assert min(took(line) for _ in range(3)) < max(12 * quarter, 0.2)


@pytest.mark.parametrize(
    "line",
    [
        f"a-99999999999 [000] 1.000001: {LOCK}",
        f"a-1 [99999] 1.000001: {LOCK}",
        "a-1 [000] 1.000001: mmap_lock_released: mm=zebra write=true",
        "a-1 [000] 1.000001: mmap_lock_released: write=true",
        "a-1 [000] 1.000001: sched_wakeup: comm=x",
        "a-1 [000] 1.000001: sched_switch: x ==> y",
        "a-1 [000] 1.000001: contention_begin: zzz",
        f"nobody 1.000001: {LOCK}",
        f"a-1 [000] 9999999999.000001: {LOCK}",
        "a-1 [000] 1.000001: sched_wakeup: comm=x pid=" + "9" * 5_000,
    ],
)
def test_a_bad_number_is_one_line(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "bad.txt"
    trace.write_text(f"# a header\n{line}\n")
    assert main(["import", str(trace)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "line 2 can't be read" in said


def imported(path: Path, tmp_path: Path) -> tuple[Events, recording_file.Manifest]:
    output = tmp_path / "out.zaplock"
    assert main(["import", str(path), "-o", str(output), "--json"]) == 0
    recording = recording_file.read(output)
    return recording.events, recording.manifest


def test_a_packed_text_is_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = (FIXTURES / "perf-script-6.18.txt").read_bytes()
    packed = tmp_path / "perf.txt.gz"
    packed.write_bytes(gzip.compress(b"# ========\n# os release : 6.18.44-fc\n" + raw))
    events, manifest = imported(packed, tmp_path)
    assert len(events) == len(text.parse(raw.decode().splitlines()).events)
    assert manifest.kernel == "6.18.44-fc"
    assert main(["import", str(packed)]) == 0
    assert (tmp_path / "perf.zaplock").exists()
    packed.write_bytes(packed.read_bytes()[:500])
    assert main(["import", str(packed), "-o", str(tmp_path / "damaged")]) == 2
    assert "damaged gzip" in capsys.readouterr().err


def test_what_has_no_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fifo, bomb = tmp_path / "fifo", tmp_path / "bomb.gz"
    os.mkfifo(fifo)
    bomb.write_bytes(gzip.compress((b"x" * 1023 + b"\n") * (32 << 10)))
    for path, told in ((fifo, "no plain file"), (Path("/dev/zero"), "no plain file"),
                       (bomb, "over 200 times its size")):  # fmt: skip
        assert main(["import", str(path), "-o", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1


def test_a_line_longer_than_any_event_is_passed_over() -> None:
    lines = io.StringIO("x" * (3 << 20) + f"a-1 [000] 1.000001: {LOCK}\na-1 [000] 2.0: {LOCK}\n")
    events = text.parse(foreign.bounded_lines(lines)).events
    assert events["time_ns"].tolist() == [2_000_000_000]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x17\x08Dtracing6\0", "binary trace.dat of trace-cmd"),
        (b"PERFILE2\0\0", "binary perf.data"),
        (b"\xfd7zXZ\0", "xz -d"),
        (b"\x7fELF", "a program"),
        (b"\x0a\xff\x01\x02\x03garbage", "neither a text nor a whole Perfetto trace"),
    ],
)
def test_a_binary_file_is_named_as_what_it_is(
    start: bytes,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no tool is installed
    (tmp_path / "trace.bin").write_bytes(start + b"\0" * 64)
    assert main(["import", str(tmp_path / "trace.bin")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
def test_a_damaged_perf_data_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "perf.data").write_bytes(b"PERFILE2" + b"\0" * 64)
    assert main(["import", str(tmp_path / "perf.data")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("zaplock import: perf can't print")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("end", "says"), [("exit 0", ""), ("kill -SEGV $$", "ended by SIGSEGV")])
def test_a_tool_may_complain_at_length_and_break(
    end: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it printed before it broke is no whole trace; nobody waits for its complaints."""
    tool = tmp_path / "trace-cmd"
    tool.write_text(
        f"#!/bin/sh\ncat {FIXTURES}/ftrace-6.18.txt\nhead -c 900000 /dev/zero >&2\n{end}\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "trace.dat").write_bytes(b"\x17\x08Dtracing" + bytes(64))
    assert main(["import", str(tmp_path / "trace.dat")]) == (2 if says else 0)
    assert says in capsys.readouterr().err
    assert (tmp_path / "trace.zaplock").exists() == (not says)


def test_a_real_perf_data_tells_processes_and_the_kernel(tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    code = "import mmap; a = mmap.mmap(-1, 8 << 20); a.close()"
    command = ["perf", "record", "-q", "-o", str(data), "-e", "mmap_lock:*", "--"]
    try:
        done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True)
    except FileNotFoundError:
        pytest.skip("perf is not installed")
    if done.returncode:
        pytest.skip("perf may not record here")
    events, manifest = imported(data, tmp_path)
    assert (events["kind"] == EventKind.RELEASED).any()
    assert manifest.kernel.startswith(Path("/proc/sys/kernel/osrelease").read_text().strip())


def test_the_name_of_an_instance_is_no_part_of_a_tasks_name() -> None:
    lines = [
        f"box:     tmux: server-12 [000] 1.000001: {LOCK}\n",
        f"    tmux: server-13 [000] 1.000002: {LOCK}\n",
    ]
    tasks = text.parse(lines).events.tasks
    assert (tasks[12].comm, tasks[13].comm) == ("tmux: server", "tmux: server")


def test_perfettos_ftrace_packets(tmp_path: Path) -> None:
    pb = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = pb.Trace()
    tree = trace.packet.add().process_tree
    process, thread = tree.processes.add(), tree.threads.add()
    process.pid, thread.tid, thread.tgid, thread.name = 10, 11, 10, "mapper"
    process.cmdline.append("/usr/bin/server")
    bundle = trace.packet.add().ftrace_events
    bundle.cpu, bundle.lost_events = 3, True

    def add(time_ns: int) -> object:
        event = bundle.event.add()
        event.timestamp, event.pid = time_ns, 11
        return event

    def lock(time_ns: int, name: str, **fields: int) -> None:
        event = add(time_ns)
        event.generic.event_name = name  # type: ignore[attr-defined]
        for key, value in {"mm": 0xFFFF888100000040, **fields}.items():
            field = event.generic.field.add()  # type: ignore[attr-defined]
            field.name, field.uint_value = key, value

    call = add(1000)
    call.sys_enter.id = 11  # type: ignore[attr-defined]
    call.sys_enter.args.extend([1 << 40, 8 << 20, 0, 0, 0, 0])  # type: ignore[attr-defined]
    lock(2000, "mmap_lock_start_locking", write=1)
    lock(3000, "mmap_lock_acquire_returned", write=1, success=1)
    lock(9000, "mmap_lock_released", write=1)
    back = add(9500)
    back.sys_exit.id, back.sys_exit.ret = 11, 0  # type: ignore[attr-defined]
    switch = add(9900).sched_switch  # type: ignore[attr-defined]
    switch.prev_pid, switch.prev_comm, switch.next_pid = 11, "mapper", 12
    switch.next_comm, switch.prev_state = "other", 1
    path = tmp_path / "trace.pftrace"
    path.write_bytes(trace.SerializeToString())
    events, _ = imported(path, tmp_path)
    analysis = analyse(events, "6.18")
    (hold,) = analysis.holds.frame().to_dicts()
    assert (hold["operation"], hold["length"], hold["hold_ns"]) == ("munmap", 8 << 20, 6000)
    assert events.tasks[11].pid == 10
    assert events.tasks[12].comm == "other"
    assert {EventKind.LOST, EventKind.SCHED_OUT, EventKind.SCHED_IN} <= set(events["kind"].tolist())


def test_perfetto_events_that_the_trace_describes_itself_are_read(tmp_path: Path) -> None:
    """Since v51 a generic event is a field with a number of its own; the trace says which."""
    proto = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    def described(name: str, fields: dict[str, int]) -> Any:
        told = descriptor_pb2.DescriptorProto(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            told.field.add(name=field, number=number, type=kind, label=1)
        return told

    uint64, string = 4, 9
    lock = {"mm": uint64, "memcg_path": string, "write": uint64}
    events = {
        70001: described("mmap_lock_start_locking", lock),
        70002: described("mmap_lock_acquire_returned", {**lock, "success": uint64}),
        70003: described("mmap_lock_released", lock),
    }
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", message_type=list(events.values()))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    trace = proto.Trace()
    bundle = trace.packet.add().ftrace_events
    for number, told in events.items():
        bundle.generic_event_descriptors.add(
            field_id=number, group_name="mmap_lock", event_descriptor=told.SerializeToString()
        )
    times = {70001: 2000, 70002: 3000, 70003: 9000}
    for number, time_ns in times.items():
        name = events[number].name
        made = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))()
        made.mm, made.memcg_path, made.write = 0xFFFF888100000040, "/", 1
        if number == 70002:
            made.success = 1
        content = made.SerializeToString()
        tag, size = (number << 3) | 2, len(content)
        raw = bytes([tag & 0x7F | 0x80, tag >> 7 & 0x7F | 0x80, tag >> 14, size]) + content
        event = bundle.event.add()
        event.MergeFromString(raw)
        event.timestamp, event.pid = time_ns, 11
    path = tmp_path / "described.pftrace"
    path.write_bytes(trace.SerializeToString())
    recorded, _ = imported(path, tmp_path)
    (hold,) = analyse(recorded, "6.18").holds.frame().to_dicts()
    assert (hold["tid"], hold["hold_ns"]) == (11, 6000)


def test_a_perfetto_trace_without_the_package_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf.message", None)
    (tmp_path / "x.pftrace").write_bytes(b"\x0a\x02\x08\x01")
    assert main(["import", str(tmp_path / "x.pftrace")]) == 2
    assert "pip install 'zaplock[perfetto]'" in capsys.readouterr().err


def test_an_unknown_call_is_no_row() -> None:
    assert operation_row("read", [1]) == []
    assert json.loads(json.dumps(operation_row("brk", [7]))) == [
        {"kind": 3, "op": TRACED_NAMES.index("brk"), "address": 7}
    ]


def test_times_that_count_from_the_event_before_are_refused() -> None:
    """`perf script --deltatime`; --reltime, which counts from the first, is read."""

    def stamped(times: list[int]) -> list[str]:
        return [
            f"victim 7/7 [000] 0.{time:06d}: mmap_lock:mmap_lock_released: mm=0x9 memcg_path=/ "
            "write=true"
            for time in times
        ]

    assert len(text.parse(stamped([0, 3, 5, 5, 90])).events) == 5
    with pytest.raises(UserError, match="--deltatime"):
        text.parse(stamped([0, 3, 2, 0, 85]))
