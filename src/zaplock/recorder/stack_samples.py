"""Samples with call stacks, from the records of perf rings (include/uapi/linux/perf_event.h).

Of a stack's user part the kernel gives what it finds by frame pointers. The stub of a system call
in libc has no frame, so the function that calls it is missing; it is the word at the program's
stack pointer, which is taken along (`Sample.top`) and put in its place when the names are looked up
(`code_maps`), where one can see whether it is the address after a call.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from zaplock.trace.stack_reasons import Chain, StackReason

_LOST, _COMM, _EXIT, _FORK, _SAMPLE, _MMAP2 = 2, 3, 4, 7, 9, 10
_COMM_EXEC = 1 << 13
_CONTEXTS = 0xFFFF_FFFF_FFFF_F001
"""From here on a word of a chain is a mark (PERF_CONTEXT_*, down to -4095)."""
_USER = (1 << 64) - 512
_HEADER = struct.Struct("=IHH")
_SAMPLE_HEAD = struct.Struct("=QIIQQ")
_MMAP_HEAD = struct.Struct("=IIQQQIIQQII")


class Sample(NamedTuple):
    """A stack: when, of whom, why, the addresses, and the word at the stack pointer (0: none)."""

    time_ns: int
    pid: int
    tid: int
    reason: int
    chain: Chain
    top: int


class MappedCode(NamedTuple):
    """A process mapped code: [start, end) is the file from `offset` on, whose inode is given."""

    time_ns: int
    pid: int
    start: int
    end: int
    offset: int
    path: str
    inode: int


class ForkedProcess(NamedTuple):
    """A process was made, with its parent's mappings."""

    time_ns: int
    pid: int
    parent: int


class ExecutedProcess(NamedTuple):
    """A process called exec: its mappings are gone."""

    time_ns: int
    pid: int


class EndedProcess(NamedTuple):
    """A process's first thread ended."""

    time_ns: int
    pid: int


CodeEvent = MappedCode | ForkedProcess | ExecutedProcess | EndedProcess


@dataclass
class StackRecords:
    """What some records hold, in the order of their ring."""

    samples: list[Sample] = field(default_factory=list)
    code: list[CodeEvent] = field(default_factory=list)
    lost: int = 0


class StackDecoder:
    """Decode records; `reasons` says why an event of that id takes its samples.

    Chains that were seen before are not decoded again.
    """

    _MOST = 50_000

    def __init__(self, reasons: Mapping[int, StackReason], with_stack: bool) -> None:
        self._reasons = reasons
        self._with_stack = with_stack
        self._chains: dict[bytes, Chain] = {}

    def decode(self, raw: bytes) -> StackRecords:
        """Decode whole records."""
        found = StackRecords()
        for kind, misc, at, size in _records(raw):
            if kind == _SAMPLE:
                if (sample := self._sample(raw, at, size)) is not None:
                    found.samples.append(sample)
            elif kind in (_MMAP2, _FORK, _EXIT, _COMM):
                found.code += _code_events(raw, kind, misc, at, size)
            elif kind == _LOST:
                found.lost += struct.unpack_from("=Q", raw, at + 16)[0]
        return found

    def _sample(self, raw: bytes, at: int, size: int) -> Sample | None:
        number, pid, tid, time_ns, count = _SAMPLE_HEAD.unpack_from(raw, at + 8)
        first = at + 8 + _SAMPLE_HEAD.size
        after = first + 8 * count
        reason = self._reasons.get(number)
        if reason is None or not 0 < tid < 1 << 31 or after > at + size:
            return None
        top = self._top(raw, after, at + size) if self._with_stack else 0
        return Sample(time_ns, pid, tid, int(reason), self._chain(raw[first:after]), top)

    def _chain(self, words: bytes) -> Chain:
        known = self._chains.get(words)
        if known is None:
            if len(self._chains) >= self._MOST:
                self._chains.clear()
            known = self._chains[words] = _split(struct.unpack(f"={len(words) // 8}Q", words))
        return known

    def _top(self, raw: bytes, at: int, end: int) -> int:
        """Read the word at the stack pointer, 0 where the kernel had none (a kernel thread)."""
        if at + 16 > end:
            return 0
        (abi,) = struct.unpack_from("=Q", raw, at)
        at += 16 if abi else 8
        size, word = struct.unpack_from("=QQ", raw, at) if at + 24 <= end else (0, 0)
        if not size or at + 16 + size > end:
            return 0
        (taken,) = struct.unpack_from("=Q", raw, at + 8 + size)
        return int(word) if taken >= 8 else 0


def _records(raw: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (kind, misc, offset, size) of each record."""
    at = 0
    while at + 8 <= len(raw):
        kind, misc, size = _HEADER.unpack_from(raw, at)
        if size < 8:
            return
        yield kind, misc, at, size
        at += size


def _split(words: tuple[int, ...]) -> Chain:
    kernel: list[int] = []
    user: list[int] = []
    into = kernel
    for word in words:
        if word >= _CONTEXTS:
            into = user if word == _USER else kernel
        elif word:
            into.append(word)
    return tuple(kernel), tuple(user)


def _code_events(raw: bytes, kind: int, misc: int, at: int, size: int) -> Iterator[CodeEvent]:
    """Say what a record tells of processes and their code; its last words are time and number."""
    (time_ns,) = struct.unpack_from("=Q", raw, at + size - 16)
    pid, parent, tid = struct.unpack_from("=III", raw, at + 8)
    if kind == _MMAP2:
        yield _mapped(raw, at, size, time_ns)
    elif kind == _FORK and pid == tid and pid != parent:
        yield ForkedProcess(time_ns, pid, parent)
    elif kind == _EXIT and pid == tid:
        yield EndedProcess(time_ns, pid)
    elif kind == _COMM and misc & _COMM_EXEC:
        yield ExecutedProcess(time_ns, pid)


def _mapped(raw: bytes, at: int, size: int, time_ns: int) -> MappedCode:
    pid, _, start, length, offset, _, _, inode, _, _, _ = _MMAP_HEAD.unpack_from(raw, at + 8)
    name = raw[at + 8 + _MMAP_HEAD.size : at + size].split(b"\0")[0]
    path = name.decode(errors="surrogateescape")
    return MappedCode(time_ns, pid, start, start + length, offset, path, inode)
