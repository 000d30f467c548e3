"""What an agent is put beside: redis, PostgreSQL and a Python service, each under load.

All of it is Debian's and the standard library's, listens on loopback only, keeps its data in a
folder of its own and ends with its block. Every load is a closed loop: the next request goes when
the last one was answered.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
NEEDED = ("redis-server", "redis-benchmark")

SERVICE = r"""
import ctypes, http.server, mmap, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mremap.argtypes = libc.munmap.argtypes + [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
READ, RW, PRIVATE_ANONYMOUS_NORESERVE = 1, 3, 0x4022

def populated(size):
    area = libc.mmap(None, size, RW, PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    libc.madvise(area, size, 15)  # MADV_NOHUGEPAGE
    libc.memchr(area, 1, size)  # maps the zero page, under the mapping's own lock
    return area

def stall(operation, size):
    area = populated(size)
    time.sleep(0.05)
    worst[0] = 0
    if operation == "munmap":
        libc.munmap(area, size)
    elif operation == "mprotect":
        libc.mprotect(area, size, READ)
    elif operation == "mremap":  # off by a page: entry by entry, not table by table
        to = libc.mmap(None, size + (4 << 20), 0, PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
        libc.mremap(area, size, size, 3, (to + (2 << 20) & -(2 << 20)) + 4096)
    time.sleep(0.02)
    lasted = worst[0]
    if operation == "mremap":
        libc.munmap(to, size + (4 << 20))
    elif operation == "mprotect":
        libc.munmap(area, size)
    return lasted

worst = [0]
def other():
    while True:
        begin = time.monotonic_ns()
        libc.munmap(libc.mmap(None, 4096, RW, PRIVATE_ANONYMOUS_NORESERVE, -1, 0), 4096)
        worst[0] = max(worst[0], time.monotonic_ns() - begin)
        time.sleep(0.002)

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = bytes(300_000)[:1000]  # what malloc maps and unmaps
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
threading.Thread(target=other, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    operation, mib = line.split()
    begun = time.time_ns()
    print(stall(operation, int(mib) << 20), begun, time.time_ns(), flush=True)
"""

CLIENT = r"""
import http.client, sys, threading, time
count = [0] * 2
def ask(number):
    link = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    while True:
        link.request("GET", "/")
        link.getresponse().read()
        count[number] += 1
for number in range(len(count)):
    threading.Thread(target=ask, args=(number,), daemon=True).start()
for _ in sys.stdin:
    print(sum(count), flush=True)
"""


def missing() -> str:
    """Name what is not installed here, "" for nothing."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    lacking += [] if POSTGRES else ["postgresql"]
    return ", ".join(lacking)


def free_port() -> int:
    """Find a port of loopback that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Services:
    """The three, and what load each is under."""

    folder: Path
    pids: list[int] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    service: subprocess.Popen[str] | None = None

    def stall(self, operation: str, mib: int) -> tuple[int, int, int]:
        """Let the service hold its lock; give another thread's longest call and the wall clock's
        beginning and end (ns)."""
        assert self.service
        assert self.service.stdin
        assert self.service.stdout
        self.service.stdin.write(f"{operation} {mib}\n")
        self.service.stdin.flush()
        lasted, begun, ended = map(int, self.service.stdout.readline().split())
        return lasted, begun, ended

    @contextlib.contextmanager
    def load(self) -> Iterator[Load]:
        """Load all three; the block may ask how much was done."""
        with contextlib.ExitStack() as stack:
            yield Load(self, stack)


class Load:
    """The clients, and how many requests each service has answered."""

    def __init__(self, services: Services, stack: contextlib.ExitStack) -> None:
        self._ports = services.ports
        redis = ["redis-benchmark", "-p", str(self._ports["redis"]), "-t", "set", "-c", "2"]
        stack.enter_context(_running([*redis, "-n", "1000000000", "-q"]))
        self._database = _as_client(self._ports["postgres"])
        pgbench = [str(POSTGRES[-1] / "pgbench"), "-n", "-S", "-c", "2", "-T", "86400"]
        stack.enter_context(_running(pgbench, env=self._database))
        client = [sys.executable, "-c", CLIENT, str(self._ports["service"])]
        self._client = stack.enter_context(
            _running(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        before = self.done()
        time.sleep(2)
        idle = [name for name, count in self.done().items() if count <= before[name] + 10]
        assert not idle, f"no load on {idle}"

    def done(self) -> dict[str, int]:
        """How many requests each has answered so far."""
        info = _out(["redis-cli", "-p", str(self._ports["redis"]), "info", "stats"])
        sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'"
        self._client.stdin.write("\n")
        self._client.stdin.flush()
        return {
            "redis": int(re.findall(r"total_commands_processed:(\d+)", info)[0]),
            "postgres": int(_out([str(POSTGRES[-1] / "psql"), "-Atc", sql], self._database)),
            "service": int(self._client.stdout.readline()),
        }

    def rates(self, seconds: float) -> dict[str, float]:
        """Requests a second of each, over so long."""
        before, begun = self.done(), time.monotonic()
        time.sleep(seconds)
        after, span = self.done(), time.monotonic() - begun
        return {name: (after[name] - before[name]) / span for name in after}


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Services]:
    """Run the three on loopback, each with its data under `folder`."""
    made = Services(folder, ports={name: free_port() for name in ("redis", "postgres", "service")})
    with contextlib.ExitStack() as stack:
        (folder / "redis").mkdir()
        redis = ["redis-server", "--port", str(made.ports["redis"]), "--bind", "127.0.0.1"]
        redis += ["--save", "", "--dir", str(folder / "redis")]
        made.pids.append(stack.enter_context(_running(redis)).pid)
        made.pids += stack.enter_context(_postgres(folder / "postgres", made.ports["postgres"]))
        service = [sys.executable, "-c", SERVICE, str(made.ports["service"])]
        made.service = stack.enter_context(
            _running(service, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert made.service.stdout.readline() == "ready\n"
        made.pids.append(made.service.pid)
        yield made


@contextlib.contextmanager
def _postgres(folder: Path, port: int) -> Iterator[list[int]]:
    folder.mkdir()
    shutil.chown(folder, "postgres")
    for above in folder.parents:  # pytest's folders are the owner's alone
        if above.stat().st_uid == os.geteuid() and str(above) not in ("/", "/tmp"):
            above.chmod(above.stat().st_mode | 0o011)
    as_postgres = {"user": "postgres", "cwd": folder}
    tools = POSTGRES[-1]
    data = str(folder / "data")
    init = [str(tools / "initdb"), "-D", data, "-A", "trust", "-N"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, **as_postgres)  # type: ignore[call-overload]
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder)]
    with _running([str(tools / "postgres"), "-D", data, *options], **as_postgres) as server:
        client = _as_client(port)
        while subprocess.run([str(tools / "pg_isready"), "-q"], env=client).returncode:
            time.sleep(0.1)
        filled = [str(tools / "pgbench"), "-i", "-s", "2"]
        subprocess.run(filled, env=client, check=True, capture_output=True)
        yield [server.pid]


def _as_client(port: int) -> dict[str, str]:
    """The environment of PostgreSQL's own clients."""
    named = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres"}
    return {**os.environ, **named, "PGDATABASE": "postgres"}


@contextlib.contextmanager
def _running(command: list[str], **more: object) -> Iterator[subprocess.Popen[str]]:
    more.setdefault("stdout", subprocess.DEVNULL)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **more) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT if "postgres" in command[0] else signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _out(command: list[str], env: dict[str, str] | None = None) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
