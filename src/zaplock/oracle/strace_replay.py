"""A recorded program's memory calls on the model: every return value and the final maps compared.

The model starts from the maps right after exec. What a trace does not show is assumed: no page is
ever written by the program (which matters only where two VMAs could merge but for their anon_vma),
files are long enough, and the process may lock memory. The stack grows by faults, so where it
begins at the end is not compared.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zaplock.designs.linux import LINUX_6_18
from zaplock.engines.sequential import run as run_protocol
from zaplock.model import flags as f
from zaplock.model.files import new_file
from zaplock.model.machine import Machine
from zaplock.model.mm import ResourceLimits
from zaplock.model.step import Task
from zaplock.model.vma import Vma, account, insert
from zaplock.oracle import strace
from zaplock.oracle.compare import result_text
from zaplock.oracle.strace import Area, StraceRecording, TracedCall
from zaplock.protocols import (
    brk,
    fork,
    madvise,
    mincore,
    mlock,
    mmap,
    mprotect,
    mremap,
    mseal,
    msync,
    remap_pages,
)
from zaplock.protocols.design import Cx
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.mprotect import apply_to_range, modify_vma

FIRST_MM = 1
LONG = 1 << 40
_SPECIAL = ("[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]")


@dataclass(slots=True)
class StraceVerdict:
    """What a replay showed."""

    calls: int = 0
    differing: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    maps: int = 0
    differing_maps: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Tell whether everything that was replayed agreed."""
        return not (self.differing or self.differing_maps)


class StraceReplay:
    """The processes of a recording, as address spaces of one machine."""

    def __init__(self, recording: StraceRecording) -> None:
        self.recording = recording
        self.limits = ResourceLimits(
            mmap_base=mmap_base(recording.begin), mmap_min_addr=0x1000, can_ipc_lock=True
        )
        self.machine = Machine(limits=self.limits)
        self.machine.globals.put("hugetlb_free", 0)
        self.files: dict[str, int] = {}
        self.spaces = {recording.pid: FIRST_MM}
        self.gone: set[int] = set()
        self._map_beginning()

    def _map_beginning(self) -> None:
        space, task = self.machine.mm(FIRST_MM), Task(1, FIRST_MM)
        for item in self.recording.begin:
            if item.start >= f.TASK_SIZE_4_LEVELS:
                continue
            file = self.file(item.name) if item.name and not item.name.startswith("[") else 0
            pgoff = (item.offset if file else item.start) >> f.PAGE_SHIFT
            vma = Vma(FIRST_MM, item.start, item.end, vm_flags(item), pgoff, file)
            insert(self.machine, task, vma)
            account(space, vma.flags, vma.file, vma.nr_pages)
        first = next((c for c in self.recording.calls if c.name == "brk" and c.result > 0), None)
        if first is not None:
            space.counters.put("brk", first.result)
            space.counters.put("start_brk", first.result)

    def file(self, name: str) -> int:
        """Return the handle of a file by its name."""
        if name not in self.files:
            self.files[name] = len(self.files) + 1
            kind = "zero" if name == "zero" else "shmem" if name.startswith("memfd:") else "disk"
            new_file(self.machine, self.files[name], kind, LONG, name.removeprefix("memfd:"))
        return self.files[name]

    def play(self) -> StraceVerdict:
        """Run every call; compare every result and the final maps."""
        verdict = StraceVerdict()
        for call in self.recording.calls:
            if call.pid in self.gone:
                continue
            if call.name == "execve":
                self.gone.add(call.pid)
            elif call.name in strace.MAKES_PROCESS:
                self._new_process(call)
            elif call.name != "exit_group":
                self._compare(call, verdict)
        self._compare_maps(verdict)
        return verdict

    def _new_process(self, call: TracedCall) -> None:
        if call.result <= 0:
            return
        mm = self._mm(call.pid)
        if any("CLONE_VM" in argument for argument in call.arguments) or call.name == "vfork":
            self.spaces[call.result] = mm
            return
        child = FIRST_MM + len(set(self.spaces.values()))
        task = Task(call.pid, mm)
        run_protocol(self.machine, task, fork.fork(Cx(LINUX_6_18, task), child))
        self.spaces[call.result] = child

    def _mm(self, pid: int) -> int:
        return self.spaces.get(pid, FIRST_MM)

    def _compare(self, call: TracedCall, verdict: StraceVerdict) -> None:
        replayed = _CALLS.get(call.name)
        if replayed is None:
            verdict.passed_over[call.name] += 1
            return
        task = Task(call.pid, self._mm(call.pid))
        program = replayed(self, Cx(LINUX_6_18, task, limits=self.limits), call.arguments)
        result = run_protocol(self.machine, task, program)
        if isinstance(result, tuple):
            result = result[0]
        verdict.calls += 1
        if result != call.result:
            verdict.differing.append(
                f"line {call.line}: {call.name}({', '.join(call.arguments)}): kernel "
                f"{result_text(call.result)}, model {result_text(result)}"
            )

    def _compare_maps(self, verdict: StraceVerdict) -> None:
        if not self.recording.end:
            return
        ours = {shown(item) for item in self.recording.end if item.start < f.TASK_SIZE_4_LEVELS}
        theirs = {shown(item) for item in self.maps()}
        verdict.maps = len(ours)
        verdict.differing_maps += [f"only the kernel has {text}" for text in sorted(ours - theirs)]
        verdict.differing_maps += [f"only the model has {text}" for text in sorted(theirs - ours)]

    def maps(self) -> list[Area]:
        """List the first process's mappings as the model has them."""
        space = self.machine.mm(FIRST_MM)
        found = []
        for start in space.tree.order:
            vma = self.machine.vmas[space.tree.data[start]]
            assert isinstance(vma, Vma)
            name = self.machine.files[vma.file].name if vma.file else vma.name
            name = "zero" if name == "/dev/zero" else name
            offset = vma.pgoff << f.PAGE_SHIFT if vma.file else 0
            found.append(Area(vma.start, vma.end, perms(vma.flags), offset, name))
        return found


def shown(item: Area) -> str:
    """Write an area as a line; the kernel's own names and the stack's moving start are left out."""
    name = "" if item.name.startswith("[") else item.name
    start = "stack" if item.name == "[stack]" or item.end == _STACK_TOP else f"{item.start:x}"
    return f"{start}-{item.end:x} {item.perms} {item.offset:08x} {name}".rstrip()


_HAS_POLICY = 1 << 44
"""No flag of the kernel's: here it keeps a VMA with a memory policy from merging."""
_STACK_TOP = 0x7FFF_FFFF_F000


def mmap_base(begin: tuple[Area, ...]) -> int:
    """Return where top-down mappings end: the dynamic linker is the first of them."""
    below = [a for a in begin if a.start > 1 << 46 and a.name not in (*_SPECIAL, "[stack]")]
    return max((a.end for a in below), default=ResourceLimits().mmap_base)


def perms(flags: int) -> str:
    """Write vm_flags as maps does."""
    letters = zip("rwx", (f.VM_READ, f.VM_WRITE, f.VM_EXEC), strict=True)
    shared = "s" if flags & f.VM_MAYSHARE else "p"
    return "".join(letter if flags & bit else "-" for letter, bit in letters) + shared


def vm_flags(item: Area) -> int:
    """Return the vm_flags that a line of maps stands for."""
    flags = f.VM_MAYREAD | f.VM_MAYWRITE | f.VM_MAYEXEC
    flags |= f.VM_READ if "r" in item.perms else 0
    flags |= f.VM_WRITE if "w" in item.perms else 0
    flags |= f.VM_EXEC if "x" in item.perms else 0
    if "s" in item.perms:
        return flags | f.VM_SHARED | f.VM_MAYSHARE
    flags |= f.VM_ACCOUNT if "w" in item.perms else 0
    flags |= f.VM_GROWSDOWN if item.name == "[stack]" else 0
    return flags | (f.VM_PFNMAP | f.VM_IO if item.name in _SPECIAL else 0)


def _numbers(arguments: tuple[str, ...]) -> list[int]:
    return [strace.number(argument) for argument in arguments]


def _mmap(replay: StraceReplay, cx: Cx, arguments: tuple[str, ...]) -> Any:
    address, length, prot, flags = _numbers(arguments[:4])
    name = strace.file_of(arguments[4])
    file = replay.file(name) if name else 0
    return mmap.mmap(cx, address, length, prot, flags, file, strace.number(arguments[5]))


async def _mbind(cx: Cx, start: int, length: int) -> int:
    """Give a range a memory policy: what matters here is that it no longer merges with others."""

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        part = await modify_vma(cx, handle, low, high, vma.flags | _HAS_POLICY)
        return min(0, part)

    await mmap_write_lock_killable(cx)
    await apply_to_range(cx, start, start + f.page_align(length), visit)
    await mmap_write_unlock(cx)
    return 0


def _mincore(replay: StraceReplay, cx: Cx, arguments: tuple[str, ...]) -> Any:
    """strace shows what the vector holds instead of where it is, if the call went well."""
    where = arguments[2]
    vector = _STACK_TOP - f.PAGE_SIZE if where.startswith("[") else strace.number(where)
    start, length = _numbers(arguments[:2])
    return mincore.mincore(cx, start, length, vector)


def _simple(make: Any) -> Any:
    return lambda replay, cx, arguments: make(cx, *_numbers(arguments))


def _mremap(replay: StraceReplay, cx: Cx, arguments: tuple[str, ...]) -> Any:
    return mremap.mremap(cx, *_numbers(arguments))


_CALLS: dict[str, Any] = {
    "mmap": _mmap,
    "mremap": _mremap,
    "mbind": lambda replay, cx, a: _mbind(cx, *_numbers(a[:2])),
    "munmap": _simple(LINUX_6_18.munmap),
    "mprotect": _simple(mprotect.mprotect),
    "madvise": _simple(madvise.madvise),
    "brk": _simple(brk.brk),
    "mlock": _simple(mlock.mlock),
    "mlock2": _simple(mlock.mlock),
    "munlock": _simple(mlock.munlock),
    "mlockall": _simple(mlock.mlockall),
    "munlockall": _simple(mlock.munlockall),
    "msync": _simple(msync.msync),
    "mincore": _mincore,
    "mseal": _simple(mseal.mseal),
    "remap_file_pages": _simple(remap_pages.remap_file_pages),
}


def run(path: Path, as_json: bool = False) -> int:
    """Replay a file, print what differs; 0 if nothing does."""
    verdict = StraceReplay(strace.parse(path)).play()
    if as_json:
        print(json.dumps(
            {"calls": verdict.calls, "differing": verdict.differing, "maps": verdict.maps,
             "differing_maps": verdict.differing_maps, "passed_over": verdict.passed_over},
            indent=1,
        ))  # fmt: skip
        return 0 if verdict.agrees else 1
    for line in [*verdict.differing, *verdict.differing_maps]:
        print(line)
    agreeing = verdict.calls - len(verdict.differing)
    print(
        f"{agreeing:,} of {verdict.calls:,} return values agree, {len(verdict.differing_maps)} "
        f"differences in {verdict.maps:,} final mappings"
        + (f"; passed over: {dict(verdict.passed_over)}" if verdict.passed_over else "")
    )
    print("next: zaplock oracle --seconds 60")
    return 0 if verdict.agrees else 1
