"""The lines of a recording: of one file or of all that -ff wrote, whole and as plain text.

Colours and stacks (-k) are left out, and what a message of strace's has broken is put together.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path

from zaplock.errors import UserError
from zaplock.inputs import open_plain

_MESSAGE = re.compile(r"(?:strace: )?Process \d{1,10} (?:attached|detached)\s?$")
_COLOR = re.compile(r"\x1b\[[0-9;]*[mK]")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")
_STACK = re.compile(r"^ {1,8}> ")
"""A line of what -k adds to a call."""


_LARGEST = 64 << 20
_MOST_LINES = 1_000_000
"""A parsed line takes 250 to 800 bytes."""
_SHORTER = "record a shorter run, or what is asked about alone (strace -e trace=%memory,...)"


def read_lines(path: Path) -> tuple[bool, list[tuple[str, str]]]:
    """Read a file, or all of `-ff` (PATH.PID): whether these are several, and (pid, line) pairs."""
    try:
        beside = [] if path.exists() else path.parent.glob(f"{glob.escape(path.name)}.*")
        parts = sorted(part for part in beside if part.suffix[1:].isdigit())
        if sum(part.stat().st_size for part in parts or [path]) > _LARGEST:
            raise UserError(f"{path} has over {_LARGEST >> 20} MiB: {_SHORTER}")
        lines: list[tuple[str, str]] = []
        for part in parts or [path]:
            for line in _text(part):
                if len(lines) >= _MOST_LINES:
                    raise UserError(f"{path} has over {_MOST_LINES:,} lines: {_SHORTER}")
                line = _COLOR.sub("", line)
                if not _STACK.match(line):
                    lines.append((part.suffix[1:] if parts else "", line))
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise UserError(f"can't read {path}: {told}; give a recording of strace") from None
    return bool(parts), lines


def _text(path: Path) -> Iterator[str]:
    with open_plain(path, "give a recording of strace") as file:
        if file.read(4).startswith(_PACKED):
            raise UserError(
                f"{path} is compressed: unpack it (gunzip, xz -d, zstd -d) and give that"
            )
        file.seek(0)
        yield from TextIOWrapper(file, encoding="utf-8-sig", errors="replace")


def rejoined(lines: Iterable[str]) -> Iterator[str]:
    """Put lines together that strace has broken by a message of its own, as it does on a terminal.

    Numbers of lines stay: an empty one comes after a joined one.
    """
    held: str | None = None
    for line in lines:
        broken = _MESSAGE.search(line)
        if held is not None:
            goes_on = not line.startswith("[pid ") and broken is None
            yield f"{held}{line}" if goes_on else f"{held}\n"
            held = None
            if goes_on:
                yield "\n"
                continue
        if broken and broken.start() and not line.startswith("#"):
            held = line[: broken.start()]
        else:
            yield line
    if held is not None:
        yield f"{held}\n"
