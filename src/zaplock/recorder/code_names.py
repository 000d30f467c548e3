"""What code the addresses of stacks are: learned while the processes live, said afterwards.

The kernel tells each file that a process maps as code (`stack_samples.MappedCode`), so the names
are found after the process has ended as well. Only the mappings from before the recording must be
asked for, in /proc/PID/maps, which takes that process's mmap_lock (before 6.17): by a thread that
nobody waits for, before the recording begins, and of those that still live once more at the end.

Beside names it says which words of a program are the address after a call, and which the address
after a system call: by that a stub's caller is told from any other word on its stack.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from zaplock.recorder import symbols
from zaplock.recorder.stack_samples import (
    CodeEvent,
    EndedProcess,
    ExecutedProcess,
    ForkedProcess,
    MappedCode,
    Sample,
)
from zaplock.recorder.target_files import opened, part, user_of
from zaplock.trace.stacks import KERNEL, AddressKind, NamedAddress

_MOST_AREAS = 20_000
PATIENCE_S = 2.0
"""So long a process's maps are waited for: its lock may be held for minutes."""
NAMING_PATIENCE_S = 60.0

_ALWAYS, _NEVER = -(1 << 62), 1 << 62


@dataclass(frozen=True, slots=True)
class CodeArea:
    """MappedCode code: where, of which file from which offset on, and when the process had it."""

    start: int
    end: int
    offset: int
    path: str
    inode: int
    since_ns: int = _ALWAYS
    until_ns: int = _NEVER


@dataclass(slots=True)
class SeenAddress:
    """An address of stacks: when last, and whether the task was there (not: will return to it)."""

    time_ns: int
    exact: bool


@dataclass
class _Process:
    areas: list[CodeArea] = field(default_factory=list)
    """The newest last."""
    user: int | None = None
    ended_ns: int = _NEVER
    addresses: dict[int, SeenAddress] = field(default_factory=dict)


class CodeNames:
    """The code of the processes of a recording."""

    def __init__(self) -> None:
        self._processes: dict[int, _Process] = {}
        self._kernel: dict[int, SeenAddress] = {}
        self.nameless: set[int] = set()
        """Processes whose stacks are bare addresses, since nobody told what they had mapped."""
        self.unwalked: set[int] = set()
        """Processes whose runtime wrote a map, but no stack got as far as one of its functions."""

    def snapshot(self, pids: Iterable[int]) -> None:
        """Ask for what these processes have mapped now; those that don't answer soon stay out."""
        wanted = list(pids)
        asker = threading.Thread(target=self._ask, args=(wanted,), daemon=True)
        asker.start()
        asker.join(PATIENCE_S)

    def _ask(self, pids: list[int]) -> None:
        for pid in pids:
            self._processes[pid] = _Process(areas_of(pid), user_of(pid))

    def learn(self, events: Iterable[CodeEvent]) -> None:
        """Learn from the kernel's records of some time, in any order."""
        for event in sorted(events, key=lambda event: event.time_ns):
            process = self._processes.setdefault(event.pid, _Process())
            if isinstance(event, MappedCode):
                area = CodeArea(*event[2:], since_ns=event.time_ns)
                process.areas = [*process.areas[-_MOST_AREAS:], area]
            elif isinstance(event, ForkedProcess):
                parent = self._processes.get(event.parent, _Process())
                self._processes[event.pid] = _Process(list(parent.areas), parent.user)
            elif isinstance(event, ExecutedProcess):
                process.areas = [_until(area, event.time_ns) for area in process.areas]
            elif isinstance(event, EndedProcess):
                process.ended_ns = event.time_ns

    def saw(self, samples: Iterable[Sample]) -> None:
        """Note the addresses of stacks that are kept."""
        for sample in samples:
            kernel, user = sample.chain
            _note(self._kernel, kernel, sample.time_ns)
            if user:
                process = self._processes.setdefault(sample.pid, _Process())
                if process.user is None and process.ended_ns == _NEVER:
                    process.user = user_of(sample.pid)
                _note(process.addresses, user, sample.time_ns)
                if sample.top:
                    _note(process.addresses, (0, sample.top), sample.time_ns)

    def forget(self, before_ns: int) -> None:
        """Forget processes that have ended before an instant, to which all stacks were seen."""
        gone = [
            pid
            for pid, one in self._processes.items()
            if one.ended_ns < before_ns and not one.addresses
        ]
        for pid in gone:
            del self._processes[pid]

    def named(self) -> dict[tuple[int, int], NamedAddress]:
        """Say what the addresses are; after the recording, since it may read /proc/PID/maps.

        A file system that does not answer ends it: the rest stays without a name.
        """
        found: dict[tuple[int, int], NamedAddress] = {}
        namer = threading.Thread(target=self._name, args=(found,), daemon=True)
        namer.start()
        namer.join(NAMING_PATIENCE_S)
        return dict(found)

    def _name(self, found: dict[tuple[int, int], NamedAddress]) -> None:
        if self._kernel:
            functions = symbols.kernel_functions()
            for address, seen in self._kernel.items():
                if name := functions.find(address - (not seen.exact)):
                    found[KERNEL, address] = NamedAddress(symbols.readable(name))
        for pid, process in self._processes.items():
            if process.addresses:
                areas = [*areas_of(pid), *process.areas]
                if not areas:
                    self.nameless.add(pid)
                reader = _Reader(pid, process, areas)
                for address, seen in process.addresses.items():
                    found[pid, address] = reader.name(address, seen)
                if reader.runtime_unseen:
                    self.unwalked.add(pid)


def _note(addresses: dict[int, SeenAddress], chain: tuple[int, ...], time_ns: int) -> None:
    for depth, address in enumerate(chain):
        seen = addresses.get(address)
        if seen is None:
            addresses[address] = SeenAddress(time_ns, depth == 0)
        else:
            seen.time_ns, seen.exact = time_ns, seen.exact or depth == 0


def _until(area: CodeArea, time_ns: int) -> CodeArea:
    return replace(area, until_ns=min(area.until_ns, time_ns))


def areas_of(pid: int) -> list[CodeArea]:
    """Read what code a process has mapped now; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        bounds, rights, offset, _, inode, *path = line.split(maxsplit=5)
        if "x" in rights:
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            name = path[0].removesuffix(" (deleted)") if path else ""
            found.append(CodeArea(start, end, int(offset, 16), name, int(inode)))
    return found


class _Reader:
    """Say what the addresses of one process are."""

    def __init__(self, pid: int, process: _Process, areas: list[CodeArea]) -> None:
        self._pid, self._areas = pid, areas
        self._lives = Path(f"/proc/{pid}/root").exists()
        user = process.user if process.user is not None else user_of(pid)
        self._users = frozenset(() if user is None else (user,))
        self._runtime = self._perf_map()
        self.runtime_unseen = len(self._runtime.starts) > 0

    def name(self, address: int, seen: SeenAddress) -> NamedAddress:
        """Name an address; one that a function returns to belongs to the call before it."""
        inside = address if seen.exact else address - 1
        if found := self._runtime.find(inside):
            self.runtime_unseen = False
            return NamedAddress(symbols.readable(found))
        area = self._area(inside, seen.time_ns)
        if area is None:
            kind = AddressKind.NOWHERE if self._areas else AddressKind.OTHER
            return NamedAddress(hex(address), kind)
        if not area.path:
            return NamedAddress(hex(address))
        file = symbols.readable(area.path.rpartition("/")[2])
        offset = address - area.start + area.offset
        function = self._elf(area.path, area.inode).find(offset - (address - inside))
        kind = self._kind(area.path, area.inode, offset)
        text = f"{symbols.readable(function)} ({file})" if function else f"{file}+{offset:#x}"
        return NamedAddress(text, kind)

    def _area(self, address: int, time_ns: int) -> CodeArea | None:
        """Find what was mapped at an address at a time, the newest first."""
        for area in reversed(self._areas):
            if area.start <= address < area.end and area.since_ns <= time_ns < area.until_ns:
                return area
        return None

    def _elf(self, path: str, inode: int) -> symbols.ElfFile:
        return _elf(self._root, path, inode, self._users) if path.startswith("/") else _NO_FILE

    @property
    def _root(self) -> str:
        return f"/proc/{self._pid}/root" if self._lives else "/"

    def _kind(self, path: str, inode: int, offset: int) -> AddressKind:
        """Look at the bytes before an address: a system call, a call, or neither."""
        if not path.startswith("/"):
            return AddressKind.OTHER
        with opened(self._root, path, users=self._users, inode=inode) as file:
            before = part(file, max(0, offset - 7), min(7, offset), 7) if file is not None else b""
        return kind_of(before)

    def _perf_map(self) -> symbols.SymbolTable:
        """Read the map that the process's runtime wrote, if it did."""
        numbers = {self._pid, _pid_inside(self._pid)}
        for root in (f"/proc/{self._pid}/root", "/"):
            for number in numbers:
                name = f"/tmp/perf-{number}.map"
                with opened(root, name, users=self._users, follow=False) as file:
                    if file is not None:
                        return symbols.read_perf_map(file)
        return symbols.NO_FUNCTIONS


def kind_of(before: bytes) -> AddressKind:
    """Say what the instruction that ends with these bytes is (x86-64)."""
    if before.endswith(b"\x0f\x05"):
        return AddressKind.AFTER_SYSCALL
    direct = before[-5:-4] == b"\xe8"
    # FF /2, of 2, 3, 6 or 7 bytes: a call of a register or of a word in memory.
    indirect = any(
        len(before) >= size and before[-size] == 0xFF and (before[1 - size] >> 3) & 7 == 2
        for size in (2, 3, 6, 7)
    )
    return AddressKind.AFTER_CALL if direct or indirect else AddressKind.OTHER


def _pid_inside(pid: int) -> int:
    """Return the number that a process has for itself, in its own PID namespace."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))
    except (OSError, StopIteration):
        return pid


_NO_FILE = symbols.ElfFile()


@lru_cache(maxsize=64)
def _elf(root: str, path: str, inode: int, users: frozenset[int]) -> symbols.ElfFile:
    with opened(root, path, users=users, inode=inode) as file:
        return symbols.read_elf(file) if file is not None else _NO_FILE
