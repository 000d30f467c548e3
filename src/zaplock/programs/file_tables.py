"""Which file each descriptor stands for, by table: threads share one, most children have their own.

A child that shares its maker's memory but not its descriptors (vfork, CLONE_VM without CLONE_FILES)
closes and duplicates its own. Tables that two address spaces share (CLONE_FILES without CLONE_VM)
are taken for two; the recorder's `Facts` show where that matters. Source: clone(2), unshare(2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

OWN = 0
"""The table that a space begins with."""
_MODES = {"r": 0, "w": 1, "rw": 2, "none": 3}
_FACTS = re.compile(
    r"^(\d{1,10}) (r|w|rw|none) (\d{1,10}:\d{1,20})(?: seals=([0-9a-f]{1,8}))?"
    r"(?: huge=(\d{1,20}))?( noexec)?( stacked)?$"
)


class Facts(NamedTuple):
    """What the recorder saw behind a descriptor that is about to be mapped.

    `mode`: O_ACCMODE, 3 where it was opened to be named only (O_PATH). `inode`: its mount and
    number. `seals`: of a memfd, else None. `huge`: bytes of its huge pages, 0 for none.
    `stacked`: it lies on a file system that maps files of others (overlayfs).
    """

    descriptor: int
    mode: int
    inode: str
    seals: int | None = None
    huge: int = 0
    noexec: bool = False
    stacked: bool = False


def facts_of(text: str) -> Facts:
    """Read what `facts_text` has written. Raises ValueError."""
    matched = _FACTS.match(text)
    if matched is None:
        raise ValueError(f"{text!r} is no descriptor, mode and inode")
    number, mode, inode, seals, huge, noexec, stacked = matched.groups()
    return Facts(
        int(number), _MODES[mode], inode, int(seals, 16) if seals else None,
        int(huge or 0), bool(noexec), bool(stacked),
    )  # fmt: skip


def facts_text(facts: Facts) -> str:
    """Write facts as the rest of a line of a recording."""
    mode = next(name for name, value in _MODES.items() if value == facts.mode)
    seals = "" if facts.seals is None else f" seals={facts.seals:x}"
    huge = f" huge={facts.huge}" if facts.huge else ""
    flags = " noexec" * facts.noexec + " stacked" * facts.stacked
    return f"{facts.descriptor} {mode} {facts.inode}{seals}{huge}{flags}"


@dataclass(frozen=True, slots=True)
class FileTables:
    """The files of a space by table and descriptor, and which table a process uses.

    A change makes a new one. `inodes`: of files that the recorder has seen mapped; `facts`: what it
    saw last for each thread.
    """

    files: Mapping[tuple[int, int], int]
    of: Mapping[int, int]
    inodes: Mapping[int, str]
    facts: Mapping[int, Facts]

    def __hash__(self) -> int:
        parts = (self.files, self.of, self.inodes, self.facts)
        return hash(tuple(frozenset(part.items()) for part in parts))

    def file(self, pid: int, descriptor: int) -> int | None:
        """Return which file a descriptor stands for; None where nobody has seen it opened."""
        return self.files.get((self.of.get(pid, OWN), descriptor))

    def has(self, file: int) -> bool:
        """Return whether a descriptor is left that stands for a file."""
        return file in self.files.values()

    def put(self, pid: int, descriptor: int, file: int | None) -> FileTables:
        """Let a descriptor stand for a file, or for what nobody has seen."""
        key = (self.of.get(pid, OWN), descriptor)
        files = {known: value for known, value in self.files.items() if known != key}
        return replace(self, files=files if file is None else {**files, key: file})

    def closed(self, pid: int, first: int, last: int) -> FileTables:
        """Close all descriptors from `first` to `last`."""
        table = self.of.get(pid, OWN)
        gone = {key for key in self.files if key[0] == table and first <= key[1] <= last}
        if not gone:
            return self
        files = {key: file for key, file in self.files.items() if key not in gone}
        return replace(self, files=files)

    def shared(self, maker: int, child: int) -> FileTables:
        """Let a child use its maker's table."""
        table = self.of.get(maker, OWN)
        return replace(self, of={**self.of, child: table}) if table != OWN else self

    def copied(self, maker: int, child: int) -> FileTables:
        """Give a child, or a thread that leaves its table, a copy of its maker's."""
        table = self.of.get(maker, OWN)
        files = {key: file for key, file in self.files.items() if key[0] != child}
        files |= {(child, key[1]): file for key, file in self.files.items() if key[0] == table}
        return replace(self, files=files, of={**self.of, child: child})

    def forked(self, maker: int) -> FileTables:
        """Return the tables of a new space: its maker's alone."""
        table = self.of.get(maker, OWN)
        files = {(OWN, key[1]): file for key, file in self.files.items() if key[0] == table}
        return FileTables(files, {}, self.inodes, {})

    def seen(self, pid: int, facts: Facts) -> FileTables:
        """Note what the recorder saw of a descriptor."""
        return replace(self, facts={**self.facts, pid: facts})

    def of_inode(self, file: int, inode: str) -> FileTables:
        """Note which inode a file has."""
        return replace(self, inodes={**self.inodes, file: inode})

    def facts_for(self, pid: int, descriptor: int) -> Facts | None:
        """Return what the recorder saw of a descriptor just now, None where it saw nothing."""
        facts = self.facts.get(pid)
        return facts if facts is not None and facts.descriptor == descriptor else None


NO_FILES = FileTables({}, {}, {}, {})
