"""What a probe hands over: named records in a file that the guest saw as a device's memory.

The layout is told in capsule.c, which writes it. The file is sparse and made before the guest
starts; its header stays without a size until the probe has finished, so that a guest that was
stopped half-way is never read as a result.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = 64 << 20
"""Bytes of a capsule: 48 MiB of trace and the rest. A power of two, as a BAR must be."""

_MAGIC = b"ZAPCAPS1"
_HEADER = struct.Struct("<8sQQQ")
_RECORD = struct.Struct("<IIQ")
PHASES = ("boot", "populate", "teardown", "save")


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

    @property
    def facts(self) -> dict[str, str]:
        """The probe's own account: release, nr_cpus, length, begin_ns, end_ns and so on."""
        return dict(line.split("=", 1) for line in self.text("facts").splitlines())

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
        number = int(_HEADER.unpack(file.read(_HEADER.size))[2])
    return PHASES[min(number, len(PHASES) - 1)]


def read(path: Path) -> Capsule | None:
    """Read a finished capsule; None where the probe did not finish."""
    with path.open("rb") as file:
        magic, used, _, _ = _HEADER.unpack(file.read(_HEADER.size))
        if magic != _MAGIC or not _HEADER.size < used <= SIZE:
            return None
        return Capsule(_records(file.read(used - _HEADER.size)))


def _records(data: bytes) -> dict[str, bytes]:
    found, at = {}, 0
    while at < len(data):
        name_length, _, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        name = data[at : at + name_length].decode()
        at += _aligned(name_length)
        found[name] = data[at : at + length]
        at += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return (length + 7) & ~7
