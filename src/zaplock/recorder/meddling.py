"""Notice that somebody else has meddled with a recording's instances, and say since when.

Whoever is root can switch an instance's tracing off, clear its buffers, change its clock or its
filters, or disable its events: another tracer that resets all it finds does. The kernel counts
nothing as lost then. So what was set is compared twice a second with what is set; where it differs,
everything since the last look is a gap, what was set is set again, and the recording's notes tell.

Whether the buffers were cleared is seen by their counters of events that were read or overwritten,
which otherwise only grow. Not noticed: a clearing before anything was read from a CPU's buffer, and
a setting that was changed and changed back between two looks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from zaplock.recorder.buffers import per_cpu
from zaplock.recorder.lock_events import BY_TRACEPOINTS, LockEvents
from zaplock.recorder.tracefs import Instance

PERIOD_NS = 500_000_000
_COUNTERS = ("overrun", "read events")


@dataclass(frozen=True, slots=True)
class _State:
    tracing: str
    clock: str
    events: frozenset[str]
    filters: tuple[str, ...]
    counters: tuple[int, ...]


class Guard:
    """Watch over instances that have just been started.

    `check` is to be called often; it looks twice a second.
    """

    def __init__(self, instances: Sequence[Instance], locks: LockEvents = BY_TRACEPOINTS) -> None:
        self._instances = tuple(instances)
        self._filters = tuple(f"events/{one.replace(':', '/')}/filter" for one in locks.named)
        self.notes: list[str] = []
        """What was noticed, a sentence each."""
        self.expect()

    def expect(self) -> None:
        """Take what is set now for what is to be."""
        self._good_ns = time.monotonic_ns()
        self._wanted = [_state(one, self._filters) for one in self._instances]

    def check(self, *, now: bool = False) -> tuple[int, int] | None:
        """Look, `now` or if it is time; return the gap (since, until; ns) where one began."""
        began_ns = time.monotonic_ns()
        if not now and began_ns - self._good_ns < PERIOD_NS:
            return None
        since_ns, odd = self._good_ns, []
        for place, instance in enumerate(self._instances):
            wanted, found = self._wanted[place], _state(instance, self._filters)
            if told := _differences(wanted, found):
                odd += told
                _restore(instance, wanted, found, self._filters)
                found = _state(instance, self._filters)
            self._wanted[place] = _State(
                wanted.tracing, wanted.clock, wanted.events, wanted.filters, found.counters
            )
        self._good_ns = began_ns
        if not odd:
            return None
        self._good_ns = time.monotonic_ns()
        what = " and ".join(dict.fromkeys(odd))
        self.notes.append(f"somebody else meddled with the tracing ({what}): a gap")
        return since_ns, self._good_ns


def _state(instance: Instance, filters: tuple[str, ...]) -> _State:
    return _State(
        _read(instance, "tracing_on").strip(),
        _read(instance, "trace_clock").partition("[")[2].partition("]")[0],
        frozenset(_read(instance, "set_event").split()),
        tuple(_read(instance, name) for name in filters),
        _counters(instance),
    )


def _read(instance: Instance, name: str) -> str:
    """Read a setting; one that can't be read is none, which differs from what was set."""
    try:
        return instance.read(name)
    except OSError:
        return ""


def _counters(instance: Instance) -> tuple[int, ...]:
    counted: list[int] = []
    for _, cpu in per_cpu(instance.path):
        found = dict.fromkeys(_COUNTERS, 0)
        with contextlib.suppress(OSError):  # a CPU that was never there
            for line in (cpu / "stats").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in found:
                    found[name] = int(value)
        counted += found.values()
    return tuple(counted)


def _differences(wanted: _State, found: _State) -> list[str]:
    odd = []
    if found.tracing != wanted.tracing:
        odd.append("tracing was switched off")
    if found.clock != wanted.clock:
        odd.append(f"the clock was changed to {found.clock or 'none'}")
    if missing := wanted.events - found.events:
        odd.append(f"{len(missing)} events were disabled")
    if found.filters != wanted.filters:
        odd.append("filters were changed")
    if any(now < before for before, now in zip(wanted.counters, found.counters)):
        odd.append("the buffers were cleared")
    return odd


def _restore(instance: Instance, wanted: _State, found: _State, filters: tuple[str, ...]) -> None:
    """Set again what was set; what can't be, as in an instance that is gone, stays a gap."""
    with contextlib.suppress(OSError):
        if found.clock != wanted.clock:  # this clears the buffers: two clocks can't be told apart
            instance.write("trace_clock", wanted.clock)
        for name, before, now in zip(filters, wanted.filters, found.filters):
            if before != now:
                instance.write(name, "0" if before.strip() == "none" else before.strip())
        for event in sorted(wanted.events - found.events):
            instance.enable(event)
        if found.tracing != wanted.tracing:
            instance.write("tracing_on", wanted.tracing)
