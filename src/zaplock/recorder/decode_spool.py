"""From what a recorder has spooled to a recording: decode it, and write it block by block.

The one way from pages to a recording, for `record` (after the end; beside it where a trigger is
looked for, or the spool grows large), for what a killed recorder left, and for the agent's
troubles.

A block has the events of a second at first and of longer intervals (to ten seconds) as the
recording grows, or a million events. The pieces of the spool whose events stand in blocks are
deleted, so that whoever begins anew (after a kill) goes on behind the last block's last event.

With a trigger (the flight recorder) blocks that are older than `keep_ns` are deleted until it
fires.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zaplock.outputs import Folder
from zaplock.recorder import spool
from zaplock.recorder.buffers import Chunk
from zaplock.recorder.code_names import CodeNames
from zaplock.recorder.decode import Columns, merged, nothing
from zaplock.recorder.flight import Trigger
from zaplock.recorder.flight_limits import Fired, Flight
from zaplock.recorder.initial_rows import still_open
from zaplock.recorder.naming import TaskNames
from zaplock.recorder.spool import EntryKind, SpoolEntry, SpoolReader
from zaplock.recorder.spooled import (
    Begun,
    Code,
    Ended,
    Found,
    LearnedLater,
    NotedGap,
    NoticedWait,
    Reasons,
    Tasks,
    check_layouts,
    this_boot,
    unpacked,
)
from zaplock.recorder.stack_keeper import StackKeeper
from zaplock.recorder.stack_samples import CodeEvent, Sample, StackDecoder
from zaplock.recorder.stream import MARGIN_NS, Stream
from zaplock.trace.events import EVENT, EventKind, FoundTask, RecordedTask
from zaplock.trace.gaps import losses, untold_losses
from zaplock.trace.manifest import Manifest, read_manifest
from zaplock.trace.recording_file import newest_rows
from zaplock.trace.recording_writer import Writer
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.tables import EVENTS, MMS, TASKS, open_table, parse, tables_in

_BLOCK_EVENTS = 1_000_000
_SECOND = 1_000_000_000
_END_OF_TIME = 1 << 62
_TOLD_NS = 100_000_000
"""So often it is told how far it is."""


@dataclass
class DecodingState:
    """How far the decoding is."""

    events: int = 0
    lost_events: int = 0
    fired: Fired | None = None
    ended_ns: int = 0
    """When the recording ended, 0 where its recorder was killed."""
    complete_ns: int = 0
    """Up to when it has everything."""
    on_ns: int = 0
    notes: list[str] = field(default_factory=list)


class SpooledSamples:
    """Samples that a sampler spooled, decoded when they are taken."""

    def __init__(self, callers: bool) -> None:
        self.lost = 0
        self._reasons: dict[int, StackReason] = {}
        self._decoder = StackDecoder(self._reasons, callers)
        self._raw: list[bytes] = []

    def know(self, reasons: Reasons) -> None:
        """Learn why the events of perf take their samples."""
        self._reasons.update({number: StackReason(why) for number, why in reasons.items()})

    def add(self, raw: bytes) -> None:
        """Take records as the kernel wrote them."""
        self._raw.append(raw)

    def take(self) -> tuple[list[Sample], list[CodeEvent]]:
        """Give the samples that came in since, and what processes did to their code."""
        samples, code = list[Sample](), list[CodeEvent]()
        for raw in self._raw:
            found = self._decoder.decode(raw)
            samples += found.samples
            code += found.code
            self.lost += found.lost
        self._raw.clear()
        return samples, code


@dataclass(frozen=True, slots=True)
class WrittenBefore:
    """What stands in a recording already, of a decoder that was killed."""

    until_ns: int
    """When its last event was."""
    manifest: Manifest
    tasks: tuple[RecordedTask, ...]
    mms: dict[int, int]


class SpoolDecoder:
    """Make events, names and stacks of a spool's entries."""

    def __init__(
        self,
        begun: Begun,
        head: Iterable[SpoolEntry],
        *,
        living: bool = True,
        behind: WrittenBefore | None = None,
    ) -> None:
        """Begin; `living` says that it is decoded where and when it was recorded.

        `behind` is what was decoded before: what was so at the beginning is settled there.
        """
        check_layouts(begun.layouts)
        self.begun = begun
        self.names = TaskNames(living=living)
        self.names.mms.update(begun.mms)
        self.samples = SpooledSamples(begun.callers) if begun.stacks else None
        self._semaphores = set(begun.semaphores)
        self.stream = Stream(
            begun.layouts,
            self.names,
            pids=begun.pids,
            children=begun.children,
            semaphores=self._semaphores,
        )
        code = CodeNames(living=living, same_kernel=begun.boot == this_boot())
        self.keeper = StackKeeper(self.samples, self.stream.keeps, code) if self.samples else None
        self.notes = list(begun.notes)
        self.fired: Fired | None = None
        self.ended: Ended | None = None
        self.on_ns = begun.on_ns
        self.complete_ns = 0
        """Up to here all events have been given."""
        self._chunks: list[Chunk] = []
        if begun.look is not None and behind is None:
            self.stream.begin(begun.look)
        for entry in head:
            self.take(entry)
        if behind is not None:
            self.stream.operations = list(behind.manifest.operations)
            self.names.know(behind.tasks)
            self.names.mms.update(behind.mms)

    def take(self, entry: SpoolEntry) -> Columns | None:
        """Take the next entry; give the events that are complete by it, where it ends a drain."""
        content = entry.content
        match entry.kind:
            case EntryKind.PAGES:
                self._chunks.append((entry.cpu, content))
            case EntryKind.DRAINED:
                return self._fed(entry.time_ns)
            case EntryKind.SAMPLES if self.samples:
                self.samples.add(content)
            case EntryKind.REASONS if self.samples:
                self.samples.know(unpacked(content, Reasons))
            case EntryKind.TASKS:
                self.names.know(unpacked(content, Tasks))
            case EntryKind.CODE if self.keeper:
                for one in unpacked(content, Code):
                    self.keeper.code.know(one.pid, one.user, one.areas)
            case EntryKind.LEARNED:
                later = unpacked(content, LearnedLater)
                self.names.mms[later.mm] = later.pid
                self._semaphores.add(later.mm)
            case EntryKind.GAP:
                gap = unpacked(content, NotedGap)
                self.notes.append(gap.note)
                return losses([(gap.since_ns, gap.until_ns)])
            case EntryKind.LOOKED:
                looked = unpacked(content, Found)
                self.stream.found += tuple(task for task in looked if task.does)
            case EntryKind.NOTICED:
                return self._noticed(unpacked(content, NoticedWait))
            case EntryKind.OFF:
                self.stream.end(entry.time_ns)
            case EntryKind.ENDED:
                self.ended = unpacked(content, Ended)
        return None

    def _fed(self, before_ns: int) -> Columns:
        chunks, self._chunks = self._chunks, []
        columns = self.stream.feed(chunks, before_ns)
        self.complete_ns = before_ns - MARGIN_NS
        return columns

    def _noticed(self, noticed: NoticedWait) -> Columns:
        self.stream.operations = list(noticed.operations)
        self.on_ns = noticed.on_ns
        self.stream.resume(noticed.found, noticed.hidden)
        self.fire(noticed.fired)
        return columns_of(noticed.first)

    def fire(self, fired: Fired) -> None:
        """Note what stopped the recording."""
        self.fired = fired
        self.notes.append(_what_fired(fired, self.names))


def columns_of(raw: dict[str, bytes]) -> Columns:
    """Make columns of their bytes. Raises ValueError where they are none."""
    if set(raw) != set(EVENT.names or ()):
        raise ValueError("columns are missing")
    columns = {name: np.frombuffer(raw[name], EVENT[name]).copy() for name in raw}
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("columns are not equally long")
    return columns


class RecordingMaker:
    """Write what a spool's decoder gives as a recording, block by block."""

    def __init__(
        self,
        decoder: SpoolDecoder,
        writer: Writer,
        reader: SpoolReader,
        behind: WrittenBefore | None = None,
    ) -> None:
        self.state = DecodingState(lost_events=behind.manifest.lost_events if behind else 0)
        self._decoder, self._writer, self._reader = decoder, writer, reader
        self._flight = decoder.begun.flight
        flight = self._flight or Flight(keep_ns=0)
        self._trigger = Trigger(hold_ns=flight.hold_ns, wait_ns=flight.wait_ns)
        self._behind_ns = behind.until_ns if behind else 0
        """What is until then stands in the recording already."""
        self._open = nothing()
        """What was not over when the oldest block that is kept began."""
        self._ends: deque[tuple[int, Columns]] = deque()
        """When each block that is kept ended, and what was not over then."""
        self._told: tuple[FoundTask, ...] = ()
        self._block: list[Columns] = []
        self._block_events = 0
        self._wrote_ns = decoder.begun.on_ns

    def take(self, entry: SpoolEntry) -> None:
        """Take the next entry of the spool."""
        columns = self._decoder.take(entry)
        if columns is None:
            return
        self._add(columns)
        if entry.kind is EntryKind.NOTICED:
            self._writer.change(started_ns=self._decoder.on_ns)
        if entry.kind is not EntryKind.DRAINED:
            return
        looks = self._flight and self._decoder.fired is None
        if looks and (fired := self._trigger.check(columns, entry.time_ns)):
            self._decoder.fire(fired)
        if self._is_due(entry.time_ns):
            self._flush()
            self._wrote_ns = entry.time_ns
            if self._flight and self._decoder.fired is None:
                self._forget(entry.time_ns - self._flight.keep_ns)
            self._reader.forget()

    def finish(self) -> None:
        """Write what is left, and say how it ended."""
        decoder, writer, ended = self._decoder, self._writer, self._decoder.ended
        if ended:  # else it is complete up to the last drain, and what came later is in part
            self._add(decoder.stream.rest())
        decoder.names.look_inside()
        if ended:
            told = self.state.lost_events
            self._add(untold_losses(ended.lost_events, told, ended.off_ns))
        self._flush()
        writer.append(self._open)
        self._name_frames(ended.lost_stacks if ended else 0)
        if ended:
            writer.write_quotas(ended.readings, ended.groups)
            self.state.ended_ns = ended.off_ns
        self.state.on_ns = decoder.on_ns
        self.state.complete_ns = self.state.ended_ns or max(decoder.complete_ns, decoder.on_ns)
        self.state.fired, self.state.notes = decoder.fired, decoder.notes
        writer.change(
            ended_ns=self.state.ended_ns,
            notes=tuple(decoder.notes),
            complete=ended is not None,
        )
        spool.remove(writer.folder)
        writer.folder.close()

    def _is_due(self, now_ns: int) -> bool:
        patience_ns = min(max(_SECOND, (now_ns - self._decoder.begun.on_ns) // 100), 10 * _SECOND)
        late = now_ns - self._wrote_ns >= patience_ns and bool(self._block)
        return self._block_events >= _BLOCK_EVENTS or late

    def _add(self, columns: Columns) -> None:
        if self._behind_ns and len(columns["time_ns"]):
            new = columns["time_ns"] > self._behind_ns
            columns = {name: column[new] for name, column in columns.items()}
        count = len(columns["time_ns"])
        if count:
            if self._decoder.keeper:
                self._decoder.keeper.add(columns)
            self._block.append(columns)
            self._block_events += count
        self.state.events += count
        lost = columns["length"][columns["kind"] == EventKind.LOST]
        self.state.lost_events += int(lost[lost > 0].sum())

    def _forget(self, before_ns: int) -> None:
        """Forget the blocks before an instant, but for what they began and did not end."""
        self._writer.drop_before(before_ns)
        self._decoder.names.forget(before_ns)
        while self._ends and self._ends[0][0] < before_ns:
            from_ns, self._open = self._ends.popleft()
            self._writer.change(started_ns=from_ns)

    def _flush(self) -> None:
        if self._block:
            block = merged(self._block)
            self._writer.append(block)
            if self._flight:
                before = self._ends[-1][1] if self._ends else self._open
                left = still_open(merged([before, block]))
                self._ends.append((int(block["time_ns"].max()), left))
        self._writer.name(self._decoder.names.tasks, self._decoder.names.mms)
        self._tell_the_beginning()
        self._flush_stacks(self._decoder.complete_ns)
        self._block, self._block_events = [], 0

    def _tell_the_beginning(self) -> None:
        """Write what was found at the beginning, once it is settled."""
        stream = self._decoder.stream
        if stream.found and stream.found != self._told:
            self._writer.find(stream.found)
            self._told = stream.found
        if tuple(stream.operations) != self._writer.manifest.operations:
            self._writer.change(operations=tuple(stream.operations))

    def _flush_stacks(self, horizon_ns: int) -> None:
        if self._decoder.keeper:
            self._writer.append_stacks(self._decoder.keeper.ready(horizon_ns))

    def _name_frames(self, lost: int) -> None:
        """Say what code the stacks are in: after the end, since it may read /proc/PID/maps."""
        keeper, samples = self._decoder.keeper, self._decoder.samples
        if keeper is None or samples is None:
            return
        samples.lost += lost
        self._flush_stacks(_END_OF_TIME)
        names = keeper.names()
        if names:
            self._writer.name_frames(names)
        self._decoder.notes += keeper.notes()


def _written_before(here: Path, *, hashed: bool) -> WrittenBefore | None:
    """Read what stands in a recording already; None where no event does."""
    files = [file for file in tables_in(here) if file.kind == "events"]
    if not files:
        return None
    times = parse(open_table(files[-1]), {"time_ns": EVENTS["time_ns"]})["time_ns"]
    rows = newest_rows(here, "tasks", TASKS)
    tasks = tuple(RecordedTask(*row) for row in rows)
    mms = {} if hashed else dict(newest_rows(here, "mms", MMS))
    return WrittenBefore(max(times.to_pylist(), default=0), read_manifest(here), tasks, mms)


def decode(
    folder: Folder,
    *,
    more: Callable[[], bool] = lambda: False,
    tell: Callable[[DecodingState], None] = lambda decoded: None,
    living: bool = True,
) -> DecodingState:
    """Decode the spool in a recording's folder into it, and remove it.

    `more` is asked at the end of what is there: whether to look again. `tell` is told how far it is
    about ten times a second, and at once when a trigger has fired. `living` says that it is decoded
    where and when it was recorded, so that /proc may be asked.

    Raises UserError where the spool is damaged, OSError where there is no room.
    """
    reader = SpoolReader(folder)
    try:
        return _decoded(folder, reader, more, tell, living)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise spool.damaged(folder, str(error).partition("\n")[0][:100]) from None


def _decoded(
    folder: Folder,
    reader: SpoolReader,
    more: Callable[[], bool],
    tell: Callable[[DecodingState], None],
    living: bool,
) -> DecodingState:
    here = Path(f"/proc/self/fd/{folder.descriptor}")
    begun, head = _head(reader)
    behind = _written_before(here, hashed=bool(begun.pointer_key))
    decoder = SpoolDecoder(begun, head, living=living, behind=behind)
    writer = Writer(
        folder.path,
        read_manifest(here),
        hash_pointers=bool(begun.pointer_key),
        pointer_key=begun.pointer_key,
        folder=folder,
    )
    maker = RecordingMaker(decoder, writer, reader, behind)
    told_ns = 0
    for entry in reader.entries(more):
        maker.take(entry)
        fired = decoder.fired is not None and maker.state.fired is None
        maker.state.fired, maker.state.notes = decoder.fired, decoder.notes
        now_ns = time.monotonic_ns()
        if fired or now_ns - told_ns > _TOLD_NS:
            tell(maker.state)
            told_ns = now_ns
        if decoder.ended:
            break
    maker.finish()
    return maker.state


def _head(reader: SpoolReader) -> tuple[Begun, list[SpoolEntry]]:
    """Read a spool's beginning. Raises ValueError where it has none."""
    head = reader.head()
    if not head or head[0].kind is not EntryKind.BEGUN:
        raise ValueError("it has no beginning")
    return unpacked(head[0].content, Begun), head[1:]


def begun_decoder(reader: SpoolReader) -> SpoolDecoder:
    """Begin to decode a spool while it is recorded. Raises ValueError where it has no beginning."""
    return SpoolDecoder(*_head(reader))


def _what_fired(fired: Fired, names: TaskNames) -> str:
    task = names.tasks.get(fired.tid)
    who = f"{task.comm} ({fired.tid})" if task else f"task {fired.tid}"
    mode = "exclusive" if fired.write else "shared"
    return f"stopped after {who}'s {mode} {fired.what} of {fired.lasted_ns / 1e6:.1f} ms or more"
