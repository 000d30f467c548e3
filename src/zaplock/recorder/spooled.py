"""What the entries of a spool hold that are no raw bytes, and how they are written.

MessagePack with types: what comes back is of just these types, or the spool is damaged. Nothing in
it is code (a pickle would be).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from zaplock.recorder.beginning import Beginning
from zaplock.recorder.code_areas import CodeArea
from zaplock.recorder.flight_limits import Fired, Flight
from zaplock.recorder.layouts import Layouts
from zaplock.trace.quota_readings import QuotaReading
from zaplock.trace.recorded_tasks import FoundTask, RecordedTask

if TYPE_CHECKING:
    from zaplock.recorder.watch import Noticed

_LARGEST_PAGE = 1 << 20

Told = TypeVar("Told")


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded, and what was so when that began."""

    layouts: Layouts
    pids: tuple[int, ...]
    children: bool
    mms: dict[int, int]
    """The process of each address space that is known."""
    semaphores: tuple[int, ...]
    on_ns: int
    look: Beginning | None = None
    """None where a watch comes first."""
    stacks: bool = False
    callers: bool = False
    """Whether stacks were taken, and whether with the word at the stack pointer."""
    flight: Flight | None = None
    """What is looked for while it is recorded; None where nothing is, or a watch has found it."""
    pointer_key: bytes = b""
    """Under which addresses of the kernel are hashed; empty where they are not. It goes with the
    spool, which has the addresses themselves."""
    notes: tuple[str, ...] = ()
    """What could not be had, and why."""
    boot: str = ""
    """Which boot of the machine it was: addresses of the kernel mean nothing in another."""


class CodeOfProcess(msgspec.Struct, frozen=True):
    """What code a process had mapped, and whose it is."""

    pid: int
    user: int | None
    areas: tuple[CodeArea, ...]


class LearnedLater(msgspec.Struct, frozen=True):
    """The address space that a process made by an exec."""

    pid: int
    mm: int


class NotedGap(msgspec.Struct, frozen=True):
    """When somebody else kept events from us, and what is to be said of it."""

    since_ns: int
    until_ns: int
    note: str


class NoticedWait(msgspec.Struct, frozen=True):
    """What a watch noticed: `watch.Noticed`, with its first events as bytes of columns."""

    fired: Fired
    first: dict[str, bytes]
    on_ns: int
    found: tuple[FoundTask, ...]
    hidden: tuple[int, ...]
    operations: tuple[str, ...]


class Ended(msgspec.Struct, frozen=True):
    """When it ended, and what is known then."""

    off_ns: int
    lost_events: int
    """How many the kernel says that it lost."""
    lost_stacks: int = 0
    readings: tuple[QuotaReading, ...] = ()
    groups: dict[int, tuple[str, ...]] = {}


Tasks = tuple[RecordedTask, ...]
Found = tuple[FoundTask, ...]
Code = tuple[CodeOfProcess, ...]
Reasons = dict[int, int]
"""Why the event of a perf number takes its samples (`StackReason`)."""


def noticed_wait(noticed: Noticed, operations: list[str]) -> NoticedWait:
    """Write what a watch noticed; `operations` are what its rows count."""
    first = {name: column.tobytes() for name, column in noticed.first.items()}
    names = tuple(operations)
    return NoticedWait(noticed.fired, first, noticed.on_ns, noticed.found, noticed.hidden, names)


def packed(value: Any) -> bytes:
    """Write a value."""
    return msgspec.msgpack.encode(value)


def unpacked(content: bytes, kind: type[Told]) -> Told:
    """Read a value of a type. Raises ValueError where it is none."""
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def check_layouts(layouts: Layouts) -> None:
    """Raise ValueError unless pages could be laid out like that."""
    page = layouts.page
    inside = 8 <= page.commit_offset < page.data_offset < page.page_size
    if not inside or page.page_size & 4095 or page.page_size > _LARGEST_PAGE:
        raise ValueError(f"pages of {page.page_size} bytes")
    for event in layouts.events:
        for field in event.fields:
            if not 0 <= field.offset <= field.offset + field.size <= page.page_size:
                raise ValueError(f"a field at {field.offset} of {event.event}")
        if not 0 <= event.id < 1 << 16:
            raise ValueError(f"the number {event.id} of an event")


def this_boot() -> str:
    """Return which boot of the machine this is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
