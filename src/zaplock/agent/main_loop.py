"""The agent's loop: choose whom to watch, watch them, and see to the agent's other duties.

What happens on trouble is `target_watch`'s, what then becomes of it `spool_queue`'s and `hooks`'.

Every trouble of the agent's own is a figure and a line of the log: events that the kernel lost,
tracing that others switched off, a store that can't be reached (what was recorded waits in the
spool), a disk that is full, a wall clock that jumps, a process that can't be watched.

Not seen: waits of the moment in which the set of targets changes (some tenths of a second), and
whoever spins for the lock without queueing. A process is watched from the next look on, if it lives
for some seconds. Of more than `MOST_MMS` processes those with the most threads are watched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zaplock.agent import spool
from zaplock.agent.blocked_tracing import told_if_blocked
from zaplock.agent.hooks import Hooks
from zaplock.agent.log import Say, log_line
from zaplock.agent.metrics import Metrics
from zaplock.agent.settings import SECOND, Settings, clock_offset_ns
from zaplock.agent.spool import Spool
from zaplock.agent.spool_queue import Shipping
from zaplock.agent.target_watch import Watching
from zaplock.errors import UserError
from zaplock.recorder.capturing import capturing
from zaplock.recorder.options import MOST_MMS, Options
from zaplock.recorder.targets import threads_of
from zaplock.recorder.tracefs import start_time

_GROUPS = ("mmap_lock", "syscalls", "sched")
_INSTANCES = 2
_HOUR_NS = 3600 * SECOND
_JUMP_NS = SECOND
_END_NS = 20 * SECOND
_LONGEST_REFUSAL_NS = _HOUR_NS


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A process that couldn't be watched: it is tried again, ever more rarely."""

    begun: int | None
    """When the process began: another may get its number."""
    span_ns: int
    until_ns: int


class Agent:
    """Watch the processes that `find` gives, until `ended`. `say` writes a line of the log."""

    def __init__(
        self,
        settings: Settings,
        find: Callable[[], list[int]],
        metrics: Metrics,
        *,
        ended: Callable[[], bool],
        say: Say = log_line,
    ) -> None:
        settings.check()
        self.settings, self.metrics, self.ended, self.say = settings, metrics, ended, say
        self._find = find
        self._spool = Spool(settings.spool)
        self._hooks = Hooks(settings.hook, metrics, say)
        self._shipping = Shipping(settings, self._spool, metrics, self._hooks, say)
        self._recent: deque[int] = deque()
        self._offset_ns = clock_offset_ns()
        self._refused: dict[int, _Refusal] = {}
        self._serial = 0

    def run(self) -> None:
        """Watch until ended; then what was recorded is put into the store, as far as time allows.

        Raises UserError where the kernel or the rights don't allow it.
        """
        for folder in self._spool.broken():
            self.say("recording lost", folder=str(folder), why="an agent was killed meanwhile")
            spool.discard(folder)
        self.say("begun", store=self.settings.store, host=self.settings.host, pid=os.getpid())
        while not self.ended():
            self.look_after()
            pids = self._targets()
            if pids:
                self._watch(pids)
            else:
                self.metrics.targets.set(0)
                self._sleep(min(SECOND, self.settings.rescan_ns))
        self._finish()
        self.say("ended")

    def _sleep(self, span_ns: int) -> None:
        until_ns = time.monotonic_ns() + span_ns
        while not self.ended() and time.monotonic_ns() < until_ns:
            time.sleep(0.1)

    def _targets(self) -> tuple[int, ...]:
        """Choose the processes to watch: those with the most threads, where there are too many."""
        found, now_ns = self._find(), time.monotonic_ns()
        self._refused = {
            pid: one
            for pid, one in self._refused.items()
            if pid in found and start_time(pid) == one.begun
        }
        resting = {pid for pid, one in self._refused.items() if now_ns < one.until_ns}
        found = [pid for pid in found if pid != os.getpid() and pid not in resting]
        self.metrics.unwatched.set(max(0, len(found) - MOST_MMS))
        if len(found) > MOST_MMS:
            found.sort(key=lambda pid: (-len(threads_of(pid)), pid))
        return tuple(sorted(found[:MOST_MMS]))

    def changed(self, pids: tuple[int, ...]) -> bool:
        """Say whether other processes are to be watched now."""
        return self._targets() != pids

    def _watch(self, pids: tuple[int, ...]) -> None:
        """Watch some processes until others are to be watched."""
        options = Options(pids=pids, groups=_GROUPS, watch=True, buffer_kb=self._buffer_kb())
        try:
            with contextlib.ExitStack() as stack:
                with told_if_blocked(pids, self.say):
                    capture = stack.enter_context(capturing(options))
                self._refused = {p: one for p, one in self._refused.items() if p not in pids}
                try:
                    Watching(self, capture, pids).run()
                finally:
                    with told_if_blocked(pids, self.say):
                        stack.close()
        except UserError as error:
            gone = [pid for pid in pids if not os.path.exists(f"/proc/{pid}")]
            if gone:
                return
            # One whose lock can't be learned must not keep the others from being watched.
            culprit = next((pid for pid in pids if f"process {pid} " in str(error)), None)
            if culprit is None:
                raise
            self.refuse(culprit, str(error))

    def refuse(self, pid: int, why: str) -> None:
        """Leave a process out for a while: what is wrong with it may pass."""
        before = self._refused.get(pid)
        span_ns = 2 * before.span_ns if before else max(SECOND, self.settings.rescan_ns)
        span_ns = min(span_ns, _LONGEST_REFUSAL_NS)
        self._refused[pid] = _Refusal(start_time(pid), span_ns, time.monotonic_ns() + span_ns)
        self.say("can't watch", pid=pid, why=why, tries_again_in_s=span_ns // SECOND)

    def _buffer_kb(self) -> int:
        return max(64, self.settings.buffer_bytes // _INSTANCES // (os.cpu_count() or 1) >> 10)

    def may_record(self, now_ns: int) -> bool:
        """Say whether the hour's budget of recordings allows one more, and count it."""
        while self._recent and self._recent[0] < now_ns - _HOUR_NS:
            self._recent.popleft()
        if len(self._recent) >= self.settings.per_hour:
            return False
        self._recent.append(now_ns)
        return True

    def begin_spool(self) -> Path | None:
        """Begin a folder for a trouble; None where the disk has no room, which is told."""
        self._serial += 1
        try:
            return self._spool.begin(f"{time.time_ns():020d}-{os.getpid()}-{self._serial}")
        except OSError as error:
            self.not_recorded(error)
            return None

    def not_recorded(self, error: OSError) -> None:
        """Tell that a trouble could not be recorded."""
        why = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "spool"
        self.metrics.unrecorded.labels(why).inc()
        self.say("not recorded", why=error.strerror or str(error))

    def look_after(self) -> None:
        """See to the clock, the hooks and the child."""
        offset_ns = clock_offset_ns()
        if abs(offset_ns - self._offset_ns) > _JUMP_NS:
            self.metrics.jumps.inc()
            self.say("clock jumped", by_ns=offset_ns - self._offset_ns)
        self._offset_ns = offset_ns
        now_ns = time.monotonic_ns()
        self._hooks.look_after(now_ns)
        self._shipping.look_after(now_ns)

    def _finish(self) -> None:
        """Put what is left into the store; what can't be put waits for the next agent."""
        end_ns = time.monotonic_ns() + _END_NS
        while time.monotonic_ns() < end_ns and (self._shipping.busy or self._hooks.running):
            self.look_after()
            time.sleep(0.1)
        self._shipping.stop()
        self._hooks.stop()
