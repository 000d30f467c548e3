"""The guest's root file system: a cpio archive in the kernel's "newc" format, from memory.

Written in Python, so that no root is needed (a device node is only a header) and the same files
give the same bytes: entries are sorted, owned by root and dated 0. Format: "newc" is the magic
070701 and thirteen fields of eight hex digits, name and data each padded to four bytes
(Documentation/driver-api/early-userspace/buffer-format.rst). Not compressed: unpacking a megabyte
costs an emulated CPU more than copying it.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

_FIELDS = 13


@dataclass(frozen=True, slots=True)
class Entry:
    """One inode: its mode with type bits, its data, and major and minor of a device node."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory() -> Entry:
    return Entry(stat.S_IFDIR | 0o755)


def program(data: bytes) -> Entry:
    return Entry(stat.S_IFREG | 0o755, data)


def character_device(major: int, minor: int) -> Entry:
    return Entry(stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Mapping[str, Entry]) -> bytes:
    """Pack the entries, a directory before what lies in it, and close with the trailer."""
    names = sorted(entries)
    packed = [_record(number, name, entries[name]) for number, name in enumerate(names, start=1)]
    return b"".join([*packed, _record(0, "TRAILER!!!", Entry(0))])


def guest_root(init: bytes) -> bytes:
    """Make the archive that boots straight into `init`: it, a console, and where it mounts."""
    return archive(
        {
            "dev": directory(),
            "dev/console": character_device(5, 1),
            "init": program(init),
            "proc": directory(),
            "sys": directory(),
        }
    )


def _record(inode: int, name: str, entry: Entry) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    size, (major, minor) = len(entry.data), entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, len(encoded), 0)
    assert len(fields) == _FIELDS
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
