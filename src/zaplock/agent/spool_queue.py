"""What waits in the spool goes into the store: a child each (`make_recording`), one at a time.

Everything of zaplock that is heavy runs there, at a low priority. What a child found comes back as
JSON: it is counted, logged and handed to the hooks. A folder that can't be put is tried again,
after the others: one that no child can read keeps nothing from the store.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zaplock.agent import spool
from zaplock.agent.children import ChildProcess, begin, kill
from zaplock.agent.hooks import Hooks
from zaplock.agent.log import Say
from zaplock.agent.metrics import Metrics
from zaplock.agent.settings import SECOND, Settings
from zaplock.agent.spool import Spool
from zaplock.untrusted_names import visible

_PATIENCE_NS = 120 * SECOND
_RETRY_NS = 30 * SECOND


class Shipping:
    """The child that ships a folder of the spool, and whose turn is next."""

    def __init__(
        self, settings: Settings, spooled: Spool, metrics: Metrics, hooks: Hooks, say: Say
    ) -> None:
        self._settings, self._spool, self._metrics = settings, spooled, metrics
        self._hooks, self._say = hooks, say
        self._child: tuple[ChildProcess, Path, int] | None = None
        self._not_before_ns = 0
        self._failures = Counter[Path]()

    @property
    def busy(self) -> bool:
        """Whether a child is at work, or one could be now."""
        rests = time.monotonic_ns() < self._not_before_ns
        return self._child is not None or (not rests and bool(self._spool.waiting()))

    def look_after(self, now_ns: int) -> None:
        """See to the child, and begin the next."""
        self._metrics.spooled.set(self._spool.size)
        if self._child is not None:
            self._see_to(*self._child, now_ns)
        if self._child is None and now_ns >= self._not_before_ns:
            self._next(now_ns)

    def stop(self) -> None:
        """Kill the child; its folder waits for the next agent."""
        if self._child:
            kill(self._child[0])
            self._child = None

    def _next(self, now_ns: int) -> None:
        waiting = self._spool.waiting()
        if not waiting:
            return
        folder = min(waiting, key=lambda one: (self._failures[one], one))
        try:
            self._child = self._begun(folder), folder, now_ns + _PATIENCE_NS
        except OSError as error:
            self._not_stored(folder, error.strerror or str(error), now_ns)

    def _begun(self, folder: Path) -> ChildProcess:
        settings = {**asdict(self._settings), "spool": str(self._settings.spool)}
        with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
            return begin(
                [sys.executable, "-m", "zaplock.agent.make_recording", str(folder)],
                settings,
                stdout=out,
                stderr=err,
                env={**os.environ, "POLARS_MAX_THREADS": "1"},
            )

    def _see_to(self, child: ChildProcess, folder: Path, by_ns: int, now_ns: int) -> None:
        if child.poll() is None:
            if now_ns <= by_ns:
                return
            kill(child)
        self._child = None
        if child.returncode == 0:
            self._tell(json.loads((folder / "out").read_bytes()))
            spool.discard(folder)
            del self._failures[folder]
            return
        why = visible((folder / "err").read_text(errors="replace").strip().rpartition("\n")[2])
        self._not_stored(folder, why or f"exit code {child.returncode}", now_ns)

    def _not_stored(self, folder: Path, why: str, now_ns: int) -> None:
        self._metrics.unrecorded.labels("store").inc()
        self._say("not stored", folder=folder.name, why=why, tries_again="yes")
        self._failures[folder] += 1
        self._not_before_ns = now_ns + _RETRY_NS

    def _tell(self, told: dict[str, Any]) -> None:
        """Count what a recording showed, write the log and run the hooks."""
        metrics, name = self._metrics, told["recording"]
        metrics.recordings.inc()
        metrics.retries.inc(told["retries"])
        metrics.removed.inc(told["removed"])
        for row in told["waits"]:
            metrics.show_wait(row, name)
        for row in told["holds"]:
            metrics.show_hold(row, name)
        if told["untold"]:
            self._say("waits and holds not in the figures", recording=name, count=told["untold"])
        for row in told["troubles"]:
            metrics.show_trouble(row["unit"])
            self._say("trouble", host=self._settings.host, **row)
            self._hooks.run(row)
