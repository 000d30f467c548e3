"""The agent's figures for Prometheus, with as many label values as there are few names.

A label has at most `MOST` values and a figure at most `MOST_SERIES` combinations of them; in every
further one all but the unit is "other". So no fleet of short-lived process names fills a time
series database, nor the agent's memory. Histograms of what a recording showed carry its name as an
exemplar (OpenMetrics).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from zaplock.errors import UserError
from zaplock.extras import needed

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MOST = 40
MOST_SERIES = 300
UNRECORDED = ("budget", "disk full", "spool", "store")
"""Why a trouble is not in the store."""
_BUCKETS = (1e-5, 1e-4, 1e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
_WAIT = ("unit", "process", "operation", "culprit", "culprit_operation", "reason")


class Bounded:
    """Label values, of which there are at most so many; the rest are "other"."""

    def __init__(self, most: int = MOST) -> None:
        self._known: dict[str, set[str]] = {}
        self._most = most

    def value(self, label: str, value: str) -> str:
        """Return the value to show."""
        known = self._known.setdefault(label, set())
        if value in known or len(known) < self._most:
            known.add(value)
            return value
        return "other"


class Metrics:
    """All figures of an agent. `registry` is what is served."""

    def __init__(self) -> None:
        with needed("the agent"):
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        self.registry: CollectorRegistry = CollectorRegistry()
        self._bounded = Bounded()
        self._series: dict[Any, set[tuple[str, ...]]] = {}

        def histogram(name: str, text: str, labels: tuple[str, ...]) -> Any:
            return Histogram(name, text, labels, buckets=_BUCKETS, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Any:
            return Gauge(name, text, registry=self.registry)

        self._queued = histogram(
            "zaplock_queued_seconds",
            "Waits in the queue of a watched process's mmap_lock, all of them while it watches.",
            ("unit", "process"),
        )
        self._waits = histogram(
            "zaplock_wait_seconds", "Waits for an mmap_lock in what was recorded.", _WAIT
        )
        self._holds = histogram(
            "zaplock_hold_seconds",
            "Holds of an mmap_lock of 1 ms or longer in what was recorded.",
            ("unit", "process", "operation"),
        )
        self._troubles = counter(
            "zaplock_troubles",
            "Of each recording, the culprits of waits that lasted too long.",
            "unit",
        )
        self.recordings = counter("zaplock_recordings", "Recordings put into the store.")
        self.unrecorded = counter(
            "zaplock_unrecorded_troubles", "Troubles without a recording, by why.", "why"
        )
        self.removed = counter("zaplock_recordings_removed", "Recordings beyond the budget.")
        self.lost = counter("zaplock_lost_events", "Events that the kernel lost.")
        self.meddled = counter(
            "zaplock_meddled", "How often somebody else changed the agent's tracing."
        )
        self.retries = counter("zaplock_store_retries", "Tries of the store that failed.")
        self.jumps = counter("zaplock_clock_jumps", "Jumps of the wall clock of over a second.")
        self.hooks = counter("zaplock_hook_failures", "Hook commands that failed.")
        self.targets = gauge("zaplock_watched_processes", "Processes that are watched.")
        self.unwatched = gauge(
            "zaplock_unwatched_processes", "Processes asked for beyond those that can be watched."
        )
        self.spooled = gauge("zaplock_spool_bytes", "Bytes that wait to be put into the store.")
        self.buffers = gauge("zaplock_buffer_bytes", "Bytes of the kernel's trace buffers.")

    def show_wait(self, row: dict[str, Any], recording: str) -> None:
        """Count a wait of a recording."""
        values = {
            "unit": row["unit"],
            "process": row["process"],
            "operation": row["operation"],
            "culprit": row["culprit_process"],
            "culprit_operation": row["culprit_operation"],
            "reason": row["reason"],
        }
        self._labelled(self._waits, values).observe(row["wait_ns"] / 1e9, {"recording": recording})

    def show_hold(self, row: dict[str, Any], recording: str) -> None:
        """Count a hold of a recording."""
        values = {name: row[name] for name in ("unit", "process", "operation")}
        self._labelled(self._holds, values).observe(row["hold_ns"] / 1e9, {"recording": recording})

    def begin(self, units: Iterable[str]) -> None:
        """Show as nought what may be counted later, of the `units` that are watched.

        To Prometheus the first step of a counter that was not there before is no increase.
        """
        for unit in units:
            self._labelled(self._troubles, {"unit": unit})
        for why in UNRECORDED:
            self.unrecorded.labels(why)

    def show_trouble(self, unit: str) -> None:
        """Count a trouble of a recording."""
        self._labelled(self._troubles, {"unit": unit}).inc()

    def show_queued(self, unit: str, process: str, wait_ns: int) -> None:
        """Count a wait that a contention event told."""
        values = {"unit": unit, "process": process}
        self._labelled(self._queued, values).observe(wait_ns / 1e9)

    def _labelled(self, metric: Any, values: dict[str, str]) -> Any:
        shown = {name: self._bounded.value(name, value) for name, value in values.items()}
        known = self._series.setdefault(metric, set())
        series = tuple(shown.values())
        if series not in known and len(known) >= MOST_SERIES:
            return metric.labels(**dict.fromkeys(shown, "other") | {"unit": shown["unit"]})
        known.add(series)
        return metric.labels(**shown)

    def serve(self, listen: str) -> None:
        """Serve the figures at HOST:PORT, in a thread. Raises UserError where that can't be."""
        from prometheus_client import start_http_server

        host, _, port = listen.rpartition(":")
        if not port.isdecimal() or not 0 <= int(port) < 1 << 16:
            raise UserError(f"--listen {listen!a} is not HOST:PORT, such as 127.0.0.1:9464")
        try:
            start_http_server(int(port), host or "127.0.0.1", self.registry)
        except OSError as error:
            raise UserError(
                f"nothing can be served at {listen} ({error.strerror}): give another --listen"
            ) from None
