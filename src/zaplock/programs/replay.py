"""A recorded program's memory calls on the model: every return value and the final maps compared.

Every call gets a ruling. It *agrees* or *differs*; or it is *refused*: the model has no such call,
or the recording lacks a fact that the result depends on. What a refused call has touched is hidden
by a cloud, and what meets a cloud is refused too; so what agrees has been compared.

Calls that overlap in time took effect in one of several orders (`<unfinished ...>`): all that
their beginnings and ends allow are tried until one explains every result.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from zaplock.model import flags as f
from zaplock.oracle.compare import result_text
from zaplock.programs import inferred, monitors, orders, unrecorded
from zaplock.programs.calls import (
    CALLS,
    LIMITS,
    MACHINES,
    NotRecorded,
    forget_limits,
    limit_machine,
    mmap_call,
    numbers,
    set_hard_limit,
    set_limit,
    unknown_target,
)
from zaplock.programs.descriptors import DESCRIPTORS, opened
from zaplock.programs.file_tables import FileTables, facts_of
from zaplock.programs.filters import UNSEEN, SeccompFilters, asks_listener
from zaplock.programs.maps import compare_maps
from zaplock.programs.ranges import OF_A_RANGE, ranges_of
from zaplock.programs.recorded_world import Cloud, LiveSpace, StraceWorld
from zaplock.programs.recording import (
    DIED,
    EXECS,
    NEVER_MADE,
    UNKNOWN,
    UNREADABLE,
    Note,
    StraceRecording,
    TracedCall,
)
from zaplock.programs.search import UNORDERED, OrderSearch, Outcome, Ruling, SeenMaps
from zaplock.programs.spaces import (
    NEW,
    OF_32_BITS,
    Fork,
    Item,
    TracedSpace,
    is_of_monitor,
    spaces_of,
)
from zaplock.programs.text import CONSTANTS, READ_IMPLIES_EXEC, number
from zaplock.protocols.placement import huge_size_of

UNMODELLED = {
    "map_shadow_stack", "uselib", *OF_32_BITS,
}  # fmt: skip
"""Calls that change mappings, or what can be done with them, and that the model lacks."""


_NARROW = 32
_IPC_64 = 0x100
"""What 32-bit programs add to the command of shmctl: which structure it is about."""
TABLES = {"shares files": FileTables.shared, "copies files": FileTables.copied}
"""What becomes of the descriptors of a child that shares memory, by the kind of its note."""


@dataclass(slots=True)
class StraceVerdict:
    """What a replay showed: counts, and in words what differs or was refused."""

    agreeing: int = 0
    differing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    maps: int = 0
    differing_maps: list[str] = field(default_factory=list)
    unknown_borders: int = 0
    maps_not_compared: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Return how many calls were compared."""
        return self.agreeing + len(self.differing)

    @property
    def agrees(self) -> bool:
        """Tell whether something was compared and nothing differs."""
        return self.calls + self.maps > 0 and not (self.differing or self.differing_maps)

    def add(self, ruling: Ruling) -> None:
        """Count the ruling of a call."""
        if ruling.kind == "agrees":
            self.agreeing += 1
        elif ruling.kind == "differs":
            self.differing.append(str(ruling))
        elif ruling.kind == "refused":
            self.refused.append(str(ruling))
            self.reasons[ruling.why] += 1

    def add_maps(self, seen: SeenMaps) -> None:
        """Count what maps showed."""
        at, found = f"line {seen.line}: ", seen.found
        if found is None:
            self.maps_not_compared.append(at + seen.why)
            return
        self.maps += found.compared
        self.unknown_borders += found.borders
        self.differing_maps += [at + text for text in found.differing]
        self.maps_not_compared += [at + text for text in found.hidden]


class StraceReplay:
    """The address spaces of a recording, one after another; forks come after what they left."""

    def __init__(self, recording: StraceRecording) -> None:
        self.recording = recording
        self.world = StraceWorld()
        self.knows_writes = recording.knows_writes
        names = {call.name for call in recording.calls}
        self.world.sees_seals = self.knows_writes or "mseal" in names
        self.world.filters = SeccompFilters(recording.calls)
        self.world.sees_closes = "close" in names
        self.world.sees_narrow_calls = bool(names & OF_32_BITS)
        self.world.has_narrow_calls = recording.has_narrow_calls
        self.world.sees_execs = recording.is_own or bool(names & set(EXECS))
        self.world.sees_paths = self.knows_writes  # zaplock's own recorder writes them all
        links = any(map(unrecorded.is_library, recording.calls))
        told = self.knows_writes or bool(names & {"setrlimit", "prlimit64"})
        self.world.sees_limits = told or not links  # every dynamic linker asks for one
        self.verdict = StraceVerdict()
        self._forked: dict[TracedSpace, LiveSpace] = {}

    def play(self) -> StraceVerdict:
        """Run every call; compare every result and the maps."""
        self._make_segments()
        for text in self.recording.unreadable:
            self.verdict.maps_not_compared.append(text)
        recording = self.recording
        filtered, selected = unrecorded.left_out(recording), unrecorded.selected(recording)
        for traced in spaces_of(recording):
            live = self._forked.pop(traced, None)
            if live is None:
                live = self.world.open_space(traced)
            if filtered and not live.known.unknown:
                live.known = replace(live.known, unknown=filtered)
            if traced.threads.makers and not recording.ordered:
                live.known = replace(live.known, doubt=UNORDERED)
            elif selected and not live.known.doubt:
                live.known = replace(live.known, doubt=selected)
            search = OrderSearch(self.world, live, recording.ordered, self._item, self._child)
            for group in self._groups(traced):
                self._add(search.take(group))
            self._add(search.settle())
        return self.verdict

    def _child(self, fork: Fork) -> LiveSpace:
        return self._forked[fork.child]

    def _add(self, outcomes: Iterable[Outcome]) -> None:
        """Count what was said; what differs in a space in doubt is refused."""
        for outcome in outcomes:
            if isinstance(outcome, SeenMaps):
                self.verdict.add_maps(outcome)
            elif outcome.kind == "differs" and outcome.doubt:
                self.verdict.add(Ruling("refused", outcome.call, outcome.doubt))
            else:
                self.verdict.add(outcome)

    def _groups(self, traced: TracedSpace) -> Iterator[list[Item]]:
        return orders.groups(traced.items, traced.threads, has_times=self.recording.ordered)

    def _make_segments(self) -> None:
        """Make the segments of shared memory, which any process may attach that has their id."""
        told: dict[int, tuple[int, int, int]] = {}
        for call in self.recording.calls:
            if call.name == "shmget" and 0 <= call.result < UNKNOWN and not call.cut:
                with suppress(ValueError, IndexError):
                    key, size, flags = (number(argument) for argument in call.arguments[:3])
                    huge = huge_size_of(flags) if flags & CONSTANTS["SHM_HUGETLB"] else 0
                    told[call.result] = max(told.get(call.result, (0, 0, 0)), (size, key, huge))
            elif call.name == "shmctl" and call.result == 0 and not call.cut:
                with suppress(ValueError, IndexError):  # most commands have no number here
                    segment, command = (number(argument) for argument in call.arguments[:2])
                    if command & ~_IPC_64 == CONSTANTS["IPC_RMID"]:
                        self.world.removed.setdefault(segment, call.end)
        for segment, (size, key, huge) in told.items():
            self.world.segments[segment] = self.world.new_segment(size, key & 0xFFFF_FFFF, huge)

    def _item(self, live: LiveSpace, item: Item) -> Outcome | None:
        if isinstance(item, Note):
            self._note(live, item)
            told = item.kind == "untold"
            return self._seen(live, item) if told or item.kind == "end" else None
        if isinstance(item, Fork):
            self._forked[item.child] = self.world.copy_space(live, item.child, item.call.pid)
            return None
        ruling = self._judge(live, item)
        guest = live.traced.guests.get(item.pid, "")
        if guest and ruling.kind != "silent":
            live.known = replace(live.known, doubt=live.known.doubt or guest)
        ruling = ruling._replace(doubt=live.known.doubt)
        if not self.knows_writes:
            live.joints.update(vma.start for vma in self.world.vmas(live))
        return ruling

    def _note(self, live: LiveSpace, note: Note) -> None:
        if note.kind == "untold":
            live.known = replace(live.known, doubt=live.known.doubt or note.name)
        elif note.kind == "lost":
            live.known = replace(live.known, unknown=note.name)
        elif note.kind == "width":
            self._take_width(live, note)
        elif note.kind == "anon":
            self.world.touch(live, note.areas)
        elif note.kind == "file":
            files = live.known.files.seen(note.pid, facts_of(note.name))
            live.known = replace(live.known, files=files)
        elif note.kind in TABLES:
            made = TABLES[note.kind](live.known.files, note.pid, note.value)
            live.known = replace(live.known, files=made)
        elif note.kind == "sealed":
            self.world.seal(live, note.areas)
        elif note.kind == "length":
            self.world.set_length(live, int(note.name, 16), note.value)
        elif note.kind == "limit" and note.name in MACHINES:
            limit_machine(self.world, live, note.name, note.value)
        elif note.kind == "limit" and self.world.sees_limits:
            name, _, kind = note.name.partition("_")
            resource = CONSTANTS.get(f"RLIMIT_{name.upper()}", 0)
            (set_hard_limit if kind else set_limit)(self.world, live, resource, note.value)
        elif note.kind == "capable" and note.name == "ipc_lock":
            self.world.limit(live, can_ipc_lock=bool(note.value))
        elif note.kind == "capable" and note.name == "read_implies_exec" and note.value:
            self.world.limit(live, implies_exec=True)
        elif note.kind == "capable" and note.name == "bottom_up" and note.value:
            inferred.go_up(self.world, live)
        elif note.kind == "capable" and note.name == "sys_rawio" and note.value:
            self.world.limit(live, mmap_min_addr=0)

    def _take_width(self, live: LiveSpace, note: Note) -> None:
        """Note whether a thread's calls have the width of its addresses.

        Where no execve would be seen, they may be another program's.
        """
        crossing = live.known.crossing - {note.pid}
        if (note.value == _NARROW) == live.known.limits.is_narrow:
            live.known = replace(live.known, crossing=crossing)
        elif self.world.sees_execs:
            live.known = replace(live.known, crossing=crossing | {note.pid})
        else:
            live.known = replace(live.known, unknown=note.name)

    def _seen(self, live: LiveSpace, note: Note) -> SeenMaps:
        """Compare what a recorder saw of a space with what the model has of it."""
        if note.kind == "untold" or live.known.unknown:
            return SeenMaps(note.line, None, note.name or live.known.unknown)
        found = compare_maps(self.world, live, note.areas, self.knows_writes)
        if found.differing and live.known.doubt:
            return SeenMaps(note.line, None, live.known.doubt)
        return SeenMaps(note.line, found)

    # One call

    def _judge(self, live: LiveSpace, call: TracedCall) -> Ruling:
        if call.cut in NEVER_MADE:
            return Ruling("refused", call, call.cut)
        if call.name in OF_32_BITS and (live.known.limits.is_narrow or self.world.sees_execs):
            return self._judge_narrow_mmap(live, call._replace(name="mmap"))
        if call.name == "ioctl" and call.arguments[1:2] == (NEW,):
            opened(self.world, live, call._replace(name="userfaultfd"))
            return Ruling("silent", call)
        if self.world.sees_paths and asks_listener(call) and not live.known.doubt:
            live.known = replace(live.known, doubt=UNSEEN)
        unseen = _unseen(call) or ("" if self.world.sees_paths else _grows(call))
        if unseen and not live.known.doubt:
            live.known = replace(live.known, doubt=unseen)
        if call.name == "personality":
            implies = implies_exec(call)
            if implies is not None:
                self.world.limit(live, implies_exec=implies)
            return Ruling("silent", call)
        if call.name in DESCRIPTORS:
            DESCRIPTORS[call.name](self.world, live, call)
            return Ruling("silent", call)
        if call.cut != UNREADABLE and not is_about_memory(call):
            return Ruling("silent", call)
        if live.known.unknown:
            return Ruling("refused", call, live.known.unknown)
        if executed := unrecorded.may_have_executed(self.world, live, call):
            live.known = replace(live.known, doubt=live.known.doubt or executed)
        if call.cut or call.result == UNKNOWN:
            return self._lose(live, call, call.cut or "its result is not in the recording")
        if call.name not in CALLS:
            return self._without_model(live, call)
        return self._compare(live, call)

    def _judge_narrow_mmap(self, live: LiveSpace, call: TracedCall) -> Ruling:
        """Judge an mmap whose name alone tells that it is a 32-bit one; strace shows bytes in it.

        With -o what strace says of a change of width stands elsewhere.
        """
        before = live.known.crossing
        if not live.known.limits.is_narrow:
            live.known = replace(live.known, crossing=before | {call.pid})
        ruling = self._judge(live, call)
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
        cloud = self._cloud_over(live, call)
        if cloud is not None:
            if call.result >= 0:
                self._follow_in_cloud(live, call)
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
                    self._follow(live, call)
                return Ruling("refused", call, "where it was to move is not in the recording")
            if got == call.result:
                return Ruling("agrees", call)
            self.world.undo(live, mark)
            for attempt in inferred.otherwise(self.world, live, call):
                if attempt() == call.result:
                    return Ruling("agrees", call)
                self.world.undo(live, mark)
            why = unrecorded.reason(self.world, live, call, got) or _why_hidden(live, call, got)
        except (ValueError, IndexError) as error:
            self.world.undo(live, mark)
            is_short = isinstance(error, IndexError)
            told = "not all of them are in the recording" if is_short else str(error)
            is_reason = isinstance(error, (NotRecorded, monitors.Elsewhere))
            why = told if is_reason else f"an argument can't be read ({told})"
            if call.name in ("setrlimit", "prlimit64") and call.result == 0:
                forget_limits(self.world, live)
            if isinstance(error, monitors.Elsewhere):
                self._doubt_children(why)
                return Ruling("refused", call, why)
            known = ranges_of(call) if call.name in OF_A_RANGE else []
            if call.name == "mmap" and call.result >= 0:
                known = self._stand_in(live, call)
            if call.result >= 0 and known:
                for low, high in known:
                    self._hide(live, low, high, why)
            elif call.result >= 0 and not self._attached(live, call):
                return self._lose(live, call, why)
            return Ruling("refused", call, why)
        self._follow(live, call)
        if why:
            return Ruling("refused", call, why)
        told = f"kernel {result_text(call.result)}, model {result_text(got)}"
        return Ruling("differs", call, told, got=got)

    def _doubt_children(self, why: str) -> None:
        """What is watched of a child may be another than its fork has left."""
        for child in self._forked.values():
            child.known = replace(child.known, doubt=child.known.doubt or why)

    def _stand_in(self, live: LiveSpace, call: TracedCall) -> list[tuple[int, int]]:
        """Map memory where the kernel has mapped a file of which nothing is known."""
        ranges = ranges_of(call)
        with suppress(ValueError, IndexError):
            flags = numbers(call, 4)[3] & f.MAP_POPULATE | f.MAP_PRIVATE | f.MAP_ANONYMOUS
            told = (*call.arguments[:3], str(flags), "-1", "0")
            if mmap_call(self.world, live, call._replace(arguments=told), call.result) >= 0:
                return ranges
        return []

    def _attached(self, live: LiveSpace, call: TracedCall) -> bool:
        """Follow an shmat whose size is told by where it lies alone."""
        if call.name != "shmat":
            return False
        mark = self.world.mark(live)
        with suppress(ValueError):
            for attempt in inferred.otherwise(self.world, live, call):
                if attempt() == call.result:
                    return True
                self.world.undo(live, mark)
        return False

    # Following the kernel where the model would have gone elsewhere

    def _cloud_over(self, live: LiveSpace, call: TracedCall) -> Cloud | None:
        if not live.known.clouds:
            return None
        found = (live.known.cloud_over(low, high) for low, high in ranges_of(call))
        return next((cloud for cloud in found if cloud is not None), None)

    def _follow_in_cloud(self, live: LiveSpace, call: TracedCall) -> None:
        """Hide what a call in a cloud has touched; of what it has replaced all is known again."""
        mark = self.world.mark(live)
        with suppress(ValueError, IndexError):
            if _replaces(call) and CALLS[call.name](self.world, live, call) == call.result:
                for low, high in ranges_of(call):
                    live.known = live.known.without_clouds(low, high)
                return
        self.world.undo(live, mark)
        for low, high in ranges_of(call):
            self._hide(live, low, high, f"a cloud since line {call.line}")

    def _follow(self, live: LiveSpace, call: TracedCall) -> None:
        """Bring the model to where the kernel is after a call whose result it did not give."""
        if call.name == "brk":
            self._follow_brk(live, call)
        elif (
            call.result >= 0
            and not unrecorded.depends_on_pages(call)
            and not self._placed(live, call)
        ):
            why = f"what line {call.line} did is not known"
            for low, high in ranges_of(call):
                self._hide(live, low, high, why)

    def _placed(self, live: LiveSpace, call: TracedCall) -> bool:
        """Map at the place that the kernel chose."""
        if call.name == "shmat":
            told = (call.arguments[0], hex(call.result), *call.arguments[2:])
            with suppress(ValueError):  # a segment of which nothing is known
                return CALLS["shmat"](self.world, live, call._replace(arguments=told)) >= 0
        if call.name == "mremap" and len(call.arguments) == 4:
            hinted = call._replace(arguments=(*call.arguments, hex(call.result)))
            is_hinted = numbers(call, 4)[3] & f.MREMAP_DONTUNMAP
            return bool(is_hinted) and CALLS["mremap"](self.world, live, hinted) == call.result
        if call.name != "mmap":
            return False
        return mmap_call(self.world, live, call, call.result) == call.result

    def _follow_brk(self, live: LiveSpace, call: TracedCall) -> None:
        space = self.world.machine.mm(live.mm)
        moved = call._replace(arguments=(hex(call.result),))
        if CALLS["brk"](self.world, live, moved) != call.result:
            low, high = sorted((space.count("brk"), call.result))
            space.counters.put("brk", call.result)
            self._hide(live, low & -4096, f.page_align(high), f"the heap since line {call.line}")

    def _hide(self, live: LiveSpace, low: int, high: int, why: str) -> None:
        live.known = replace(live.known, clouds=(*live.known.clouds, Cloud(low, high, why)))


def _replaces(call: TracedCall) -> bool:
    """Return whether nothing is left of what was at the addresses of a call that went well."""
    return call.name == "munmap" or (
        call.name == "mmap" and bool(numbers(call, 4)[3] & f.MAP_FIXED)
    )


def _why_hidden(live: LiveSpace, call: TracedCall, got: int) -> str:
    """Return why nothing is known of the place that the model has chosen, "" where it is known."""
    if call.name not in ("mmap", "mremap", "shmat") or got <= 0:
        return ""
    at = {"mmap": 1, "mremap": 2}.get(call.name)
    length = f.page_align(number(call.arguments[at])) if at else f.PAGE_SIZE
    cloud = live.known.cloud_over(got, got + length)
    return cloud.why if cloud else ""


_HARMLESS = frozenset({
    "msync", "mincore", "mlock", "munlock", "process_madvise", "prctl", "setrlimit", "prlimit64",
})  # fmt: skip
"""Calls after which the maps are what they were, or nearly (locking is not in maps)."""


_PRCTLS = ("PR_SET_VMA", "PR_SET_MDWE", "PR_SET_MEMORY_MERGE")


_ASKS = 0xFFFF_FFFF
"""What personality is given to change nothing; all above its 32 bits is cut off."""


def implies_exec(call: TracedCall) -> bool | None:
    """Return whether what can be read can be executed from here on; None where that stays so.

    Names of other personalities have no numbers here: they don't matter.
    """
    told = "".join(call.arguments[:1])
    if call.result < 0:
        return None
    with suppress(ValueError):
        persona = number(told) & _ASKS
        return None if persona == _ASKS else bool(persona & READ_IMPLIES_EXEC)
    return "READ_IMPLIES_EXEC" in told


def _unseen(call: TracedCall) -> str:
    """Return why what differs from here on may come of what a call has set up, "" for others."""
    if call.name == "io_uring_setup" and 0 <= call.result < UNKNOWN:
        return "what its io_uring is asked to do (IORING_OP_MADVISE) is not in the recording"
    if call.name == "shmat" and call.result == -errno.EFAULT:  # by ipc, of 32-bit calls
        return "where a segment lies whose address could not be told is not in the recording"
    with suppress(ValueError, IndexError):  # most options have no number here
        of_mm = call.name == "prctl" and number(call.arguments[0]) == CONSTANTS["PR_SET_MM"]
        if of_mm and call.result == 0:
            return "the model has no PR_SET_MM, which says where the heap is"
    return ""


def _grows(call: TracedCall) -> str:
    """Return why what differs behind a call may come of how its mapping has grown, "" for others.

    It grows when it is touched, which is no call; zaplock's recorder tells what was written.
    """
    with suppress(ValueError, IndexError):
        if call.name == "mmap" and call.result >= 0 and numbers(call, 4)[3] & f.MAP_GROWSDOWN:
            return "how far a mapping that grows down has grown is not in the recording"
    return ""


def is_about_memory(call: TracedCall) -> bool:
    """Return whether a call is about mappings at all."""
    if call.name == "prctl":
        try:
            option = number(call.arguments[0])
        except (ValueError, IndexError):
            return any(a.startswith(_PRCTLS) for a in call.arguments[:1])
        return option in map(CONSTANTS.get, _PRCTLS)
    if call.name == "ioctl":
        return is_of_monitor(call)
    if call.name in ("setrlimit", "prlimit64"):
        with suppress(ValueError, IndexError):  # others have no number here
            return number(call.arguments[call.name == "prlimit64"]) in LIMITS
        return False
    return call.name in CALLS or call.name in UNMODELLED
