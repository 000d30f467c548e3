"""Segments of System V shared memory: which there are, how long they are, and attaching them.

A segment may have been made before the recording began, by others, or with another length than an
shmget names that only finds it. zaplock's recorder tells the length of each that is attached; maps
tell of those that are attached when a recording begins. Else a length that is asked for to make it
is believed, until where it is attached tells otherwise.

Source: ipc/shm.c newseg, ipc/util.c ipcget.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from errno import EINVAL

from zaplock.programs.arguments import NotRecorded, numbers
from zaplock.programs.ipc_namespaces import IpcNamespaces
from zaplock.programs.recorded_world import LiveSpace, Segment, StraceWorld
from zaplock.programs.recording import UNKNOWN, Area, StraceRecording, TracedCall
from zaplock.programs.text import CONSTANTS, number
from zaplock.protocols import shm
from zaplock.protocols.placement import huge_size_of

_IPC_64 = 0x100
"""What 32-bit programs add to the command of shmctl: which structure it is about."""
_WORD = 0xFFFF_FFFF


def make_segments(world: StraceWorld, recording: StraceRecording) -> None:
    """Make the segments that a recording tells, which any process of their namespace may attach."""
    world.namespaces = IpcNamespaces(recording)
    lengths: dict[Segment, tuple[int, int]] = {}
    keys: dict[Segment, int] = {}
    for call in recording.calls:
        if call.cut or not 0 <= call.result < UNKNOWN:
            continue
        with suppress(ValueError, IndexError):  # most commands of shmctl have no number here
            if call.name == "shmget":
                _got(world, call, lengths, keys)
            elif call.name == "shmctl" and not call.result:
                segment, command = (number(argument) for argument in call.arguments[:2])
                key = _named(world, call.pid, call.line, segment)
                if command & ~_IPC_64 == CONSTANTS["IPC_RMID"] and key:
                    world.removed.setdefault(key, call.end)
    for note in recording.notes:
        if note.kind == "segment":
            segment, page = map(int, note.name.split())
            if key := _named(world, note.pid, note.line, segment):
                lengths[key] = note.value, page
                world.guessed.discard(key)
    for key, (size, huge) in lengths.items():
        world.segments[key] = world.new_segment(size, keys.get(key, 0), huge)
    for area in recording.begin:
        _attached_before(world, recording, area)


def _got(
    world: StraceWorld,
    call: TracedCall,
    lengths: dict[Segment, tuple[int, int]],
    keys: dict[Segment, int],
) -> None:
    """Note how long a new segment is; of one that an shmget finds it tells only the least."""
    key, size, flags = (number(argument) for argument in call.arguments[:3])
    named = _named(world, call.pid, call.line, call.result)
    if named is None:
        return
    keys[named] = key & _WORD
    creates, alone = (flags & CONSTANTS[name] for name in ("IPC_CREAT", "IPC_EXCL"))
    is_new = not key & _WORD or (creates and alone)
    if is_new or (creates and named not in lengths):
        huge = huge_size_of(flags) if flags & CONSTANTS["SHM_HUGETLB"] else 0
        lengths[named] = size, huge
        (world.guessed.discard if is_new else world.guessed.add)(named)


def _named(world: StraceWorld, pid: int, line: int, segment: int) -> Segment | None:
    namespace = world.namespaces.of(pid, line) if world.namespaces else None
    return None if namespace is None else (namespace, segment)


def _attached_before(world: StraceWorld, recording: StraceRecording, area: Area) -> None:
    """Make a segment that is attached when the recording begins: its inode tells its id."""
    if not area.name.startswith("/SYSV") or not area.inode:
        return
    named = _named(world, recording.pid, 0, area.inode)
    if named is None or named in world.segments:
        return
    same = [other for other in recording.begin if other.inode == area.inode]
    size = max(other.offset + other.end - other.start for other in same)
    world.segments[named] = world.new_segment(size, int(area.name[5:13], 16))
    world.guessed.add(named)


def segment_of(world: StraceWorld, live: LiveSpace, call: TracedCall) -> tuple[Segment, int | None]:
    """Return which segment a call names, and its file, None where nothing is known of it."""
    named = _named(world, call.pid, call.line, numbers(call, 1)[0])
    if named is None:
        raise NotRecorded("which IPC namespace it is in, that was entered, is not in the recording")
    return named, dict(live.known.segments).get(named) or world.segments.get(named)


def shmat_call(
    world: StraceWorld, live: LiveSpace, call: TracedCall, length: int | None = None
) -> int:
    """Attach a segment, whose length is known, or given."""
    segment, address, flags = numbers(call, 3)
    if segment >> 31 & 1:
        return -EINVAL  # no segment has a negative id
    named, file = segment_of(world, live, call)
    if file is None or (length is not None and is_guessed(world, named)):
        if length is None:
            return _without_size(world, named)
        file = world.new_segment(length)
        others = [pair for pair in live.known.segments if pair[0] != named]
        live.known = replace(live.known, segments=(*others, (named, file)))
    return world.run(live, shm.shmat(world.cx(live), file, address, flags))


def _without_size(world: StraceWorld, named: Segment) -> int:
    """Return -EINVAL where there is no such segment: in a new namespace all are seen made.

    Of an id whose place another one has the kernel says so (EIDRM).
    """
    namespace, segment = named
    is_new = world.namespaces is not None and namespace in world.namespaces.new
    places = {other & _PLACE for where, other in world.segments if where == namespace}
    if is_new and segment & _PLACE not in places:
        return -EINVAL
    raise NotRecorded("the size of the segment is not in the recording")


_PLACE = 0x7FFF


def is_guessed(world: StraceWorld, named: Segment) -> bool:
    """Return whether the length of a segment is only what an shmget asks for."""
    return named in world.guessed
