"""Which processes of a recording have a seccomp filter: what it forbids no recording tells.

A filter holds for the threads that it is set for, for what they make, and over an execve; with
SECCOMP_FILTER_FLAG_TSYNC for all threads of a process. Source: seccomp(2).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

from zaplock.programs.recording import UNKNOWN, TracedCall
from zaplock.programs.spaces import flags_of
from zaplock.programs.text import CONSTANTS, number
from zaplock.system_calls import CLONES

_NEVER = 1 << 60


class SeccompFilters:
    """From which line of a recording on calls of a process may be forbidden."""

    def __init__(self, calls: Sequence[TracedCall]) -> None:
        self._leaders: dict[int, int] = {}
        """Of the threads that were made in the recording, and of the first process."""
        self._from: dict[int, int] = {}
        if calls:
            self._leaders[calls[0].pid] = calls[0].pid
        for call in calls:
            self._see(call)

    def _see(self, call: TracedCall) -> None:
        leader = self._leaders.get(call.pid, call.pid)
        if is_filter(call):
            self._from.setdefault(leader, call.line)
        elif call.name in CLONES and 0 < call.result < UNKNOWN:
            is_thread = bool((flags_of(call) or 0) & CONSTANTS["CLONE_THREAD"])
            self._leaders[call.result] = leader if is_thread else call.result
            if not is_thread and leader in self._from:
                self._from.setdefault(call.result, call.line)

    def may_forbid(self, pids: Collection[int], line: int) -> bool:
        """Return whether one of these may have one in a line; whose maker is unknown may, too."""
        first = min(self._from.values(), default=_NEVER)
        leaders = (self._leaders.get(pid) for pid in pids)
        lines = (first if one is None else self._from.get(one, _NEVER) for one in leaders)
        return line >= min(lines, default=first)


UNSEEN = "a seccomp filter asks a listener: what this lets go on is not in the recording"


def asks_listener(call: TracedCall) -> bool:
    """Return whether a call sets a filter that a recorder by seccomp may see nothing behind.

    What a listener lets go on (SECCOMP_USER_NOTIF_FLAG_CONTINUE) stops for no tracer.
    """
    if call.name != "seccomp" or not is_filter(call):
        return False
    with suppress(ValueError, IndexError):
        return bool(number(call.arguments[1]) & _NEW_LISTENER)
    return False


_NEW_LISTENER = 8


def is_filter(call: TracedCall) -> bool:
    """Return whether a call sets a seccomp filter."""
    if call.name == "prctl":
        with suppress(ValueError, IndexError):  # most options have no number here
            return number(call.arguments[0]) == CONSTANTS["PR_SET_SECCOMP"] and not call.result
        return False
    return call.name == "seccomp" and 0 <= call.result < UNKNOWN
