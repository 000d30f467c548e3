"""Whose program it is, and its settings: each is in the documentation with its public source."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from zaplock.advise.advice import Advice
from zaplock.advise.advice_by_kind import MUNMAP, Means, kind_of
from zaplock.advise.readers import READERS, reader
from zaplock.advise.runtimes import GO, RUNTIMES, recognise, recognised

DOCS = (Path(__file__).parent.parent / "docs" / "advice.md").read_text()


@pytest.mark.parametrize(
    ("process", "maps", "name"),
    [
        ("redis-server", "/usr/lib/libjemalloc.so.2", "Redis"),
        ("postgres", "/lib/libc.so.6", "PostgreSQL"),
        ("qemu-system-x86", "", "QEMU"),
        ("java", "", "Java"),
        ("opensearch", "/usr/lib/jvm/lib/server/libjvm.so", "Java"),
        ("dotnet", "", ".NET"),
        ("clickhouse", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "jemalloc"),
        ("ceph-osd", "/usr/lib/libtcmalloc_minimal.so.4", "tcmalloc"),
        ("mapper", "/opt/libmimalloc.so.2.1", "mimalloc"),
        ("python3.12", "", "Python"),
    ],
)
def test_programs_are_recognised_by_name_and_libraries(process: str, maps: str, name: str) -> None:
    found = recognised(process, maps)
    assert found is not None
    assert found.name == name


def test_nobody_is_recognised_by_chance() -> None:
    for process in ("javac-server", "my-postgresql-exporter", "pythonista", "kvmtool", ""):
        assert recognised(process, "") is None, process


def until_called(pid: int, name: str) -> None:
    """Wait until the new process has become its program."""
    end = time.monotonic() + 250
    while Path(f"/proc/{pid}/comm").read_text() != f"{name}\n" and time.monotonic() < end:
        time.sleep(0.01)


def test_this_process_is_python_and_a_shell_has_glibcs_malloc() -> None:
    own = recognise(os.getpid(), Path("/proc/self/comm").read_text().rstrip("\n"))
    assert own is not None
    assert own.name in ("Python", "jemalloc", "tcmalloc", "mimalloc")
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        try:
            until_called(sleeper.pid, "sleep")
            found = recognise(sleeper.pid, "sleep")
            assert found is None or found.name == "glibc malloc"  # musl has none
            assert recognise(sleeper.pid, "redis-server") is not None, "the name alone counts"
            assert recognise(sleeper.pid, "somebody") is None, "it is somebody else's pid by now"
        finally:
            sleeper.kill()


def test_go_is_recognised_by_the_build_information_in_its_file(tmp_path: Path) -> None:
    program = tmp_path / "gopher"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with program.open("ab") as file:
        file.write(b"\xff Go buildinf:\x08\x02")
    with subprocess.Popen([program, "600"]) as gopher:
        try:
            until_called(gopher.pid, "gopher")
            assert recognise(gopher.pid, "gopher") is GO
        finally:
            gopher.kill()


def of(name: str, kind_operation: tuple[str, int, int]) -> Advice:
    (runtime,) = (one for one in (*RUNTIMES, GO) if one.name == name)
    return Advice("x", kind_of(*kind_operation), 1 << 30, 10, 1, True, runtime=runtime)


def test_advice_is_in_the_words_of_the_programs_own_settings() -> None:
    freed = ("munmap", 0, 1 << 30)
    for name, word in {
        "Java": "-Xms",
        "Go": "GOMEMLIMIT",
        "jemalloc": "dirty_decay_ms",
        "Redis": "lazyfree",
        "PostgreSQL": "huge_pages",
        "QEMU": "free-page-reporting",
    }.items():
        advice = of(name, freed)
        assert advice.means is Means.SETTING
        assert advice.change.startswith(f"{name}: ")
        assert word in advice.change
        assert "zaplock.release" not in advice.change
        assert advice.source.startswith("https://")
    glibc = of("glibc malloc", freed)
    assert "GLIBC_TUNABLES" in glibc.change
    assert "zaplock.release" in glibc.change, "where the program itself calls munmap"
    assert glibc.means is Means.RELEASE
    assert of("Python", freed).change == MUNMAP.change
    assert "latest_fork_usec" in of("Redis", ("fork", 0, 0)).change
    live = of("jemalloc", ("madvise(MADV_COLD)", 0, 1 << 30))
    assert live.means is Means.PIECES, "no setting of an allocator is about live memory"


def test_every_program_and_source_is_documented() -> None:
    for runtime in (*RUNTIMES, GO):
        assert f"| {runtime.name}" in DOCS, runtime.name
        assert not runtime.source or runtime.source in DOCS, runtime.source
        assert runtime.source or runtime.name == "Python"


def test_readers_are_told_what_to_switch_off() -> None:
    for process, word in {
        "process-exporte": "gather-smaps",
        "telegraf": "procstat",
        "cadvisor": "referenced_memory",
        "htop": "M_PSS",
        "py-spy": "--nonblocking",
        "ps": "-o pid,comm",
        "cat": "smaps_rollup",
        "khugepaged": "scan_sleep_millisecs",
    }.items():
        assert word in reader(process).change
        assert reader(process).means is Means.READER
    for name in ("process-exporter", "Telegraf", "cadvisor", "atop", "py-spy", "khugepaged"):
        assert f"| {name}" in DOCS
    assert all(change for _, change in READERS)
