"""Stacks from a real kernel: of whom, when, and in whose words; and what an enemy can't do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from zaplock.cli import main
from zaplock.recorder import perf, symbols
from zaplock.recorder.code_areas import areas_of
from zaplock.recorder.code_names import CodeNames
from zaplock.recorder.code_reader import kind_of
from zaplock.recorder.stack_keeper import StackKeeper
from zaplock.recorder.stack_sampler import StackSampler, Wanted
from zaplock.recorder.stack_samples import (
    EndedProcess,
    ExecutedProcess,
    ForkedProcess,
    MappedCode,
    Sample,
    StackDecoder,
)
from zaplock.recorder.target_files import opened
from zaplock.trace import recording_file
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import EventKind
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import AddressKind, CallStack

ME = os.getpid()

PROGRAM = r"""
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
namespace cache {
template <class T> __attribute__((noinline)) int purge(char *p, size_t n) {
  int result = munmap(p, n);
  asm volatile("" ::: "memory");
  return result;
}
}
static const size_t N = 200UL << 20;
static int endless;
static void *freer(void *) {
  for (int i = 0; i < (endless ? 1 << 30 : 5); i++) {
    char *p = (char *)mmap(0, N, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(p, N, MADV_NOHUGEPAGE);
    memset(p, 1, N);
    cache::purge<int>(p, N);
    usleep(10000);
  }
  exit(0);
}
__attribute__((noinline)) void grow() {
  char *p = (char *)mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  p[0] = 1;
  munmap(p, 4096);
  usleep(500);
}
int main(int count, char **) {
  endless = count > 2;
  if (count == 2 && fork()) { wait(0); return 0; }
  pthread_t thread;
  pthread_create(&thread, 0, freer, 0);
  for (;;) grow();
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    (folder / "app.cpp").write_text(PROGRAM)
    flags = ["-O1", "-fno-omit-frame-pointer", "-o", "app", "app.cpp", "-lpthread"]
    subprocess.run(["g++", *flags], cwd=folder, check=True)
    return folder / "app"


def recorded(path: Path, *arguments: str) -> Analysis:
    assert main(["record", "-o", str(path), *arguments]) == 0
    recording = recording_file.read(path)
    return analyse(
        recording.events, recording.manifest.kernel, stacks=recording_file.read_stacks(path)
    )


@pytest.fixture(scope="module")
def recording(program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Analysis]:
    """Record the program once, with its stacks, for all that only look at it."""
    path = tmp_path_factory.mktemp("recording") / "a.zaplock"
    return path, recorded(path, "--stacks", "--", str(program))


def longest_munmap(analysis: Analysis) -> CallStack:
    holds = analysis.holds
    munmap = analysis.calls.operations.index("munmap")
    rows = np.flatnonzero((holds["op"] == munmap) & ~holds["exclusive"])
    return analysis.hold_stack(int(rows[np.argmax(holds["hold_ns"][rows])]))


@pytest.mark.root
def test_a_command_that_has_ended_still_has_all_its_names(
    recording: tuple[Path, Analysis],
) -> None:
    assert_named(*recording)


@pytest.mark.root
def test_a_child_of_a_command_has_all_its_names_too(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zaplock"
    assert_named(path, recorded(path, "--stacks", "--", str(program), "child"))


def assert_named(path: Path, analysis: Analysis) -> None:
    """Assert that the longest munmap and its worst victim have their functions' names."""
    stack = longest_munmap(analysis)
    names = [frame.partition(" (")[0] for frame in stack.user]
    assert names[:3] == ["munmap", "int cache::purge<int>(char*, unsigned long)", "freer(void*)"]
    assert "unmap_vmas" in stack.kernel
    assert recording_file.read_stacks(path)
    waits = analysis.waits
    worst = int(np.argmax(waits["wait_ns"]))
    victim = analysis.wait_stack(worst)
    assert any(frame.startswith("grow()") for frame in victim.user)
    assert any(frame.startswith("rwsem_down_") for frame in victim.kernel)


@pytest.mark.root
def test_only_the_targets_own_program_is_looked_into(recording: tuple[Path, Analysis]) -> None:
    path, analysis = recording
    stacks = recording_file.read_stacks(path)
    assert stacks is not None
    tasks = analysis.events.tasks
    with_program = {
        tasks[int(tid)].process
        for tid, chain in zip(stacks.tid, stacks.chain)
        if stacks.chains[chain][1] and int(tid) in tasks
    }
    # Before it becomes the command it is the little Python that waits at the gate.
    assert with_program <= {"app", "python", Path(sys.executable).name}
    assert "app" in with_program


@pytest.mark.root
def test_long_holds_and_waits_have_kernel_stacks_without_being_asked_for(
    program: Path, tmp_path: Path
) -> None:
    analysis = recorded(tmp_path / "a.zaplock", "--", str(program))
    stack = longest_munmap(analysis)
    assert "unmap_vmas" in stack.kernel
    assert stack.user == ()
    worst = int(np.argmax(analysis.waits["wait_ns"]))
    assert any(frame.startswith("rwsem_down_") for frame in analysis.wait_stack(worst).kernel)


@pytest.mark.root
def test_a_sample_is_there_at_once_however_late_the_thread_that_empties_the_rings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lock events of its time are judged then, and what comes later is in none of them."""
    late = threading.Event()
    monkeypatch.setattr(perf, "wait_for", lambda *_: late.wait())
    sampler = StackSampler(Wanted({}))
    try:
        sampler.start()
        deadline, since_ns, seen = time.monotonic() + 60, time.monotonic_ns(), False
        while not seen and time.monotonic() < deadline:  # it computes, and so is sampled
            seen = any(one.time_ns > since_ns for one in sampler.take()[0])
        assert seen
    finally:
        late.set()
        sampler.close()
    sampler.take()
    assert sampler.take() == ([], []), "its rings are gone"


@pytest.mark.root
def test_without_kernel_stacks_there_are_none(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zaplock"
    assert recorded(path, "--no-kernel-stacks", "--", str(program)).stacks is None


NODE = """
function allocateMuch() { return Buffer.alloc(16 << 20, 1).length; }
const end = Date.now() + 60000;
console.log("go");
while (Date.now() < end) allocateMuch();
"""
JAVA = """
import java.nio.channels.FileChannel;
import java.nio.file.*;
public class Mapper {
  static volatile long sink;
  static void mapMuch(FileChannel file) throws Exception {
    sink += file.map(FileChannel.MapMode.READ_ONLY, 0, 1 << 20).get(0);
  }
  public static void main(String[] given) throws Exception {
    try (FileChannel file = FileChannel.open(Paths.get(given[0]))) {
      for (int i = 0; i < 3000; i++) mapMuch(file);
      System.out.println("go");
      for (;;) mapMuch(file);
    }
  }
}
"""


@pytest.mark.root
@pytest.mark.parametrize(("runtime", "function"), [("node", "allocateMuch"), ("java", "mapMuch")])
def test_a_runtimes_own_map_names_its_functions(
    tmp_path: Path, runtime: str, function: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/recording.md says that it is to be started."""
    if missing := [name for name in (runtime, "jcmd") if runtime == "java" or name == runtime
                   if shutil.which(name) is None]:  # fmt: skip
        pytest.skip(f"{missing[0]} is not installed")
    options = {
        "node": ["--perf-basic-prof", "--interpreted-frames-native-stack", "mapper.js"],
        "java": [
            "-XX:+PreserveFramePointer",
            "-XX:TieredStopAtLevel=1",
            "-XX:CompileCommand=quiet",
            "-XX:CompileCommand=dontinline,Mapper::mapMuch",
            "Mapper.java",
            "zeros",
        ],
    }
    (tmp_path / "mapper.js").write_text(NODE)
    (tmp_path / "Mapper.java").write_text(JAVA)
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    command = [runtime, *options[runtime]]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "go\n"
        pid = str(process.pid)
        if runtime == "java":
            subprocess.run(["jcmd", pid, "Compiler.perfmap"], check=True, capture_output=True)
        # On a busy machine it may not have come to map anything in so short a time.
        for turn in range(6):
            folded = tmp_path / f"folded-{turn}"
            command = ["why", "-p", pid, "-d", "600ms", "--stacks", "--folded", str(folded)]
            assert main(command) == 0
            if function in folded.read_text():
                break
        process.kill()
    Path(f"/tmp/perf-{pid}.map").unlink(missing_ok=True)
    assert function in folded.read_text(), capsys.readouterr().out


@pytest.mark.root
def test_why_says_where_the_holder_is(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([str(program), "and", "on"]) as process:
        command = ["why", "-p", str(process.pid), "-d", "500ms", "--stacks", "--json"]
        try:
            assert main([*command, "--folded", str(tmp_path / "folded")]) == 0
        finally:
            process.kill()
    said = json.loads(capsys.readouterr().out)
    stacks = [hold["stack"] for hold in said["holds"] if "stack" in hold]
    assert any(stack["kernel"] for stack in stacks)
    assert any("main (app)" in stack["user"] for stack in stacks)
    assert ";" in (tmp_path / "folded").read_text()


PYTHON = """
import mmap, sys
def let_go():
    area = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[::4096] = bytes(len(area) // 4096)
    area.close()
def serve():
    for _ in range(30):
        let_go()
serve()
"""


@pytest.mark.root
def test_python_functions_are_named_or_it_is_said_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = next((one for one in pythons() if one), None)
    if python is None:
        pytest.skip("no Python of 3.12 or later on this machine")
    script = tmp_path / "app.py"
    script.write_text(PYTHON)
    analysis = recorded(tmp_path / "a.zaplock", "--stacks", "--", python, "-X", "perf", str(script))
    told = {frame for row in range(len(analysis.holds)) for frame in analysis.hold_stack(row).user}
    if "frame pointers" in capsys.readouterr().out:
        assert not any(str(script) in frame for frame in told)
    else:
        assert f"let_go:{script}" in told
        assert f"serve:{script}" in told


def pythons() -> list[str | None]:
    found = [sys.executable] if sys.version_info >= (3, 12) else []
    found += [str(one) for one in Path("/root/.pyenv/versions").glob("3.1[2-9]*/bin/python")]
    return [*found, *(shutil.which(f"python3.{minor}") for minor in (12, 13, 14))]


@pytest.fixture
def perf_map() -> Path:
    path = Path(f"/tmp/perf-{ME}.map")
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


def name_of(address: int) -> str:
    names = CodeNames()
    names.saw([Sample(1, ME, ME, StackReason.LOCKED, ((), (address,)), 0)])
    return names.named()[ME, address].text


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("7f0000001000 40 py::serve:/srv/app.py", "serve:/srv/app.py"),
        ("0x00007f0000001000 0x00000040 java.lang.Object::wait", "java.lang.Object::wait"),
        ("7F0000001000 40 LazyCompile:*tick /srv/app.js:7", "LazyCompile:*tick /srv/app.js:7"),
        ("7f0000001000 40 bad\x1b[31mname", "bad?[31mname"),
    ],
)
def test_the_maps_of_runtimes_name_their_functions(perf_map: Path, line: str, name: str) -> None:
    perf_map.write_text(line + "\nno line at all\n7f 7f\n")
    assert name_of(0x7F0000001020) == name
    assert name_of(0x7F0000001040) == hex(0x7F0000001040)


def test_a_map_that_would_hang_or_lead_elsewhere_is_left_alone(
    perf_map: Path, tmp_path: Path
) -> None:
    os.mkfifo(perf_map)
    assert name_of(0x7F0000001020) == hex(0x7F0000001020)
    perf_map.unlink()
    secret = tmp_path / "secret"
    secret.write_text("7f0000001000 40 secret\n")
    perf_map.symlink_to(secret)
    assert name_of(0x7F0000001020) == hex(0x7F0000001020)


@pytest.mark.root
def test_a_map_of_a_third_user_is_left_alone(perf_map: Path) -> None:
    perf_map.write_text("7f0000001000 40 planted\n")
    os.chown(perf_map, 12345, 12345)
    assert name_of(0x7F0000001020) == hex(0x7F0000001020)


def test_nothing_but_regular_files_of_the_right_user_is_opened(tmp_path: Path) -> None:
    def can_open(path: Path | str, **options: object) -> bool:
        with opened("/", str(path), users=frozenset({os.getuid()}), **options) as found:
            return found is not None

    plain, fifo, link = tmp_path / "plain", tmp_path / "fifo", tmp_path / "link"
    plain.write_text("x")
    os.mkfifo(fifo)
    link.symlink_to(plain)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    assert can_open(plain)
    assert can_open(link)
    assert not can_open(link, follow=False)
    for wrong in (fifo, tmp_path, tmp_path / "socket", "/dev/zero", tmp_path / "none", "x", "/\0"):
        assert not can_open(wrong)


def test_a_path_of_a_container_stays_inside_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "inside").write_text("inside")
    (tmp_path / "away").symlink_to("/etc")
    users = frozenset({os.getuid()})
    with opened(str(tmp_path), "/away/inside", users=users) as found:
        assert found is not None
        assert os.pread(found, 10, 0) == b"inside"
    with opened(str(tmp_path), "/away/passwd", users=users) as found:
        assert found is None
    with opened(str(tmp_path), "/../../../../etc/passwd", users=users) as found:
        assert found is None


def read_elf(path: Path) -> symbols.ElfFile:
    with path.open("rb") as opened_file:
        return symbols.read_elf(opened_file.fileno())


def test_any_damage_to_an_elf_file_is_survived(program: Path, tmp_path: Path) -> None:
    """Each byte of the headers is set to the worst, and the file is cut at many places."""
    whole = program.read_bytes()
    assert any(one.starts.size for one in read_elf(program).functions)
    sections_at = struct.unpack_from("<Q", whole, 40)[0]
    places = [*range(64), *range(64, 400, 3), *range(sections_at, len(whole), 37)]
    broken = tmp_path / "broken"
    for place in places:
        for value in (0, 0x7F, 0xFF):
            raw = bytearray(whole)
            raw[place] = value
            broken.write_bytes(raw)
            look_up(read_elf(broken))
    for end in range(0, len(whole), 997):
        broken.write_bytes(whole[:end])
        look_up(read_elf(broken))


def look_up(found: symbols.ElfFile) -> None:
    for offset in (0, 0x1000, 0x1234, 1 << 40, (1 << 64) - 1):
        found.find(offset)
    for one in found.functions:
        for place in range(min(5, len(one.starts))):
            assert len(one.name(place)) <= 4096


def test_an_elf_file_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<QQ", header, 32, 64, 64)
    struct.pack_into("<4H", header, 54, 56, 0, 64, 3)
    section = struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 0, 1 << 39, 1, 0, 8, 24)
    huge.write_bytes(bytes(header) + section * 3)
    with huge.open("r+b") as sparse:
        sparse.truncate(1 << 40)
    assert not any(one.starts.size for one in read_elf(huge).functions)


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        (b"\xb8\x0b\x00\x00\x00\x0f\x05", AddressKind.AFTER_SYSCALL),
        (b"\x48\x89\xe8\x12\x34\x56\x78", AddressKind.AFTER_CALL),
        (b"\x00\x00\x00\x00\x00\xff\xd0", AddressKind.AFTER_CALL),
        (b"\x00\xff\x15\x01\x02\x03\x04", AddressKind.AFTER_CALL),
        (b"\x90\x90\x90\x90\x90\x90\x90", AddressKind.OTHER),
        (b"", AddressKind.OTHER),
    ],
)
def test_the_bytes_before_an_address_say_whether_it_is_after_a_call(
    before: bytes, kind: AddressKind
) -> None:
    assert kind_of(before) == kind


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN5cache5purgeIiEEvv", "void cache::purge<int>()"),
        ("_ZN4core3fmt9Formatter3pad17h9b2b3a0e5b4d1b31E", "core::fmt::Formatter::pad"),
        ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
        ("runtime.madvise", "runtime.madvise"),
        ("_Znonsense", "_Znonsense"),
    ],
)
def test_names_are_demangled(mangled: str, name: str) -> None:
    assert symbols.readable(mangled) == name


def test_a_name_is_one_short_printable_line() -> None:
    assert symbols.readable("a\nb\x1b[0m\u202e") == "a?b?[0m?"
    assert len(symbols.readable("x" * 100_000)) == symbols.LONGEST
    assert len(symbols.readable("_Z" + "N" * 100_000)) == symbols.LONGEST


def test_a_childs_code_is_its_parents_until_it_calls_exec() -> None:
    names = CodeNames()
    names.learn([MappedCode(5, 10, 0x1000, 0x2000, 0, "/none/lib.so", 1), ForkedProcess(6, 11, 10)])
    names.saw([Sample(7, 11, 11, StackReason.LOCKED, ((), (0x1010,)), 0)])
    assert names.named()[11, 0x1010].text == "lib.so+0x10"


def test_what_another_cpu_tells_first_is_put_in_order() -> None:
    """A child maps its code on one CPU; the other tells its birth and its exec later."""
    names = CodeNames()
    names.learn([MappedCode(1, 10, 0x5000, 0x6000, 0, "/none/parent.so", 1)])
    names.learn([MappedCode(9, 11, 0x1000, 0x2000, 0, "/none/child.so", 1)])
    names.learn([ForkedProcess(7, 11, 10), ExecutedProcess(8, 11)])
    names.saw([Sample(10, 11, 11, StackReason.LOCKED, ((), (0x1010, 0x5010)), 0)])
    found = names.named()
    assert found[11, 0x1010].text == "child.so+0x10"
    assert found[11, 0x5010].kind == AddressKind.NOWHERE, "exec has taken it away"


def test_a_child_that_has_ended_is_named_by_the_code_of_its_living_parent() -> None:
    child = 1 << 30
    code = next(area for area in areas_of(ME) if area.path.startswith("/"))
    names = CodeNames()
    names.learn([ForkedProcess(5, child, ME), EndedProcess(9, child)])
    names.saw([Sample(7, child, child, StackReason.LOCKED, ((), (code.start + 16,)), 0)])
    assert not names.named()[child, code.start + 16].text.startswith("0x")


def test_a_process_that_ends_before_its_stacks_are_judged_keeps_its_names() -> None:
    names = CodeNames()
    names.learn([MappedCode(5, 10, 0x1000, 0x2000, 0, "/none/lib.so", 1), EndedProcess(9, 10)])
    names.forget(before_ns=8)
    names.saw([Sample(7, 10, 10, StackReason.LOCKED, ((), (0x1010, 0x77)), 0)])
    found = names.named()
    assert found[10, 0x1010].text == "lib.so+0x10"
    assert found[10, 0x77].kind == AddressKind.NOWHERE


def test_records_that_are_cut_or_odd_are_survived() -> None:
    decoder = StackDecoder({7: StackReason.QUEUED}, with_stack=True)
    sample = struct.pack("=QIIQQ3Q", 7, 1, 2, 99, 3, (1 << 64) - 128, 0xFFFF, (1 << 64) - 512)
    sample += struct.pack("=QQQQQ", 2, 0x7FFC, 8, 0x401000, 8)
    record = struct.pack("=IHH", 9, 0, 8 + len(sample)) + sample
    (one,) = decoder.decode(record).samples
    assert one == Sample(99, 1, 2, StackReason.QUEUED, ((0xFFFF,), ()), 0x401000)
    for end in range(len(record)):
        cut = struct.pack("=IHH", 9, 0, end) + record[8:end] if end >= 48 else b""
        assert len(decoder.decode(cut).samples) <= 1
    assert decoder.decode(struct.pack("=IHH", 9, 0, 0) * 3).samples == []


class Samples:
    """A sampler that gives what a test says."""

    lost = 0

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def take(self) -> tuple[list[Sample], list[object]]:
        taken, self.samples = self.samples, []
        return taken, []


def locks(*rows: tuple[int, EventKind, int]) -> dict[str, np.ndarray]:
    times, kinds, tids = zip(*rows)
    return {
        "time_ns": np.array(times, np.int64) * 1_000_000,
        "kind": np.array(kinds, np.uint8),
        "success": np.ones(len(rows), np.uint8),
        "tid": np.array(tids, np.int32),
        "mm": np.full(len(rows), 77, np.uint64),
    }


def test_a_sample_is_kept_where_its_task_waits_or_holds_also_across_blocks() -> None:
    def at(ms: int, tid: int = 1) -> Sample:
        return Sample(ms * 1_000_000, tid, tid, StackReason.SAMPLED, ((9,), (8,)), 0)

    times = (5, 11, 15, 25, 35, 45)
    keeper = StackKeeper(Samples([at(ms) for ms in times] + [at(15, 2)]), lambda pid: pid == 1)
    keeper.add(locks((10, EventKind.ASKED, 1), (12, EventKind.ACQUIRED, 1)))
    first = keeper.ready(20 * 1_000_000)
    keeper.add(locks((30, EventKind.RELEASED, 1), (40, EventKind.ACQUIRED, 1)))
    rest = keeper.ready()
    assert [row.time_ns // 1_000_000 for row in first] == [11, 15]
    assert [row.time_ns // 1_000_000 for row in rest] == [25, 45]
    assert all(row.user == (8,) for row in first)


def test_a_strangers_program_is_not_kept() -> None:
    sample = Sample(5, 1, 1, StackReason.LOCKED, ((9,), (8,)), 7)
    (row,) = StackKeeper(Samples([sample]), lambda pid: False).ready()
    assert (row.kernel, row.user, row.top) == ((9,), (), 0)


@pytest.mark.root
def test_where_perf_events_are_forbidden_the_recording_goes_on_without_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("zaplock.recorder.perf.open_event", forbidden)
    path = tmp_path / "a.zaplock"
    assert main(["record", "-o", str(path), "--", "true"]) == 0
    assert "without kernel stacks: perf events are forbidden" in capsys.readouterr().out
    assert main(["record", "--stacks", "-o", str(tmp_path / "b"), "--", "true"]) == 2
    assert "leave out --stacks" in capsys.readouterr().err


def test_a_file_system_that_never_answers_does_not_hang_the_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = threading.Event()
    monkeypatch.setattr("zaplock.recorder.code_names.NAMING_PATIENCE_S", 0.05)

    def stuck(pid: int) -> list[object]:
        never.wait(5)
        return []

    monkeypatch.setattr("zaplock.recorder.code_names.areas_of", stuck)
    names = CodeNames()
    names.saw([Sample(1, ME, ME, StackReason.LOCKED, ((), (0x1000,)), 0)])
    assert names.named() == {}
    never.set()
