"""What a probe hands over: named records in a file that the guest saw as a device's memory.

The layout is told in capsule.c, which writes it. The file is sparse and made before the guest
starts; its header stays without a size until the probe has finished, so that a guest that was
stopped half-way is never read as a result.

A guest's kernel may be anything, so nothing that it hands over is believed: `read` bounds every
length by the file, takes only names of the forms that the probe writes (none can lead a path
anywhere), and checks the facts and the bystanders' tables that everything else rests on.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zaplock.errors import UserError
from zaplock.untrusted_names import visible

SIZE = 64 << 20
"""Bytes of a capsule: 48 MiB of trace and the rest. A power of two, as a BAR must be."""

_MAGIC = b"ZAPCAPS1"
_HEADER = struct.Struct("<8sQQQ")
_RECORD = struct.Struct("<IIQ")
PHASES = ("boot", "populate", "teardown", "save")
_NAME = re.compile(
    r"[a-z_]{1,32}|lane/[a-z]{1,16}/[0-9]{1,9}/[0-9]{1,9}|(pages|stats)/cpu[0-9]{1,4}"
    r"|events/(header_page|header_event|[A-Za-z0-9_]{1,64}/[A-Za-z0-9_]{1,128}/format)"
)
_MOST_RECORDS = 4096
_NUMBERS = (
    "nr_cpus", "target_pid", "brk_begin_ns", "brk_end_ns", "begin_ns", "end_ns", "cpu_ns"
)  # fmt: skip
_TEXTS = ("release", "version")
_MOST_DIGITS = 18


class CapsuleError(UserError):
    """Report that a guest handed over what no probe writes."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the guest handed over what can't be read ({visible(what)}): "
            "try another kernel, such as debian:6.1"
        )


@dataclass(frozen=True, slots=True)
class Lane:
    """One bystander: its operations' begins and ends, CLOCK_MONOTONIC of its kernel, ns."""

    name: str
    pid: int
    tid: int
    begin_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Capsule:
    """The records of a finished probe by name."""

    records: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """Return a record as text, empty where there is none."""
        return self.records.get(name, b"").decode(errors="replace")

    def lines(self, name: str) -> list[str]:
        """Return a record as lines of text, none where there is none."""
        return self.text(name).splitlines()

    @property
    def facts(self) -> dict[str, str]:
        """The probe's own account: release, nr_cpus, length, begin_ns, end_ns and so on."""
        pairs = (line.partition("=") for line in self.text("facts").splitlines())
        return {name: visible(value) for name, _, value in pairs}

    def fact(self, name: str) -> int:
        """Return a fact that is a number."""
        return int(self.facts[name])

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The bystanders in the order in which they were asked for."""
        found = [name.split("/") for name in self.records if name.startswith("lane/")]
        return tuple(self._lane(name, int(pid), int(tid)) for _, name, pid, tid in found)

    def _lane(self, name: str, pid: int, tid: int) -> Lane:
        ops = np.frombuffer(self.records[f"lane/{name}/{pid}/{tid}"], np.int64).reshape(-1, 2)
        return Lane(name, pid, tid, ops[:, 0], ops[:, 1])

    def files(self, prefix: str) -> dict[str, bytes]:
        """Return the records whose name begins so."""
        return {name: data for name, data in self.records.items() if name.startswith(prefix)}


def make(path: Path) -> None:
    """Make an empty capsule."""
    with path.open("wb") as file:
        file.truncate(SIZE)


def phase(path: Path) -> str:
    """Say what the probe is at, while it runs."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    number = int(_HEADER.unpack(header)[2]) if len(header) == _HEADER.size else 0
    return PHASES[min(number, len(PHASES) - 1)]


def read(path: Path) -> Capsule | None:
    """Read a finished capsule; None where the probe did not finish."""
    with path.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CapsuleError("its file is none any more")
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise CapsuleError("its file was cut")
        magic, used, _, _ = _HEADER.unpack(header)
        if magic != _MAGIC or not _HEADER.size < used <= SIZE:
            return None
        found = Capsule(_records(file.read(used - _HEADER.size)))
    _check(found)
    return found


def _records(data: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _RECORD.size:
            raise CapsuleError("a record is cut off")
        name_length, _, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if _aligned(name_length) + _aligned(length) > len(data) - at:
            raise CapsuleError("a record is longer than the capsule")
        name = data[at : at + name_length].decode("ascii", "replace")
        if not _NAME.fullmatch(name) or name in found or len(found) >= _MOST_RECORDS:
            raise CapsuleError(f"a record is called {name[:80]!r}")
        at += _aligned(name_length)
        found[name] = data[at : at + length]
        at += _aligned(length)
    return found


def _check(capsule: Capsule) -> None:
    facts = capsule.facts
    for name in (*_NUMBERS, *_TEXTS):
        if name not in facts:
            raise CapsuleError(f"it says no {name}")
    for name in _NUMBERS:
        if not re.fullmatch(rf"-?[0-9]{{1,{_MOST_DIGITS}}}", facts[name], re.ASCII):
            raise CapsuleError(f"{name} is {facts[name][:40]!r}")
    for name, ops in capsule.files("lane/").items():
        if len(ops) % 16:
            raise CapsuleError(f"{name} is no table of times")


def _aligned(length: int) -> int:
    return (length + 7) & ~7
