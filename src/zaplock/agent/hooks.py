"""The command that is run on each trouble: beside the agent, and for a short time only."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from zaplock.agent.children import ChildProcess, begin, kill
from zaplock.agent.log import Say
from zaplock.agent.metrics import Metrics
from zaplock.agent.settings import SECOND

_PATIENCE_NS = 30 * SECOND


class Hooks:
    """The hooks that run. Every one that fails, or takes too long, is a figure and a line."""

    def __init__(self, command: str, metrics: Metrics, say: Say) -> None:
        self._command, self._metrics, self._say = command, metrics, say
        self._running: list[tuple[ChildProcess, int]] = []

    @property
    def running(self) -> bool:
        """Whether any runs."""
        return bool(self._running)

    def run(self, trouble: dict[str, Any]) -> None:
        """Run the command, if there is one, and tell it the trouble."""
        if not self._command:
            return
        try:
            hook = begin(self._command, trouble, stdout=subprocess.DEVNULL)
        except OSError as error:
            self._failed(why=error.strerror)
            return
        self._running.append((hook, time.monotonic_ns() + _PATIENCE_NS))

    def look_after(self, now_ns: int) -> None:
        """Take leave of those that have ended; kill those that take too long."""
        still = []
        for hook, by_ns in self._running:
            if hook.poll() is None and now_ns <= by_ns:
                still.append((hook, by_ns))
            elif hook.returncode is None:
                kill(hook)
                self._failed(why=f"it took over {_PATIENCE_NS // SECOND} s")
            elif hook.returncode:
                self._failed(code=hook.returncode)
        self._running = still

    def stop(self) -> None:
        """Kill those that still run."""
        for hook, _ in self._running:
            kill(hook)
            self._failed(why="the agent ends")
        self._running = []

    def _failed(self, **how: Any) -> None:
        self._metrics.hooks.inc()
        self._say("hook failed", **how)
