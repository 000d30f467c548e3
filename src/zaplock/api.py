"""An address space to try things on: the model under the sequential engine, for scripts.

    >>> from zaplock import AddressSpace
    >>> space = AddressSpace("rfc-v6")
    >>> heap = space.mmap(1 << 30, populate=True)
    >>> space.counters()["rss_anon"]
    262144
    >>> space.munmap(heap, 1 << 30)
    >>> space.locks[-3:]
    ['down_write', 'downgrade_write', 'up_read']

Errors of the kernel come as OSError with the errno; a broken rule of the model as Violation. Every
operation is one system call, run to its end with nobody beside it; for several tasks at once see
`zaplock.lab` (timed) and `zaplock check` (every interleaving).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from operator import index
from typing import Any

from zaplock.designs import Cx, Design, load
from zaplock.engines.sequential import LockCall, run
from zaplock.errors import UserError
from zaplock.model import flags as f
from zaplock.model.check import check
from zaplock.model.files import new_file
from zaplock.model.machine import Machine
from zaplock.model.mm import COUNTERS, ResourceLimits
from zaplock.model.step import Task
from zaplock.model.vma import Vma
from zaplock.protocols.address_locks import under
from zaplock.protocols.brk import brk
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mlock import mlock, munlock
from zaplock.protocols.mmap import mmap
from zaplock.protocols.mprotect import mprotect
from zaplock.protocols.mremap import mremap
from zaplock.protocols.served_calls import SERVED
from zaplock.protocols.user_access import read_memory, write_memory
from zaplock.system_calls import SYSTEM_CALLS

HEAP = 0x5555_5575_6000


def _whole(number: object) -> int:
    """Return what a register holds; raise UserError for what is none, before the call begins.

    A negative number is a large one there, as it is in the kernel. A call that broke off
    in the middle would leave its locks held.
    """
    try:
        whole = index(number)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{number!r} is no whole number: give bytes, such as 1 << 30") from None
    if not -(1 << 63) <= whole < 1 << 64:
        raise UserError(f"{hex(whole)} is more than 64 bits hold")
    return whole % (1 << 64)


class AddressSpace:
    """One process's address space under one design.

    `design` is a name ("linux-6.18", "FILE.py:NAME") or a `Design`. Lengths are bytes. `locks`
    lists the mmap_lock operations of the last call.
    """

    def __init__(
        self, design: str | Design = "linux-6.18", *, limits: ResourceLimits | None = None
    ) -> None:
        if not isinstance(design, str | Design):
            raise UserError(f"{design!r} is no design: give a name, such as 'linux-6.18', or one")
        self.design = load(design) if isinstance(design, str) else design
        self.machine = Machine(limits=limits)
        self.task = Task(1, 1, "main")
        self.cx = Cx(self.design, self.task, limits=self.machine.limits)
        self.locks: list[str] = []
        self._files = 0
        counters = self.machine.mm(1).counters
        counters.put("users", 1)
        counters.put("start_brk", HEAP)
        counters.put("brk", HEAP)

    def file(self, size: int, kind: str = "shmem") -> int:
        """Make a file of `size` bytes to map: "shmem" (a memfd) or "disk"; returns its handle."""
        self._files += 1
        return new_file(self.machine, self._files, kind, size)

    def mmap(
        self,
        length: int,
        address: int = 0,
        *,
        prot: int = f.PROT_READ | f.PROT_WRITE,
        flags: int = f.MAP_PRIVATE | f.MAP_ANONYMOUS,
        file: int = 0,
        offset: int = 0,
        populate: bool = False,
    ) -> int:
        """Map memory, or a file if one is given; returns the address."""
        if file:
            flags &= ~f.MAP_ANONYMOUS
        flags |= f.MAP_POPULATE if populate else 0
        return self._call(mmap, address, length, prot, flags, file, offset)

    def munmap(self, address: int, length: int) -> None:
        """Unmap a range, in the way of the design."""
        self._call(self.design.munmap, address, length)

    def mremap(
        self, address: int, old: int, new: int, *, flags: int = f.MREMAP_MAYMOVE, to: int = 0
    ) -> int:
        """Change the size of a mapping, or move it; returns its address."""
        return self._call(mremap, address, old, new, flags, to)

    def brk(self, end: int) -> int:
        """Move the end of the heap; returns where it is."""
        return self._call(brk, end)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        """Change what may be done with a range."""
        self._call(mprotect, address, length, prot)

    def madvise(self, address: int, length: int, advice: int) -> None:
        """Give advice on a range, such as MADV_DONTNEED."""
        self._call(madvise, address, length, advice)

    def mlock(self, address: int, length: int) -> None:
        """Lock a range in memory."""
        self._call(mlock, address, length)

    def munlock(self, address: int, length: int) -> None:
        """Unlock a range."""
        self._call(munlock, address, length)

    def call(self, name: str, *arguments: int) -> int:
        """Run any other call that the model serves, by its name: `call("mseal", heap, 4096, 0)`.

        Raises ValueError for a call that the model does not serve, or a wrong number of arguments.
        """
        if name not in SERVED:
            raise ValueError(f"no call {name!r} in the model; there are {', '.join(SERVED)}")
        wanted = SYSTEM_CALLS[name].arguments
        if len(arguments) != len(wanted):
            raise ValueError(
                f"{name} takes {len(wanted)} arguments ({', '.join(wanted)}), not {len(arguments)}"
            )
        return self._call(SERVED[name], *arguments)

    def read(self, address: int) -> int:
        """Read a page's tag (0: zeroes), faulting it in; OSError(EFAULT) for a signal."""
        return self._access(read_memory, address)

    def write(self, address: int, tag: int) -> None:
        """Write a tag into a page, faulting it in; OSError(EFAULT) for a signal."""
        self._access(write_memory, address, tag)

    def maps(self) -> list[Vma]:
        """List the VMAs in order of address."""
        tree = self.machine.mm(1).tree
        found = [self.machine.vmas[tree[start]] for start in tree]
        return [vma for vma in found if isinstance(vma, Vma)]

    def counters(self) -> dict[str, int]:
        """Return the counters of the mm by name; `model.mm.Counter` says what each counts."""
        space = self.machine.mm(1)
        return {name: space.count(name) for name in COUNTERS}

    def check(self) -> None:
        """Recount everything; raises Violation if a figure is off."""
        check(self.machine)

    def _call(self, protocol: Callable[..., Coroutine[Any, Any, int]], *arguments: int) -> int:
        calls: list[LockCall] = []
        work = protocol(self.cx, *map(_whole, arguments))
        result = run(self.machine, self.task, under(self.design, work), calls)
        self.locks = [
            f"{call.action}_{'write' if call.write else 'read'}"
            for call in calls
            if call.name == "mmap_lock"
        ]
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _access(self, protocol: Callable[..., Coroutine[Any, Any, int]], *arguments: int) -> int:
        work = protocol(self.cx, *map(_whole, arguments))
        result = run(self.machine, self.task, under(self.design, work))
        if result < 0:
            raise OSError(14, f"signal {-result}")
        return result

    def __repr__(self) -> str:
        lines = [f"AddressSpace({self.design.name}, {len(self.maps())} VMAs)"]
        return "\n  ".join(lines + [str(vma) for vma in self.maps()])
