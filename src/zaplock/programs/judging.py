"""One recorded call on the model: its results compared, or the reason why they can't be.

A call *agrees* or *differs*; or it is *refused*: the model has no such call, or the recording lacks
a fact that the result depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from zaplock.oracle.compare import result_text
from zaplock.programs import following, inferred, limits, monitors, unrecorded
from zaplock.programs.about_memory import grows, is_about_memory, take_personality, unseen
from zaplock.programs.arguments import NotRecorded
from zaplock.programs.calls import CALLS, unknown_target
from zaplock.programs.descriptors import DESCRIPTORS, opened
from zaplock.programs.filters import UNSEEN, asks_listener
from zaplock.programs.ranges import OF_A_RANGE, ranges_of
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import DIED, NEVER_MADE, UNKNOWN, UNREADABLE, TracedCall
from zaplock.programs.search import Ruling
from zaplock.programs.spaces import NEW, OF_32_BITS

_HARMLESS = frozenset({
    "msync", "mincore", "mlock", "munlock", "process_madvise", "prctl", "setrlimit", "prlimit64",
    "pkey_alloc", "pkey_free",
})  # fmt: skip
"""Calls after which the maps are what they were, or nearly (locking is not in maps)."""


@dataclass(frozen=True, slots=True)
class CallJudge:
    """Rules on calls. `doubt_children`: what to do where a child may be none of its fork's."""

    world: StraceWorld
    doubt_children: Callable[[str], None]

    def judge(self, live: LiveSpace, call: TracedCall) -> Ruling:
        """Rule on a call, and take what it does."""
        if call.cut in NEVER_MADE:
            return Ruling("refused", call, call.cut)
        if call.name in OF_32_BITS and (live.known.limits.is_narrow or self.world.sees_execs):
            return self._judge_narrow_mmap(live, call._replace(name="mmap"))
        if call.name == "ioctl" and call.arguments[1:2] == (NEW,):
            opened(self.world, live, call._replace(name="userfaultfd"))
            return Ruling("silent", call)
        if self.world.sees_paths and asks_listener(call) and not live.known.doubt:
            live.known = replace(live.known, doubt=UNSEEN)
        told = unseen(call) or ("" if self.world.sees_paths else grows(call))
        if told and not live.known.doubt:
            live.known = replace(live.known, doubt=told)
        if call.name == "personality":
            take_personality(self.world, live, call)
            return Ruling("silent", call)
        if call.name in DESCRIPTORS:
            DESCRIPTORS[call.name](self.world, live, call)
            return Ruling("silent", call)
        if call.cut != UNREADABLE and not is_about_memory(call):
            return Ruling("silent", call)
        if live.known.unknown:
            return Ruling("refused", call, live.known.unknown)
        if not call.cut and self._only_asks(live, call):
            return Ruling("silent", call)
        if executed := unrecorded.may_have_executed(self.world, live, call):
            live.known = replace(live.known, doubt=live.known.doubt or executed)
        if call.cut or call.result == UNKNOWN:
            return self._lose(live, call, call.cut or "its result is not in the recording")
        if call.name not in CALLS:
            return self._without_model(live, call)
        return self._compare(live, call)

    def _only_asks(self, live: LiveSpace, call: TracedCall) -> bool:
        """Return whether nothing of a call can be compared, and nothing hangs on it."""
        if call.name in ("pkey_alloc", "pkey_free"):
            return live.known.keys is None
        is_limit = call.name in ("setrlimit", "prlimit64")
        return is_limit and limits.asks_only(self.world, live, call)

    def _judge_narrow_mmap(self, live: LiveSpace, call: TracedCall) -> Ruling:
        """Judge an mmap whose name alone tells that it is a 32-bit one; strace shows bytes in it.

        With -o what strace says of a change of width stands elsewhere.
        """
        before = live.known.crossing
        if not live.known.limits.is_narrow:
            live.known = replace(live.known, crossing=before | {call.pid})
        ruling = self.judge(live, call)
        live.known = replace(live.known, crossing=before)
        return ruling

    def _lose(self, live: LiveSpace, call: TracedCall, why: str) -> Ruling:
        """Refuse a call that may have done anything to the maps, and all that comes after it."""
        if call.name in _HARMLESS:
            return Ruling("refused", call, why)
        told = f"what line {call.line} did is not known ({why})"
        if why == DIED:  # nothing, most of the time; what differs then may come of it
            live.known = replace(live.known, doubt=live.known.doubt or told)
        else:
            live.known = replace(live.known, unknown=told)
        return Ruling("refused", call, why)

    def _without_model(self, live: LiveSpace, call: TracedCall) -> Ruling:
        why = f"the model has no {call.name}"
        if call.result < 0:
            return Ruling("refused", call, why)
        return self._lose(live, call, why)

    def _compare(self, live: LiveSpace, call: TracedCall) -> Ruling:
        cloud = following.cloud_over(live, call)
        if cloud is not None:
            if call.result >= 0:
                following.follow_in_cloud(self.world, live, call)
            return Ruling("refused", call, cloud.why)
        taken = inferred.take_base(live, call)
        mark = self.world.mark(live)
        try:
            got = CALLS[call.name](self.world, live, call)
            if taken and got == call.result and not inferred.may_begin_there(live):
                return Ruling("refused", call, "where mappings begin was learnt from this call")
            if unknown_target(call) and call.result >= 0:
                if got != call.result:
                    self.world.undo(live, mark)
                    following.follow(self.world, live, call)
                return Ruling("refused", call, "where it was to move is not in the recording")
            if got == call.result:
                return Ruling("agrees", call)
            self.world.undo(live, mark)
            for attempt in inferred.otherwise(self.world, live, call):
                if attempt() == call.result:
                    return Ruling("agrees", call)
                self.world.undo(live, mark)
            why = unrecorded.reason(self.world, live, call, got) or following.why_hidden(
                live, call, got
            )
        except (ValueError, IndexError) as error:
            self.world.undo(live, mark)
            is_short = isinstance(error, IndexError)
            told = "not all of them are in the recording" if is_short else str(error)
            is_reason = isinstance(error, (NotRecorded, monitors.Elsewhere))
            why = told if is_reason else f"an argument can't be read ({told})"
            if call.name in ("setrlimit", "prlimit64") and call.result == 0:
                limits.forget_limits(self.world, live, call)
            if isinstance(error, monitors.Elsewhere):
                self.doubt_children(why)
                return Ruling("refused", call, why)
            known = ranges_of(call) if call.name in OF_A_RANGE else []
            if call.name == "mmap" and call.result >= 0:
                known = following.stand_in(self.world, live, call)
            if call.result >= 0 and known:
                for low, high in known:
                    following.hide(live, low, high, why)
            elif call.result >= 0 and not following.attached(self.world, live, call):
                return self._lose(live, call, why)
            return Ruling("refused", call, why)
        following.follow(self.world, live, call)
        if why:
            return Ruling("refused", call, why)
        told = f"kernel {result_text(call.result)}, model {result_text(got)}"
        return Ruling("differs", call, told, got=got)
