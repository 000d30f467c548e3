"""A recorded program's memory calls on the model: every return value and the final maps compared.

Every call gets a ruling. It *agrees* or *differs*; or it is *refused*: the model has no such call,
or the recording lacks a fact that the result depends on. What a refused call has touched is hidden
by a cloud, and what meets a cloud is refused too; so what agrees has been compared.

Calls that overlap in time took effect in one of several orders (`<unfinished ...>`): all that
their beginnings and ends allow are tried until one explains every result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from zaplock.programs import inferred, keys, limits, orders, segments, unrecorded
from zaplock.programs.file_tables import FileTables, facts_of
from zaplock.programs.filters import SeccompFilters
from zaplock.programs.judging import CallJudge
from zaplock.programs.maps import compare_maps
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import (
    EXECS,
    Note,
    StraceRecording,
)
from zaplock.programs.search import UNORDERED, OrderSearch, Outcome, Ruling, SeenMaps
from zaplock.programs.spaces import (
    OF_32_BITS,
    Fork,
    Item,
    TracedSpace,
    spaces_of,
)
from zaplock.programs.text import CONSTANTS

_NARROW = 32
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
        self.judge = CallJudge(self.world, self._doubt_children)
        self.knows_writes = recording.knows_writes
        names = {call.name for call in recording.calls}
        self.world.sees_seals = self.knows_writes or "mseal" in names
        self.world.filters = SeccompFilters(recording.calls)
        self.world.sees_closes = "close" in names
        self.world.sees_cuts = self.knows_writes or bool(names & {*EXECS, *unrecorded.CUTTING})
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
        segments.make_segments(self.world, self.recording)
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

    def _item(self, live: LiveSpace, item: Item) -> Outcome | None:
        if isinstance(item, Note):
            self._note(live, item)
            told = item.kind == "untold"
            return self._seen(live, item) if told or item.kind == "end" else None
        if isinstance(item, Fork):
            self._forked[item.child] = self.world.copy_space(live, item.child, item.call.pid)
            return None
        ruling = self.judge.judge(live, item)
        guest = live.traced.guests.get(item.pid, "")
        if guest and ruling.kind != "silent":
            live.known = replace(live.known, doubt=live.known.doubt or guest)
        ruling = ruling._replace(doubt=live.known.doubt)
        if not self.knows_writes:
            live.joints.update(vma.start for vma in self.world.vmas(live))
        return ruling

    def _note(self, live: LiveSpace, note: Note) -> None:
        visitors = live.traced.visitors
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
        elif note.kind == "copied":
            self.world.take_copied(live, note.areas[0], is_there=bool(note.value))
        elif note.kind == "sealed":
            self.world.seal(live, note.areas)
        elif note.kind == "length":
            self.world.set_length(live, int(note.name, 16), note.value)
        elif note.kind == "limit" and note.name == "keys":
            keys.begin(live, note.value)
        elif note.kind == "limit" and note.name in limits.MACHINES:
            limits.limit_machine(self.world, live, note.name, note.value)
        elif note.kind == "limit" and self.world.sees_limits and note.pid not in visitors:
            name, _, kind = note.name.partition("_")
            resource = CONSTANTS.get(f"RLIMIT_{name.upper()}", 0)
            (limits.set_hard_limit if kind else limits.begin_with)(
                self.world, live, resource, note.value
            )
        elif note.kind == "capable" and note.name == "ipc_lock":
            self.world.limit(live, can_ipc_lock=bool(note.value))
        elif note.kind == "capable" and note.name == "sys_resource":
            live.known = replace(live.known, raises_limits=bool(note.value))
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

    def _doubt_children(self, why: str) -> None:
        """What is watched of a child may be another than its fork has left."""
        for child in self._forked.values():
            child.known = replace(child.known, doubt=child.known.doubt or why)
