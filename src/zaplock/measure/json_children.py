"""Processes that speak JSON lines: a fresh interpreter for each part of an experiment.

The measured process is never the caller's own: a notebook's or a test's memory would be measured
with it, and an exit could not be measured at all. A child runs `python -m MODULE` with nothing but
the standard library, reads one JSON line as its orders, writes JSON lines, and dies with its parent
(PR_SET_PDEATHSIG, and its input ends). It offers itself first to the OOM killer.

It never imports from the directory that it is started in (-P): that may be another user's, who
puts a `contextlib.py` there. Nor from anywhere else that the environment names (PYTHONPATH and its
like).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from zaplock.errors import UserError
from zaplock.measure import syscalls


class ChildError(UserError):
    """Report that a process of the experiment failed, or did not answer in time."""


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _start(module: str) -> subprocess.Popen[bytes]:
    path = str(Path(__file__).parents[2])
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**_plain_environment(), "PYTHONPATH": path, "ZAPLOCK_PARENT": str(os.getpid())},
        )
    except OSError as error:
        why = f"{error.strerror} ({sys.executable})"
        raise ChildError(f"the measured process can't be started: {why}") from None


class Child:
    """One process of an experiment; leave the `with` block and it is gone."""

    def __init__(self, module: str, orders: dict[str, Any] | None = None) -> None:
        self.process = _start(module)
        self.pid = self.process.pid
        self._seen = b""
        if orders is not None:
            self.send(orders)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def send(self, message: dict[str, Any]) -> None:
        """Send one line; a child that is gone is noticed when its answer is read."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def receive(self, deadline: float) -> dict[str, Any]:
        """Return the next line; raise ChildError at its death or `deadline` (time.monotonic)."""
        assert self.process.stdout is not None
        while b"\n" not in self._seen:
            left = deadline - time.monotonic()
            ready = select.select([self.process.stdout], [], [], max(0.0, left))[0]
            if not ready:
                raise ChildError(
                    "the experiment passed its time limit: raise --timeout or take a smaller size"
                )
            piece = os.read(self.process.stdout.fileno(), 1 << 20)
            if not piece:
                raise ChildError(self._death())
            self._seen += piece
        line, _, self._seen = self._seen.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def _death(self) -> str:
        assert self.process.stderr is not None
        last = self.process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        code = self.process.wait()
        if code == -9:
            return (
                "the measured process was killed, it seems for lack of memory: take a smaller size"
            )
        return f"the measured process ended with code {code}: {' '.join(last)}"


def die_with_parent() -> None:
    """Arrange (in the child) to die with the parent and to go first when memory ends."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    if os.getppid() != int(os.environ.get("ZAPLOCK_PARENT", os.getppid())):
        os._exit(1)  # the parent died before the line above
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def quiet_interpreter() -> None:
    """Keep Python's own work out of the timed parts: no collection, a fast hand-over of the GIL."""
    gc.disable()
    sys.setswitchinterval(1e-5)


def read_orders() -> dict[str, Any]:
    """Return (in the child) the next line from the parent; leave quietly when there is none."""
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    orders: dict[str, Any] = json.loads(line)
    return orders


def tell(**message: Any) -> None:
    """Send (in the child) one line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
