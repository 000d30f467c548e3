"""`zaplock run --release`: a program's big frees by pieces, and nothing else is changed by it.

`ZAPLOCK_LIVES=100000 pytest tests/test_preload.py -k lives` is the campaign; a part of it, from
life `ZAPLOCK_FIRST_LIFE` on, counts with the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.compiled import build
from zaplock.errors import UserError
from zaplock.preload import library as preload
from zaplock.preload.library import ReleaseSettings, environment, library
from zaplock.preload.programs import require_loading

LIVES = int(os.environ.get("ZAPLOCK_LIVES", "150"))
FIRST = int(os.environ.get("ZAPLOCK_FIRST_LIFE", "0"))
DRIVER = Path(__file__).with_name("preload_lives.c")
DROPS = """
import mmap, re
def peak():
    return int(re.search(r"VmPeak:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
area = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[::4096] = b"x" * (len(area) // 4096)
before = peak()
area.madvise(mmap.MADV_DONTNEED)
left = sum(area[::4096])
area[:3] = b"new"
print(peak() - before >= len(area), left, area[:3])
"""
ZAPLOCK = [sys.executable, "-P", "-m", "zaplock"]
FREES = """
import ctypes, mmap, sys
released = (ctypes.c_ulong * 2).in_dll(ctypes.CDLL(None), "zaplock_released")
memory = mmap.mmap(-1, 1 << 25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"x" * len(memory)
start = released[0]
memory.close()
print("by pieces:", released[0] - start)
"""

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("driver") / "lives"
    cc = str(build.compiler())
    subprocess.run([cc, "-O1", "-w", "-pthread", "-o", made, DRIVER], check=True)
    return made


def preloaded(path: Path, *options: str) -> dict[str, str]:
    settings = ReleaseSettings(smallest=64 << 10).spelt()
    spelt = ",".join([*options, settings])
    return {**os.environ, "LD_PRELOAD": str(path), "ZAPLOCK_RELEASE": spelt}


def lives(
    driver: Path, count: int, env: dict[str, str], *more: str, first: int = FIRST
) -> tuple[list[str], int]:
    command = [str(driver), "5", str(first), str(count), *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), int(done.stderr.split()[0])


@pytest.mark.timeout(0)
@pytest.mark.parametrize("flags", [(), ("-DWITHOUT_QUERY",)], ids=["query", "maps"])
def test_lives_are_the_same_with_the_library_and_without(
    driver: Path, flags: tuple[str, ...], tmp_path: Path
) -> None:
    """On kernels that answer PROCMAP_QUERY, and on those whose maps are read as text."""
    path, count = library(), LIVES
    if flags:
        path, count = tmp_path / "release.so", max(LIVES // 10, 30)
        source = preload.SOURCES / "release.c"
        subprocess.run(
            [str(build.compiler()), *preload.SHARED, "-w", *flags, "-o", path, source], check=True
        )
    plain, none = lives(driver, count, dict(os.environ))
    by_pieces, some = lives(driver, count, preloaded(path))
    assert plain == by_pieces, "run one with `tell`, with the library and without, and diff"
    assert len(plain) == count
    assert none == 0
    assert some > count // 6, "the library had nothing to do: nothing was compared"


def test_lives_are_the_same_where_another_thread_gives_back(driver: Path) -> None:
    """Also MADV_DONTNEED, whose range stays mapped, and inherited."""
    count = max(LIVES // 3, 50)
    env = preloaded(library(), "background=1")
    plain, _ = lives(driver, count, dict(os.environ), "arena")
    by_pieces, some = lives(driver, count, env, "arena")
    assert plain == by_pieces
    assert some > count // 6, "the library had nothing to do: nothing was compared"


@pytest.mark.parametrize("background", [False, True])
def test_nobody_is_harmed_while_others_free(driver: Path, background: bool) -> None:
    """Neither who maps where something was just unmapped, nor a child that is forked meanwhile."""
    env = preloaded(library(), *(["background=1"] if background else []))
    done = subprocess.run([driver, "1", "threads", "500"], env=env, capture_output=True, text=True)
    assert done.stdout.startswith("harmed 0 kept 0 ")
    assert done.stdout.endswith("left 0\n")
    assert done.returncode == 0


def test_a_refused_munmap_has_lost_nothing(driver: Path) -> None:
    """In a process with as many VMAs as it may have."""
    said = [
        subprocess.run([driver, "1", "crowded"], env=env, capture_output=True, text=True).stdout
        for env in (dict(os.environ), preloaded(library()))
    ]
    assert said[0] == said[1]
    assert "middle -1 errno 12 lost 0 end 0" in said[0]


def run_verb(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ZAPLOCK, "run", *arguments], env={**os.environ, **env}, capture_output=True, text=True
    )


def test_a_python_program_frees_by_pieces_unchanged() -> None:
    done = run_verb("--release", "--", sys.executable, "-c", FREES)
    assert (done.stdout, done.stderr, done.returncode) == ("by pieces: 1\n", "", 0)


def test_a_childs_frees_as_well_and_small_ones_not() -> None:
    shell = f"exec {sys.executable} -c '{FREES}'"
    assert run_verb("--release", "--", "sh", "-c", shell).stdout == "by pieces: 1\n"
    assert run_verb("--release", "--from", "64M", "--", "sh", "-c", shell).stdout.endswith("0\n")


@pytest.mark.parametrize("background", [False, True])
def test_what_is_dropped_in_the_background_is_moved_away_and_stays_mapped(background: bool) -> None:
    more = ["--background"] if background else []
    done = run_verb("--release", *more, "--", sys.executable, "-c", DROPS)
    assert (done.stdout, done.stderr, done.returncode) == (f"{background} 0 b'new'\n", "", 0)


def test_the_program_is_this_process() -> None:
    """Its exit code, its signals, and the pipe that breaks are its own."""
    assert run_verb("--release", "--", "sh", "-c", "exit 3").returncode == 3
    ended = run_verb("--release", "--", "sh", "-c", "kill -TERM $$").returncode
    assert ended == -signal.SIGTERM
    asks = "import signal; print(open('/proc/self/status').read().split('SigIgn:')[1][:18])"
    ignored = run_verb("--release", "--", sys.executable, "-I", "-S", "-c", asks).stdout
    plain = subprocess.run([sys.executable, "-I", "-S", "-c", asks], capture_output=True, text=True)
    assert ignored == plain.stdout


def test_nothing_is_done_once_system_calls_are_restricted() -> None:
    """What a filter forbids may kill: from then on it makes no calls of its own."""
    restricts = "import ctypes\nctypes.CDLL(None).prctl(22, 9, 0, 0, 0)\n"  # refused, yet asked for
    done = run_verb("--release", "--", sys.executable, "-c", restricts + FREES)
    assert done.stdout == "by pieces: 0\n"


def test_other_libraries_stay_loaded_and_before_ours() -> None:
    env = environment(ReleaseSettings(), {"LD_PRELOAD": "/one.so /two.so", "A": "b"})
    assert env["LD_PRELOAD"] == f"/one.so:/two.so:{library()}"
    assert env["A"] == "b"
    again = environment(ReleaseSettings(), env)
    assert again["LD_PRELOAD"] == env["LD_PRELOAD"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "ls"], "what is it to be run with? give --release"),
        (["--release"], "no program to run: give one after --"),
        (["--release", "--", "no-such-program"], "'no-such-program' can't be run"),
        (["--release", "--from", "4K", "--", "ls"], "--from 4096 is less than 65536 bytes"),
        (["--release", "--max-stall", "1us", "--", "ls"], "--max-stall 1000 ns is less than"),
    ],
)
def test_what_cant_be_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_program_that_loads_nothing_is_refused(tmp_path: Path) -> None:
    source, program = tmp_path / "still.c", tmp_path / "still"
    source.write_text("int main(void) { return 0; }\n")
    cc = str(build.compiler())
    subprocess.run([cc, "-static", "-o", program, source], check=True)
    with pytest.raises(UserError, match="is statically linked: nothing can be loaded into it"):
        require_loading(str(program))
    subprocess.run([cc, "-o", program, source], check=True)
    assert require_loading(str(program)) == str(program)


def test_without_a_compiler_it_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "compiler", lambda: None)
    with pytest.raises(UserError, match="the preload library needs a C compiler: install one"):
        library()


def test_nothing_is_loaded_from_where_others_can_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lair = tmp_path / "lair"
    lair.mkdir()
    lair.chmod(0o777)
    monkeypatch.setenv("ZAPLOCK_CACHE", str(lair / "cache"))
    with pytest.raises(UserError, match="where others can replace what zaplock runs"):
        library()


def test_a_changed_library_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    path = library()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert library().read_bytes() == whole


def test_addresses_that_are_counted_are_not_moved() -> None:
    """Others could be refused theirs meanwhile (ulimit -v): it says so before the program runs."""
    verb = " ".join([*ZAPLOCK, "run", "--release", "--", "true"])
    library()
    done = subprocess.run(
        ["sh", "-c", f"ulimit -v 8000000; {verb}"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "addresses are limited (ulimit -v)" in done.stderr


def test_a_big_numpy_array_ends_by_pieces_without_a_handler() -> None:
    """Its memory is glibc's, whose free is stood before; in a thread of the library's own too."""
    array = (
        "import ctypes, numpy\n"
        'released = (ctypes.c_ulong * 2).in_dll(ctypes.CDLL(None), "zaplock_released")\n'
        "start, array = released[0], numpy.ones(1 << 26, 'u1')\n"
        "del array\n"
        "print(released[0] - start)\n"
    )
    for options in ([], ["--background"]):
        done = run_verb("--release", *options, "--", sys.executable, "-c", array)
        assert (done.stdout, done.returncode) == ("1\n", 0)
