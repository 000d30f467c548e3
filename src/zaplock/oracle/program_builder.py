"""What programs are put together with: entries, earlier results in them, words in memory."""

from __future__ import annotations

from zaplock.oracle import ops, ring, stub
from zaplock.oracle.ops import Op, Ref

_E = stub.ENTRY
WORD_MASK = (1 << 64) - 1
"""Negative numbers as a register has them; as an argument: nobody's, none."""
SCANS, SCANS_OF_HUGE = 3, 8
"""How often ksmd scans: once for the checksums, once to merge, and once more to be sure.

It splits one huge page of zeros in each scan; more of them wait for the next.
"""


class Builder:
    """Append entries; `here` is where the next one will be (an offset from the program's start)."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.here = 0
        self.segments: dict[str, int] = {}  # by what attaches it: the entry that has made it
        self.observes = ring.OBSERVE  # how a forked child looks at itself
        self.scans = SCANS  # of ksmd's, in each operation
        self.has_pidfd = False
        self.scratch = ring.RING + ring.SCRATCH  # words for calls that are told where to look
        self.page = ring.RING + ring.PATTERN  # what calls copy from, or to

    def add(self, *entries: bytes) -> int:
        """Append entries (each a multiple of an entry long); return where the first one is."""
        first = self.here
        for part in entries:
            self.parts.append(part)
            self.here += len(part)
        return first

    def add_one(self, entry: bytes) -> int:
        """Append one entry; return where it is."""
        first = self.here
        self.parts.append(entry)
        self.here = first + _E
        return first


def address(offset: int) -> int:
    """Return where an entry of the program is in the child."""
    return ring.RING + ring.PROGRAM + offset


def with_refs(b: Builder, op: Op, entry: bytes, results: list[int]) -> int:
    """Append an entry, before it the patches that put earlier results into its arguments."""
    if Ref not in map(type, op.args):
        return b.add_one(entry)
    refs = [(k, value) for k, value in enumerate(op.args) if isinstance(value, Ref)]
    target = b.here + len(refs) * _E
    for k, ref in refs:
        source = address(results[ref.op] + stub.RESULT)
        b.add(stub.entry(stub.PATCH, address(target + 8 + 8 * k), source, ref.delta & WORD_MASK))
    return b.add_one(entry)


def store_word(b: Builder, place: int, word: ops.Argument, results: list[int]) -> None:
    """Append what puts an argument, perhaps an earlier result, where a call is to read it."""
    value = word & WORD_MASK if isinstance(word, int) else 0
    with_refs(b, Op("store", (place, word)), stub.entry(stub.STORE, place, value), results)


def write_number(b: Builder, fd: int, number: str) -> int:
    """Append what writes a number to a file; return where its result is."""
    text, place = number.encode(), b.scratch + 24
    for at in range(0, len(text), 8):
        word = int.from_bytes(text[at : at + 8], "little")
        b.add(stub.entry(stub.STORE, place + at, word))
    return b.add(ring.call("pwrite64", fd, place, len(text), 0))
