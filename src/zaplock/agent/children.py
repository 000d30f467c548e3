"""The agent's child processes: each in a session of its own, told something as JSON on stdin.

So a Ctrl-C or a hangup of the terminal is for the agent alone, which ends them in good order, and
killing one reaches what it has started itself, as a shell does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

ChildProcess = subprocess.Popen[bytes]


def begin(command: str | Sequence[str], told: Any, **more: Any) -> ChildProcess:
    """Begin a child (a text is for the shell) and tell it; `more` is of `subprocess.Popen`.

    Raises OSError where it can't be begun. One that ends without reading is judged by its code.
    """
    child = subprocess.Popen(
        command,
        shell=isinstance(command, str),
        stdin=subprocess.PIPE,
        start_new_session=True,
        **more,
    )
    assert child.stdin
    with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
        stdin.write(json.dumps(told).encode())
    return child


def kill(child: ChildProcess) -> None:
    """Kill a child that was not waited for yet, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
