"""What code the addresses of stacks are: learned while the processes live, said afterwards.

The kernel tells each file that a process maps as code (`stack_samples.MappedCode`), so the names
are found after the process has ended as well. Only the mappings from before the recording must be
asked for, in /proc/PID/maps, which takes that process's mmap_lock (before 6.17): by a thread that
nobody waits for, before the recording begins, and of those that still live once more at the end.

`code_reader` says what an address is; here is what the processes had mapped, and when.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from zaplock.recorder import symbols
from zaplock.recorder.code_areas import NEVER_NS, CodeArea, areas_of
from zaplock.recorder.code_reader import CodeReader, SeenAddress
from zaplock.recorder.scheduling import start_first
from zaplock.recorder.stack_samples import (
    CodeEvent,
    EndedProcess,
    ExecutedProcess,
    ForkedProcess,
    MappedCode,
    Sample,
)
from zaplock.recorder.target_files import user_of
from zaplock.trace.stacks import KERNEL, NamedAddress

_MOST_AREAS = 20_000
NAMING_PATIENCE_S = 60.0


@dataclass
class _Process:
    areas: list[CodeArea] = field(default_factory=list)
    """The newest last."""
    user: int | None = None
    parent: int = 0
    """Whose code it shares, until it calls exec; 0 where it shares nobody's."""
    ended_ns: int = NEVER_NS
    executed: bool = False
    addresses: dict[int, SeenAddress] = field(default_factory=dict)


class CodeNames:
    """The code of the processes of a recording."""

    def __init__(self, *, living: bool = True, same_kernel: bool = True) -> None:
        """Say whether those that were recorded may still be `living`, and under the same kernel.

        Else nothing is asked of /proc: other processes have their numbers by now.
        """
        self._living, self._same_kernel = living, same_kernel
        self._processes: dict[int, _Process] = {}
        self._kernel: dict[int, SeenAddress] = {}
        self.nameless: set[int] = set()
        """Processes whose stacks are bare addresses, since nobody told what they had mapped."""
        self.unwalked: set[int] = set()
        """Processes whose runtime wrote a map, but no stack got as far as one of its functions."""

    def know(self, pid: int, user: int | None, areas: Iterable[CodeArea]) -> None:
        """Take what a process had mapped, and whose it is, from whoever has asked."""
        self._processes[pid] = _Process(list(areas), user)

    def learn(self, events: Iterable[CodeEvent]) -> None:
        """Learn from the kernel's records of some time, in any order."""
        for event in sorted(events, key=lambda event: event.time_ns):
            process = self._processes.setdefault(event.pid, _Process())
            if isinstance(event, MappedCode):
                area = CodeArea(*event[2:], since_ns=event.time_ns)
                process.areas = [*process.areas[-_MOST_AREAS:], area]
            elif isinstance(event, ForkedProcess):
                self._forked(event)
            elif isinstance(event, ExecutedProcess):
                process.areas = [_until(area, event.time_ns) for area in process.areas]
                process.parent = 0
                process.executed = True
            elif isinstance(event, EndedProcess):
                process.ended_ns = event.time_ns

    def _forked(self, event: ForkedProcess) -> None:
        """Give a child its parent's code, below what another CPU has already told of the child."""
        parent = self._processes.get(event.parent, _Process())
        child = self._processes[event.pid]
        if child.ended_ns < event.time_ns:  # another process, which had that number before
            child = self._processes[event.pid] = _Process()
        child.areas = [*parent.areas, *child.areas]
        child.parent = 0 if child.executed else event.parent
        child.user = parent.user if child.user is None else child.user

    def saw(self, samples: Iterable[Sample]) -> None:
        """Note the addresses of stacks that are kept."""
        for sample in samples:
            kernel, user = sample.chain
            _note(self._kernel, kernel, sample.time_ns)
            if user:
                process = self._processes.setdefault(sample.pid, _Process())
                if process.user is None and process.ended_ns == NEVER_NS and self._living:
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

    def named(self, patience_s: float | None = None) -> dict[tuple[int, int], NamedAddress]:
        """Say what the addresses are; after the recording, since it may read /proc/PID/maps.

        A lock that somebody has, or a file system that does not answer, ends it after `patience_s`
        (NAMING_PATIENCE_S): the rest stays without a name.
        """
        found: dict[tuple[int, int], NamedAddress] = {}
        if self._kernel and self._same_kernel:
            symbols.kernel_functions()  # nobody can keep us from these, so they have their time
        namer = threading.Thread(target=self._name, args=(found,), daemon=True)
        start_first(namer)
        namer.join(NAMING_PATIENCE_S if patience_s is None else patience_s)
        return dict(found)

    def _mapped_now(self, pid: int) -> list[CodeArea]:
        """Ask for the code of a process, or of the living one that it was forked from."""
        asked: set[int] = set()
        while pid and pid not in asked:
            if areas := areas_of(pid):
                return areas
            asked.add(pid)
            pid = self._processes[pid].parent if pid in self._processes else 0
        return []

    def _name(self, found: dict[tuple[int, int], NamedAddress]) -> None:
        if self._kernel and self._same_kernel:
            functions = symbols.kernel_functions()
            for address, seen in self._kernel.items():
                if name := functions.find(address - (not seen.exact)):
                    found[KERNEL, address] = NamedAddress(symbols.readable(name))
        for pid, process in self._processes.items():
            if process.addresses and self._living:
                areas = [*self._mapped_now(pid), *process.areas]
                if not areas:
                    self.nameless.add(pid)
                reader = CodeReader(pid, process.user, areas)
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
    """End what was mapped before an exec; what came after it may have been told first."""
    ended = area.since_ns < time_ns < area.until_ns
    return replace(area, until_ns=time_ns) if ended else area
