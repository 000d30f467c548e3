"""Start a command that waits at a gate, so that its very first instruction is recorded.

A small Python waits for a byte and then becomes the command (execvp), so the process id is known,
and traced, before the command exists.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from zaplock.errors import UserError

_GATE = """
import os, sys
gate, complaint, *command = sys.argv[1:]
if not os.read(int(gate), 1):
    sys.exit(1)
os.set_inheritable(int(complaint), False)
os.close(int(gate))
try:
    os.execvp(command[0], command)
except OSError as error:
    os.write(int(complaint), str(error.strerror).encode())
    os._exit(127)
"""


class Command:
    """A command that has been started but waits; `open` lets it run."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = tuple(command)
        gate, self._gate = os.pipe()
        self._complaint, complaint = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GATE, str(gate), str(complaint), *command],
            pass_fds=(gate, complaint),
        )
        os.close(gate)
        os.close(complaint)
        self.pid = self._process.pid

    def open(self) -> None:
        """Let it run. Raises UserError where there is no such program."""
        os.write(self._gate, b"x")
        said = os.read(self._complaint, 200).decode()
        if said:
            self._process.wait()
            raise UserError(f"{self.command[0]!r} can't be run ({said}): give a program after --")

    def running(self) -> bool:
        """Say whether it still runs."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int:
        """As a shell has it: 128 + N where signal N ended it; 0 while it runs."""
        code = self._process.poll() or 0
        return 128 - code if code < 0 else code

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the gate; a command that was never let through ends, one that runs goes on."""
        os.close(self._gate)
        os.close(self._complaint)
