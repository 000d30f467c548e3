"""How this kernel shows its mmap_locks: by tracepoints, or by kprobes on the rwsem's functions.

tracepoints   mmap_lock:* (5.11): every operation on an mmap_lock, with its mm
kprobes       a probe at the entry and one at the return of every rwsem function of the kernel
              (`rwsem_probes`, CONFIG_KPROBE_EVENTS): older kernels, and those without tracepoints

Kprobes are global: they are made under a group that is named as a recorder's trace instance is, and
switched on in that instance alone. They go with the recorder; those of one that was killed are
removed by the next start (`sweep_probes`). An address space is then named by the address of its
semaphore, which lies in the mm_struct.

An entry is filtered to the target's semaphores. A return doesn't say of which semaphore it is, so
every return in the kernel is an event.

Source: Documentation/trace/kprobetrace.rst; maxactive since 4.12 (696ced4fb1d7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zaplock.errors import UserError, no_such
from zaplock.linux_version import find
from zaplock.recorder.meanings import MMAP_LOCK
from zaplock.recorder.rwsem_probes import FUNCTIONS, GROUP, RETURN, ProbedFunction
from zaplock.recorder.tracefs import Instance, Tracefs, patiently
from zaplock.recorder.uninterrupted import surely, uninterrupted

AUTO, TRACEPOINTS, KPROBES, NONE = "auto", "tracepoints", "kprobes", "none"
WAYS = (AUTO, TRACEPOINTS, KPROBES, NONE)
"""What can be asked for; `auto` takes the tracepoints, else kprobes."""
_FILE = "kprobe_events"
_PLACES = 256
"""So many tasks can be inside a probed function at once, where the kernel lets itself be asked."""
_NEEDED = ("down_read", "down_write", "up_read", "up_write", "downgrade_write")
_LINE = re.compile(r"[pr]\d*:([^/\s]+)/(\S+) ")
_OURS = re.compile(rf"{GROUP}_[0-9a-f]{{8}}(?:_\d+){{4}}")
_READ_ASKS = ("down_read", "down_read_killable", "down_read_trylock")


@dataclass(frozen=True, slots=True)
class LockEvents:
    """The events of one way, as system:name.

    `asked` are those by which a reader asks, which name the lock; `named` all that name it in their
    field `field`, so that they can be filtered.
    """

    way: str
    events: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    field: str = "mm"

    def condition(self, event: str, mms: Iterable[int]) -> str:
        """Make the filter of one event to these address spaces; "" where it lets all through."""
        if event not in self.named:
            return ""
        return " || ".join(f"{self.field} == {mm:#x}" for mm in mms)


BY_TRACEPOINTS = LockEvents(TRACEPOINTS, MMAP_LOCK, MMAP_LOCK[:1], MMAP_LOCK)
UNSEEN = LockEvents(NONE)


def ways_here(tracefs: Tracefs) -> tuple[str, ...]:
    """Name the ways that this kernel has, the better one first."""
    events = tracefs.path / "events" / MMAP_LOCK[0].replace(":", "/")
    found = [TRACEPOINTS] if events.exists() else []
    return (*found, *([KPROBES] if (tracefs.path / _FILE).exists() else []))


def without_any(release: str) -> str:
    """Return the way out where a kernel shows neither tracepoints nor kprobes."""
    version = find(release)
    if version is not None and version.carries("5.11"):
        return "look for a mount over events/mmap_lock in tracefs, which this Linux has"
    return "boot Linux 5.11 or newer, or one with CONFIG_KPROBE_EVENTS"


def chosen_way(tracefs: Tracefs, wanted: str) -> str:
    """Return the way to be taken; raise UserError where this kernel doesn't have it."""
    if wanted not in WAYS:
        raise no_such("way to see lock events", wanted, WAYS)
    if wanted == NONE:
        return NONE
    here = ways_here(tracefs)
    if wanted in here or (wanted == AUTO and here):
        return here[0] if wanted == AUTO else wanted
    release = os.uname().release
    has = f"it has {' and '.join(here)}" if here else "nor any other way to see its locks"
    lacks = {
        TRACEPOINTS: "mmap_lock events (they came with 5.11)",
        KPROBES: "kprobe events (CONFIG_KPROBE_EVENTS)",
        AUTO: "mmap_lock events (5.11) and no kprobe events (CONFIG_KPROBE_EVENTS)",
    }[wanted]
    way_out = f"leave out --by {wanted}" if here else f"{without_any(release)}, or record --by none"
    raise UserError(f"Linux {release} has no {lacks}, {has}: {way_out}")


@contextlib.contextmanager
def probes(tracefs: Tracefs, instance: Instance) -> Iterator[LockEvents]:
    """Make kprobes for an instance, not switched on; afterwards they are off and gone.

    Raises UserError where the kernel refuses those that nothing can be told without.
    """
    group = _group(instance.name)
    try:
        with uninterrupted():
            made = [one for one in FUNCTIONS if _made(tracefs, group, one)]
        missing = [name for name in _NEEDED if name not in {one.name for one in made}]
        if missing:
            raise UserError(
                f"this kernel lets no kprobe be made on {', '.join(missing)} (inlined, or not to "
                "be probed): boot another one, or record --by none"
            )
        named = tuple(f"{group}:{one.name}" for one in made)
        returns = tuple(f"{group}:{one.name}{RETURN}" for one in made if one.asks)
        asked = tuple(f"{group}:{one.name}" for one in made if one.name in _READ_ASKS)
        yield LockEvents(KPROBES, (*returns, *named), asked, named, "sem")
    finally:
        surely(lambda: _removed(tracefs, group, instance))


def _group(instance: str) -> str:
    return instance.replace("-", "_")


def _made(tracefs: Tracefs, group: str, function: ProbedFunction) -> bool:
    """Make a function's probes; False where this kernel has no such function, or refuses.

    The return first: an entry whose return isn't seen would say nothing. A kernel that knows its
    types (BTF) refuses the result of a function that has none.
    """
    name = function.name
    result = "ret=$retval:s32" if function.returns else ""
    returns = (f"r{_PLACES}", "r") if _counts_places() else ("r",)
    returned = not function.asks or any(
        _told(tracefs, f"{kind}:{group}/{name}{RETURN} {name} {result}") for kind in returns
    )
    return returned and _told(tracefs, f"p:{group}/{name} {name} sem=%di")


def _counts_places() -> bool:
    """Whether the kernel can be asked for places of return probes; before 4.12 it can't.

    It would neither understand nor refuse: the probe got a name of the kernel's own.
    """
    release = find(os.uname().release)
    return release is not None and release.carries("4.12")


def _told(tracefs: Tracefs, command: str) -> bool:
    """Give one command to kprobe_events; False where the kernel refuses it."""
    try:
        _tell(tracefs, command)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise UserError(
                f"kprobes can't be made ({error.strerror}): run the same command with sudo, and "
                "see 'zaplock doctor' for lockdown"
            ) from None
        return False
    return True


def _tell(tracefs: Tracefs, command: str) -> None:
    control = os.open(tracefs.path / _FILE, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(control, f"{command}\n".encode())
    finally:
        os.close(control)


def _removed(tracefs: Tracefs, group: str, instance: Instance | None = None) -> None:
    """Switch the probes of a group off in an instance, and remove them. Twice does no harm."""
    if instance:
        with contextlib.suppress(OSError):
            instance.write(f"events/{group}/enable", "0")
    for of, event in _present(tracefs):
        if of == group:
            with contextlib.suppress(OSError):
                patiently(lambda event=event: _tell(tracefs, f"-:{group}/{event}"))  # type: ignore[misc]


def _present(tracefs: Tracefs) -> list[tuple[str, str]]:
    """List the kprobe events that there are, as (group, event)."""
    try:
        lines = (tracefs.path / _FILE).read_text().splitlines()
    except OSError:
        return []
    return [(found[1], found[2]) for line in lines if (found := _LINE.match(line))]


def left_over_probes(tracefs: Tracefs) -> list[str]:
    """Name the groups of probes whose instance is gone: their recorder did not live to do it."""
    instances = {_group(path.name) for path in (tracefs.path / "instances").glob(f"{GROUP}-*")}
    return sorted({one for one, _ in _present(tracefs) if _OURS.fullmatch(one)} - instances)


def sweep_probes(tracefs: Tracefs) -> list[str]:
    """Remove the probes that killed recorders left; return the names of their groups."""
    left = left_over_probes(tracefs)
    for group in left:
        _removed(tracefs, group)
    return left
