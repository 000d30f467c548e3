"""How this kernel lays its trace events out in memory, as it says itself.

Read from `events/*/*/format`, `events/header_page` and `events/header_event`; ids and offsets
differ between kernels and between two boots' configurations, so none is written down here. What
has changed under mmap_lock: a string `memcg_path` (5.11 to 6.14) became a number `memcg_id`.

Not covered: kernels of the other byte order, and 32-bit ones.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zaplock.errors import UserError

_FIELD = re.compile(
    r"^[ \t]*+field:(?P<declaration>[^;\n]++);\s*+offset:(?P<offset>\d++);\s*+size:(?P<size>\d++);"
    r"(?:\s*+signed:(?P<signed>[01]);)?",
    re.MULTILINE,
)
_HEADER = {"type_len": "5", "time_delta": "27", "array": "32"}
_CODES = {"padding": "29", "time_extend": "30", "time_stamp": "31", "data max type_len": "28"}


@dataclass(frozen=True, slots=True)
class EventField:
    """One field of an event: `offset` and `size` in bytes from the event's first byte."""

    name: str
    offset: int
    size: int
    signed: bool


@dataclass(frozen=True, slots=True)
class EventLayout:
    """One event's number and fields, in the order of the kernel's format file."""

    event: str
    """As system:name."""
    id: int
    fields: tuple[EventField, ...]

    def field(self, name: str) -> EventField | None:
        """Find a field by name, or None where this kernel has none of that name."""
        return next((field for field in self.fields if field.name == name), None)

    @property
    def arguments(self) -> tuple[EventField, ...]:
        """The arguments of a system call's entry event, first to last."""
        names = [field.name for field in self.fields]
        return self.fields[names.index("__syscall_nr") + 1 :] if "__syscall_nr" in names else ()


@dataclass(frozen=True, slots=True)
class PageLayout:
    """How a page of the ring buffer begins: all in bytes."""

    page_size: int
    commit_offset: int
    commit_size: int
    data_offset: int


def parse_format(system: str, text: str) -> EventLayout:
    """Parse one `format` file."""
    name = re.search(r"^name: (\S+)", text, re.MULTILINE)
    number = re.search(r"^ID: (\d+)", text, re.MULTILINE)
    if not name or not number:
        raise UserError(f"the format of an event of {system} is unreadable: run 'zaplock doctor'")
    return EventLayout(f"{system}:{name[1]}", int(number[1]), _fields(text))


def _fields(text: str) -> tuple[EventField, ...]:
    return tuple(
        EventField(
            re.sub(r"\[.*", "", match["declaration"]).split()[-1].lstrip("*"),
            int(match["offset"]),
            int(match["size"]),
            match["signed"] == "1",
        )
        for match in _FIELD.finditer(text)
    )


def parse_header_page(text: str) -> PageLayout:
    """Parse `events/header_page`."""
    fields = {field.name: field for field in _fields(text)}
    data, commit = fields.get("data"), fields.get("commit")
    if data is None or commit is None:
        raise UserError("the layout of trace pages is unreadable: run 'zaplock doctor'")
    return PageLayout(data.offset + data.size, commit.offset, commit.size, data.offset)


def check_header_event(text: str) -> None:
    """Raise UserError unless events are packed in the way that `pages` unpacks them."""
    lines = [line.split() for line in text.splitlines()]
    widths = {words[0]: words[2] for words in lines if words[1::2] == [":", "bits"]}
    codes = {
        " ".join(words[:-2]).removesuffix(" : type"): words[-1]
        for words in lines
        if words[-2:-1] == ["=="]
    }
    wrong = [name for name, width in _HEADER.items() if widths.get(name) != width]
    # Before 4.17 (dc4e2801d400) no time stamp was ever written, nor its number told.
    codes.setdefault("time_stamp", _CODES["time_stamp"])
    wrong += [name for name, code in _CODES.items() if codes.get(name) != code]
    if wrong or sys.byteorder != "little":
        raise UserError(
            f"this kernel packs trace events in a way that zaplock does not know "
            f"({', '.join(wrong) or 'big-endian'}): use 'trace-cmd report' and 'zaplock import'"
        )


@dataclass(frozen=True, slots=True)
class Layouts:
    """Everything that is needed to unpack the pages of one kernel."""

    page: PageLayout
    events: tuple[EventLayout, ...]

    def of(self, event: str) -> EventLayout | None:
        """Find an event by system:name."""
        return next((layout for layout in self.events if layout.event == event), None)


def read_layouts(root: Path, events: tuple[str, ...]) -> Layouts:
    """Read the layouts of these events (system:name) under a tracefs.

    An event that this kernel doesn't have is left out.
    """

    def told(name: str) -> str | None:
        file = root / "events" / name
        return file.read_text() if file.exists() else None

    return layouts_told(told, events)


def layouts_told(told: Callable[[str], str | None], events: tuple[str, ...]) -> Layouts:
    """Parse the layouts of these events from the texts of a tracefs's `events` folder, by name.

    Raises UserError where a text is missing or makes no sense.
    """
    check_header_event(told("header_event") or "")
    page = parse_header_page(told("header_page") or "")
    found = []
    for event in events:
        system, name = event.split(":")
        text = told(f"{system}/{name}/format")
        if text is not None:
            found.append(parse_format(system, text))
    return Layouts(page, tuple(found))
