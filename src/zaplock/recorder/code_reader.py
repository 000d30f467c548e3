"""Say what an address of a process is: a function of its runtime, of a file, a place in a file.

Beside names it says which words of a program are the address after a call, and which the address
after a system call: by that a stub's caller is told from any other word on its stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from zaplock.recorder import symbols
from zaplock.recorder.code_areas import CodeArea
from zaplock.recorder.target_files import opened, part, user_of
from zaplock.trace.stacks import AddressKind, NamedAddress


@dataclass(slots=True)
class SeenAddress:
    """An address of stacks: when last, and whether the task was there (not: will return to it)."""

    time_ns: int
    exact: bool


class CodeReader:
    """Say what the addresses of one process are."""

    def __init__(self, pid: int, user: int | None, areas: list[CodeArea]) -> None:
        self._pid, self._areas = pid, areas
        self._lives = Path(f"/proc/{pid}/root").exists()
        user = user if user is not None else user_of(pid)
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
