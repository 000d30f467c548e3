"""The zoo: an unprivileged user, and root who runs zaplock in that user's directory on his process.

Nothing of his is run, nothing is overwritten, nothing hangs, and no escape of his reaches root's
terminal. The user is `nobody`; his names, his files, his mounts (in a mount namespace of their own)
and his modules are as bad as can be.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray by another user"),
]
NOBODY = 65534
NAMES = (
    b"\xff\xfe\x80db",
    b"\x1b]52;c;eA==\x07",
    b"\x1b[2J\x1b[H",
    b"a\nnone lost",
    b"\xe2\x80\xaetxt.exe",
    b"\x9b31m\xc2\x9b",
    b"[/]:smile:",
    b"</script><b>",
    b"=cmd|'!A0",
    b") R 1 1 1",
)
SHADOWED = ("contextlib", "json", "argparse", "numpy", "polars", "rich", "zaplock", "gc", "select")

EVIL = """
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
__attribute__((noinline)) int the_function_of_an_enemy(size_t size) {
  char *memory = mmap(0, size, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(memory, size, MADV_NOHUGEPAGE);
  memset(memory, 1, size);
  int result = munmap(memory, size);
  __asm__ volatile("" ::: "memory");
  return result;
}
void work(void) {
  for (;;) {
    the_function_of_an_enemy(16 << 20);
    usleep(20000);
  }
}
"""
ENEMY = "the_function_of_an_enemy"
TRIES = 8
"""Until every program has been seen waiting or holding."""
LIVE = """
import ctypes, mmap, os, sys, threading, time
name = bytes.fromhex(sys.argv[1])
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))  # here and not before: he may not be let into Python's own directory
libc = ctypes.CDLL(None)
libc.prctl(15, name[:15])
if sys.argv[2] == "fork":
    for _ in range(2):
        if os.fork() == 0:
            break
def work():
    libc.prctl(15, name[:15])
    while True:
        with mmap.mmap(-1, 1 << 16) as area:
            for at in range(0, 1 << 16, 4096):
                area[at] = 1
        time.sleep(0.05)
if sys.argv[2].startswith("/"):
    work = ctypes.CDLL(sys.argv[2]).work
threading.Thread(target=work, daemon=True).start()
print("on", flush=True)
work()
"""


@pytest.fixture
def lair() -> Iterator[Path]:
    """Make the user's directory: his modules, his links, and files that are root's alone.

    It is in a folder that stays open to him: any run of pytest may close pytest's own.
    """
    with tempfile.TemporaryDirectory(prefix="zaplock-lair-") as name:
        yield made_in(Path(name))


def made_in(folder: Path) -> Path:
    folder.chmod(0o755)
    (folder / "precious").write_text("root's")
    (folder / "precious").chmod(0o600)
    place = folder / "lair"
    place.mkdir()
    for module in SHADOWED:
        trap = f"open({str(folder / 'sprung')!r}, 'a').write('uid %d' % __import__('os').getuid())"
        (place / f"{module}.py").write_text(trap)
    for name in ("page.html", "out.pftrace", "out.svg", "trace.txt"):
        (place / name).symlink_to("../precious")
    (place / "manifest.json").symlink_to("/dev/zero")
    for one in (place, *place.iterdir()):
        os.lchown(one, NOBODY, NOBODY)
    return place


def zaplock(lair: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a verb as root, standing in the user's directory."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [str(Path(sys.executable).parent / "zaplock"), *arguments]
    return subprocess.run(command, cwd=lair, capture_output=True, env=environment)


def harmless(lair: Path, done: subprocess.CompletedProcess[bytes], *codes: int) -> None:
    assert done.returncode in codes, done.stderr
    for stream in (done.stdout, done.stderr):
        text = stream.decode()  # strictly: what is no UTF-8 would raise here
        assert all(char.isprintable() or char in "\n\t" for char in text), text
        assert "Traceback" not in text
    assert not (lair.parent / "sprung").exists(), (lair.parent / "sprung").read_text()
    assert (lair.parent / "precious").read_text() == "root's"


@contextlib.contextmanager
def the_process_of(name: bytes, *, how: str = "") -> Iterator[int]:
    """Run a process of his by that name, which maps and unmaps memory in two threads."""
    command = [sys.executable, "-I", "-S", "-c", LIVE, name.hex(), how, str(NOBODY)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


SHOWN = (rb"\xff\xfe\x80db", rb"\x1b]52;c;eA==", rb"a\nnone lost", rb"\u202etxt.exe")


def test_processes_of_any_name_are_recorded_and_shown(lair: Path) -> None:
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(the_process_of(name)) for name in NAMES]
        harmless(lair, zaplock(lair, "why", "-p", str(pids[0]), "-d", "300ms"), 0)
        harmless(lair, zaplock(lair, "why", "-p", str(pids[1]), "-d", "300ms"), 0)
        harmless(lair, zaplock(lair, "top", "-n", "1", "-i", "300ms"), 0)
        done = zaplock(lair, "record", "-p", str(pids[0]), "-d", "200ms", "-o", "one.zaplock")
        harmless(lair, done, 0)
        missing = set(SHOWN)
        for number in range(6):  # who waits in half a second, and is told of, is for the kernel
            file = f"all-{number}.zaplock"
            harmless(lair, zaplock(lair, "record", "-d", "500ms", "-o", file), 0)
            assert (lair / file).stat().st_mode & 0o77 == 0
            reported = zaplock(lair, "report", file, "--top", "50")
            harmless(lair, reported, 0)
            missing -= {shown for shown in SHOWN if shown in reported.stdout}
            if not missing:
                break
    assert not missing


def test_his_names_break_no_recording_of_somebody_elses_children(lair: Path) -> None:
    with the_process_of(NAMES[0], how="fork"), the_process_of(b"db") as mine:
        done = zaplock(lair, "record", "-p", str(mine), "--children", "-d", "300ms", "-o", "c.z")
        harmless(lair, done, 0)


def test_maps_of_functions_that_would_hang_or_lead_elsewhere(lair: Path) -> None:
    """A FIFO, a sparse file of 100 GB and a link to what is root's, each where a runtime writes."""
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(the_process_of(b"jit")) for _ in range(3)]
        maps = [Path(f"/tmp/perf-{pid}.map") for pid in pids]
        for one in maps:
            one.unlink(missing_ok=True)  # of whoever had this number before
            stack.callback(one.unlink, missing_ok=True)
        os.mkfifo(maps[0])
        with maps[1].open("wb") as sparse:
            sparse.truncate(100 << 30)
        maps[2].symlink_to(lair.parent / "precious")
        for one in maps:
            os.lchown(one, NOBODY, NOBODY)
        (lair.parent / "precious").write_text("root's")
        them = [word for pid in pids for word in ("-p", str(pid))]
        done = zaplock(lair, "record", *them, "--stacks", "-d", "300ms", "-o", "x.zaplock")
        harmless(lair, done, 0)
    reported = zaplock(lair, "report", "x.zaplock", "--folded", "stacks.txt")
    harmless(lair, reported, 0)
    assert b"root's" not in (lair / "stacks.txt").read_bytes()


def huge_sections(raw: bytearray) -> None:
    at, size = section_headers(raw)
    for section in range(at, at + size, 64):
        raw[section + 24 : section + 40] = b"\xff" * 16  # where each lies, and how long it is


def sections_of_nowhere(raw: bytearray) -> None:
    raw[40:48] = struct.pack("<Q", (1 << 64) - 64)


def absurd_symbols(raw: bytearray) -> None:
    at, size = section_headers(raw)
    for section in range(at, at + size, 64):
        kind, *_, offset, length = struct.unpack_from("<II4Q", raw, section)[1:]
        if kind in (2, 11):
            for symbol in range(offset, offset + length, 24):
                raw[symbol : symbol + 4] = b"\xff" * 4
                raw[symbol + 16 : symbol + 24] = b"\xff" * 8


def names_with_escapes(raw: bytearray) -> None:
    evil = b"\x1b]52;c;eA==\x07\n\x9b\xff;\r=x"
    raw[:] = raw.replace(ENEMY.encode(), evil.ljust(len(ENEMY), b"!"))


def section_headers(raw: bytearray) -> tuple[int, int]:
    return struct.unpack_from("<Q", raw, 40)[0], 64 * struct.unpack_from("<H", raw, 60)[0]


def unchanged(raw: bytearray) -> None:
    pass


def test_programs_that_are_broken_while_they_run(lair: Path) -> None:
    """Each is a process's own code, broken after it was loaded; a whole one is named."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (lair / "evil.c").write_text(EVIL)
    flags = ["-O1", "-fno-omit-frame-pointer", "-fPIC", "-shared"]
    damages = (huge_sections, sections_of_nowhere, absurd_symbols, names_with_escapes, unchanged)
    with contextlib.ExitStack() as stack:
        pids = []
        for damage in damages:
            library = lair / f"{damage.__name__}.so"
            subprocess.run(["gcc", *flags, "-o", library, lair / "evil.c"], check=True)
            os.chown(library, NOBODY, NOBODY)
            pids.append(stack.enter_context(the_process_of(b"elf", how=str(library))))
            raw = bytearray(library.read_bytes())
            damage(raw)
            with library.open("r+b") as file:
                file.write(raw)
        them = [word for pid in pids for word in ("-p", str(pid))]
        wanted = {f"{damage.__name__}.so" for damage in damages}
        wanted |= {f"{ENEMY} (unchanged.so)", "eA=="}
        for number in range(TRIES):
            name = f"{number}.zaplock"
            done = zaplock(lair, "record", *them, "--stacks", "-d", "1s", "-o", name)
            harmless(lair, done, 0)
            harmless(lair, zaplock(lair, "report", name, "--folded", f"{number}.folded"), 0)
            folded = (lair / f"{number}.folded").read_text()
            assert all(char.isprintable() or char == "\n" for char in folded)
            wanted = {one for one in wanted if one not in folded}
            if not wanted:
                break
    assert not wanted, "never seen on a stack"


def test_mounts_of_any_name(lair: Path) -> None:
    """As seen from inside a mount namespace where he could mount: the worst place to look from."""
    bad = os.fsencode(lair) + b"/\xff\x1b]0;x\x07 \n\\040"
    os.mkdir(bad)
    script = (
        "import os, subprocess, sys\n"
        "bad = bytes.fromhex(sys.argv[1])\n"
        "subprocess.run([b'mount', b'-t', b'tmpfs', b'none', bad], check=True)\n"
        "sys.exit(subprocess.run(sys.argv[2:]).returncode)\n"
    )
    program = str(Path(sys.executable).parent / "zaplock")
    for verb in (["doctor"], ["record", "-d", "200ms", "-o", "m.zaplock"]):
        command = ["unshare", "-m", sys.executable, "-I", "-c", script, bad.hex(), program, *verb]
        done = subprocess.run(command, cwd=lair, capture_output=True)
        harmless(lair, done, 0, 1)


def test_his_links_are_not_written_through(lair: Path) -> None:
    with the_process_of(b"db") as pid:
        done = zaplock(lair, "record", "-p", str(pid), "-d", "300ms", "-o", "x.zaplock")
    harmless(lair, done, 0)
    for option, name in (("--html", "page.html"), ("--perfetto", "out.pftrace")):
        harmless(lair, zaplock(lair, "report", "x.zaplock", option, name), 2)
    harmless(lair, zaplock(lair, "replay", "x.zaplock", "--plot", "out.svg"), 2)
    (lair / "etc").mkdir()
    (lair / "out").symlink_to("etc")
    os.lchown(lair / "out", NOBODY, NOBODY)
    harmless(lair, zaplock(lair, "report", "x.zaplock", "--csv", "out"), 2)
    harmless(lair, zaplock(lair, "record", "-d", "100ms", "-o", "out/x.zaplock"), 2)
    assert list((lair / "etc").iterdir()) == []
    harmless(lair, zaplock(lair, "report", "."), 2)


@pytest.mark.parametrize(
    "verb",
    [
        ["measure", "4M", "--bystanders", "fault,proc"],
        ["compare", "4M", "--design", "linux-6.18", "--bystanders", "fault,proc"],
        ["check", "expand", "--design", "rfc-v6"],
        ["designs"],
        ["calibrate", "--rounds", "1", "--scale", "16", "-o", "machine.toml"],
    ],
)
def test_his_modules_are_not_imported(verb: list[str], lair: Path) -> None:
    harmless(lair, zaplock(lair, *verb), 0, 1, 2)


def test_his_modules_are_not_imported_by_advise(lair: Path) -> None:
    with the_process_of(b"db") as pid:
        done = zaplock(lair, "record", "-p", str(pid), "-d", "300ms", "-o", "x.zaplock")
    harmless(lair, done, 0)
    harmless(lair, zaplock(lair, "advise", "x.zaplock"), 0, 2)


def test_a_token_of_his_runs_nothing(lair: Path) -> None:
    evil = lair / "evil.py"
    evil.write_text(f"open({str(lair.parent / 'sprung')!r}, 'w').write('x')\n")
    done = zaplock(lair, "check", "--replay", f"expand@{evil}:X~a1")
    harmless(lair, done, 2)
    assert re.search(rb"--design .*evil\.py:X", done.stderr)


def test_his_cache_is_not_used(lair: Path) -> None:
    (lair / "cache").mkdir()
    os.chown(lair / "cache", NOBODY, NOBODY)
    environment = {**os.environ, "ZAPLOCK_CACHE": str(lair / "cache")}
    program = str(Path(sys.executable).parent / "zaplock")
    done = subprocess.run([program, "measure", "4M", "--kernel", "debian:6.1"], cwd=lair,
                          capture_output=True, env=environment)  # fmt: skip
    harmless(lair, done, 2)
    assert b"others can replace what zaplock runs" in done.stderr
