"""Who stalls while other programs free memory, as they are and under `zaplock run --release`.

    python -m bench.preload                       C, Python and redis, 4 GiB each, three times
    python -m bench.preload --size 1G --repeat 1 --programs c,python

For each program: the worst stall of its other threads in ms (of redis: the slowest answer to
another client), as it is and with the library; the same before anything was freed ("idle", the
machine's own noise); how long freeing took; and whether what the program can see is the same.
Medians. Programs listen on a loopback port only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from zaplock.compiled.build import compiler
from zaplock.units import parse_size

RELEASE = [sys.executable, "-P", "-m", "zaplock", "run", "--release"]
PORT = 16391
UNMAPS = "retain:false,dirty_decay_ms:500"
PYTHON = """
import gc, mmap, sys, threading, time
way, length = sys.argv[1], int(sys.argv[2])
worst = over = 0

def stand_by():
    global worst
    while not over:
        began = time.monotonic_ns()
        mmap.mmap(-1, 4096).close()
        time.sleep(0.0005)
        worst = max(worst, time.monotonic_ns() - began - 500_000)

def mapped():
    return int(open("/proc/self/statm").read().split()[0])

before = mapped()
if way == "close":
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, length, 1 << 20):
        memory[at : at + (1 << 20)] = bytes(1 << 20)
else:
    memory = bytearray(length)
    for at in range(0, length, 1 << 20):
        memory[at : at + (1 << 20)] = bytes(1 << 20)
thread = threading.Thread(target=stand_by)
thread.start()
time.sleep(0.5)
idle, worst, began = worst, 0, time.monotonic_ns()
if way == "close":
    memory.close()
else:
    del memory
took = time.monotonic_ns() - began
time.sleep(0.02 if "background" not in sys.argv else 3)
over = 1
thread.join()
print(took, worst, 0, idle, 0, (mapped() - before) >> 12)
"""


class Run(NamedTuple):
    """What one run of a program told: times in ns, and what must not differ."""

    took: int
    stall: int
    idle: int
    seen: tuple[str, ...]


def parsed(line: str) -> Run:
    took, first, second, idle, *seen = line.split()
    return Run(int(took), max(int(first), int(second)), int(idle), tuple(seen))


def run_c(way: str, options: list[str], length: int, folder: Path) -> Run:
    program = folder / "subject"
    if not program.exists():
        source = Path(__file__).with_name("preload_subject.c")
        subprocess.run([str(compiler()), "-O2", "-pthread", "-o", program, source], check=True)
    return parsed(told([*options, str(program), way, str(length)]))


def run_python(way: str, options: list[str], length: int, _folder: Path) -> Run:
    late = ["background"] if "--background" in options else []
    return parsed(told([*options, sys.executable, "-c", PYTHON, way, str(length), *late]))


def told(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Client:
    """A client of redis that waits for each answer."""

    def __init__(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", PORT))
        self._answers = self._socket.makefile("rb")

    def ask(self, *words: bytes | str) -> bytes:
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        text = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%s" % (len(parts), text))
        answer = self._answers.readline().strip()
        if answer.startswith(b"$") and answer != b"$-1":
            return self._answers.read(int(answer[1:]) + 2)[:-2]
        return answer


@contextlib.contextmanager
def redis(options: list[str], folder: Path, malloc: str) -> Iterator[Client]:
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not there: apt-get install redis-server")
    command = [*options, program, "--port", str(PORT), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, env={**os.environ, "MALLOC_CONF": malloc}
    )
    try:
        for _ in range(100):
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                yield Client()
                break
    finally:
        server.terminate()
        server.wait()


def run_redis(way: str, options: list[str], length: int, folder: Path) -> Run:
    """A list of big values goes while another client writes; `way` is the command and MALLOC_CONF.

    UNLINK leaves it to redis's thread for that, DEL doesn't.
    """
    command, _, malloc = way.partition(" ")
    number = 66  # from 65 on UNLINK leaves it to the thread
    fill = f"local v = string.rep('x', {length // number}) "
    fill += f"for k = 1, {number} do redis.call('RPUSH', 'big', v) end return 1"
    with redis(options, folder, malloc) as client:
        client.ask("EVAL", fill, "0")
        idle = slowest(client, 1.0, lambda: None)
        began = time.monotonic_ns()
        stall = slowest(client, 5.0, lambda: client.ask(command, "big"))
        seen = [client.ask("DBSIZE"), client.ask("GET", "small7")[:8]]
        return Run(time.monotonic_ns() - began, stall, idle, tuple(map(str, seen)))


def slowest(client: Client, seconds: float, first: Callable[[], Any]) -> int:
    """Ask for something, then write keys for some seconds; return the slowest answer in ns."""
    end = time.monotonic() + seconds
    value = b"y" * (256 << 10)
    began = time.monotonic_ns()
    first()
    worst = time.monotonic_ns() - began  # whoever writes meanwhile waits as long
    k = 0
    while time.monotonic() < end:
        began = time.monotonic_ns()
        client.ask("SET", f"small{k % 500}", value)
        worst = max(worst, time.monotonic_ns() - began)
        k += 1
        time.sleep(0.0005)
    return worst


PROGRAMS: dict[str, list[tuple[str, Callable[..., Run], str, list[str]]]] = {
    "c": [
        ("C, free()", run_c, "free", []),
        ("C, munmap()", run_c, "munmap", []),
        ("C, madvise(MADV_DONTNEED)", run_c, "dontneed", []),
    ],
    "python": [
        ("Python, mmap.close()", run_python, "close", []),
        ("Python, del of a bytearray, --background", run_python, "del", ["--background"]),
    ],
    "redis": [
        ("redis, DEL, --background", run_redis, "DEL", ["--background"]),
        ("redis, DEL, jemalloc that unmaps, --background", run_redis, f"DEL {UNMAPS}",
         ["--background"]),
        ("redis, UNLINK", run_redis, "UNLINK", []),
        ("redis, UNLINK, jemalloc that unmaps", run_redis, f"UNLINK {UNMAPS}", []),
    ],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="4G")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--programs", default="c,python,redis")
    args = parser.parse_args()
    length = parse_size(args.size)
    print(f"| frees {args.size} | stall ms | with --release | times | idle ms | freeing ms | "
          "with --release | same |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name in args.programs.split(","):
        for title, run, way, options in PROGRAMS[name]:
            with tempfile.TemporaryDirectory() as folder:
                plain, eased = [], []
                for _ in range(args.repeat):
                    plain.append(run(way, [], length, Path(folder)))
                    eased.append(run(way, [*RELEASE, *options, "--"], length, Path(folder)))
            row(title, plain, eased)


def row(title: str, plain: list[Run], eased: list[Run]) -> None:
    before, after = (median(one.stall for one in runs) / 1e6 for runs in (plain, eased))
    idle = median(one.idle for one in [*plain, *eased]) / 1e6
    took, longer = (median(one.took for one in runs) / 1e6 for runs in (plain, eased))
    same = "yes" if {one.seen for one in plain} == {one.seen for one in eased} else "NO"
    times = before / max(after, 1e-3)
    figures = f"{before:.1f} | {after:.2f} | {times:.0f} | {idle:.2f} | {took:.0f} | {longer:.0f}"
    print(f"| {title} | {figures} | {same} |", flush=True)


if __name__ == "__main__":
    main()
