"""Parse tables in a process of its own, under limits.

A native parser answers some bad tables by asking for absurd amounts of memory or by ending its
process, which no `except` sees. A table of version 1 or 2 has no sum, so any damage gets as far as
the parser; a later one's sum says what was written, not by whom. So that process isn't this one:
what ends it, or takes more memory or CPU time than a good table of that size, is damage.

The process is started for the first table, serves all that follow, and ends with this one. It
imports arro3 from where this process has it, and nothing from anywhere else (-I, -S). Beside
150 ms at the start it costs a copy of each table: 10 million events take 3.3 s of CPU time
instead of 1.5.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arro3.io
from arro3.core import Table

_PROGRAM = Path(__file__).with_name("parser_process.py")
_ROOM = 256 << 20
_BYTES_A_ROW = 500
_ROWS_A_SECOND = 200_000
_BYTES_A_SECOND = 4 << 20
_LEAST_S = 4
_WALL = 20
"""So many times its CPU time may an answer take, on a machine that does other work."""


@dataclass(slots=True)
class TableParser:
    """The other process; `look` and `parse` raise ValueError where the table breaks it."""

    _process: subprocess.Popen[bytes] | None = None
    _socket: socket.socket | None = None
    _of: int = 0
    """Whose it is: after a fork it stays the parent's."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, content: bytes) -> tuple[int, frozenset[str]]:
        """Return how many rows a table says it has, and the names of its columns."""
        answer, _ = self._asked(content, 0, {"ask": "look"})
        return int(answer["rows"]), frozenset(answer["columns"])

    def parse(self, content: bytes, rows: int, columns: list[str]) -> Table:
        """Return some columns of a table of so many rows."""
        _, parsed = self._asked(content, rows, {"ask": "parse", "columns": columns})
        return arro3.io.read_ipc(io.BytesIO(parsed)).read_all()

    def _asked(
        self, content: bytes, rows: int, request: dict[str, Any]
    ) -> tuple[dict[str, Any], bytes]:
        cpu_s = _LEAST_S + rows // _ROWS_A_SECOND + len(content) // _BYTES_A_SECOND
        allowed = _ROOM + rows * _BYTES_A_ROW + 4 * len(content)
        with self._lock, _memory_file(content) as file:
            answer = self._answer({**request, "cpu_s": cpu_s, "bytes": allowed}, file)
            if "error" in answer:
                raise ValueError(answer["error"])
            return answer, os.pread(file, os.fstat(file).st_size, 0)

    def _answer(self, request: dict[str, Any], file: int) -> dict[str, Any]:
        here = self._started()
        here.settimeout(request["cpu_s"] * _WALL)
        try:
            socket.send_fds(here, [json.dumps(request).encode()], [file])
            if answer := here.recv(1 << 20):
                return dict(json.loads(answer))
        except (ConnectionError, TimeoutError):
            pass
        except BaseException:  # an answer that nobody waited for must not be the next one's
            self.end()
            raise
        raise ValueError(self._why_not())

    def _why_not(self) -> str:
        process = self._process
        assert process is not None
        if self._socket is not None:
            self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        code = process.poll()
        self.end()
        if code is None or code == -signal.SIGXCPU:
            return "reading it takes too long"
        if code == -signal.SIGKILL:
            return "the process that parses it was killed, perhaps for want of memory: try again"
        return "it breaks the parser" if code < 0 else f"the parser ended with {code}"

    def _started(self) -> socket.socket:
        if self._socket is None or self._process is None or self._of != os.getpid():
            self._start()
        assert self._socket is not None
        return self._socket

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        home = str(Path(arro3.io.__file__).parents[2])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), str(theirs.fileno()), home],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._socket, self._of = ours, os.getpid()

    def end(self) -> None:
        """End the process; the next question starts another."""
        if self._of == os.getpid():
            if self._socket is not None:
                self._socket.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
        self._process = self._socket = None


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    file = os.memfd_create("zaplock-table")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(file, view) :]
        yield file
    finally:
        os.close(file)


PARSER = TableParser()
atexit.register(PARSER.end)
