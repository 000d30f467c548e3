"""Whom to record: a process, a command, or everybody; and which mm is a process's own.

The pid filter of tracefs hides what matters most: the foreign reader (`ps`, a debugger) that waits
for the target's lock. A filter on the event's `mm` keeps it. The kernel shows that pointer nowhere
but in these events, so it is learned: this thread makes one lock operation on the target, reading
8 bytes of its `pagemap` at address 0, and the ASKED event of it says which mm that was. It comes
before the lock is had, so it is seen also while another task holds the lock for minutes; the read
is done by a thread that nobody waits for. This happens once, before the recording begins.
"""

from __future__ import annotations

import os
import re
import threading
import time

from zaplock.errors import UserError
from zaplock.recorder.buffers import Buffers
from zaplock.recorder.decode import Decoder, merged
from zaplock.recorder.layouts import read_layouts
from zaplock.recorder.meanings import MMAP_LOCK
from zaplock.recorder.tracefs import Instance, Tracefs
from zaplock.strangers import read_text

_PATIENCE_S = 2.0


def check_process(pid: int) -> None:
    """Raise UserError unless this is a process with an address space that we may look at."""
    try:
        status = read_text(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        raise UserError(f"there is no process {pid}: 'ps -e' lists those that are") from None
    tgid = re.search(r"^Tgid:\s+(\d+)", status, re.MULTILINE)
    if tgid and int(tgid[1]) != pid:
        raise UserError(f"{pid} is a thread of process {tgid[1]}: give -p {tgid[1]}")
    if re.search(r"^State:\s+[ZX]", status, re.MULTILINE):
        raise UserError(f"process {pid} has ended (a zombie): it has no address space any more")
    if not re.search(r"^VmSize:", status, re.MULTILINE):
        raise UserError(f"{pid} is a kernel thread: it has no address space to lock")


def threads_of(pid: int) -> set[int]:
    """List the thread ids of a process; empty where it is gone."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except (FileNotFoundError, ProcessLookupError):
        return set()


def descendants_of(pid: int) -> set[int]:
    """List a process and its children, grandchildren and so on."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        found.add(one)
        todo += children.get(one, [])
    return found


def _parent(pid: int) -> int | None:
    try:
        return int(read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def learn_mm(tracefs: Tracefs, pid: int) -> int:
    """Find the kernel's `mm` pointer of a process.

    Takes its mmap_lock for read, once. Raises UserError where it can't be learned.
    """
    own, *others = _asked(tracefs, pid) or [0]
    if pid == os.getpid():
        others.append(own)
    if len(others) == 1:
        return others[0]
    check_process(pid)
    raise UserError(
        f"the address space of process {pid} can't be told from others ({len(others)} seen): "
        "record the whole system (leave out -p)"
    )


def _asked(tracefs: Tracefs, pid: int) -> list[int]:
    """List the mms that one thread of ours asks for: first our own, then the process's."""
    layouts = read_layouts(tracefs.path, MMAP_LOCK[:1])
    with Instance(tracefs, buffer_kb=64) as instance:
        done = threading.Event()
        reader = threading.Thread(target=_look, args=(pid, instance, done), daemon=True)
        reader.start()
        buffers = Buffers([instance], layouts.page.page_size)
        try:
            found = _seen_soon(buffers, Decoder(layouts), done)
            instance.stop()
            return found
        finally:
            buffers.close()


def _seen_soon(buffers: Buffers, decoder: Decoder, done: threading.Event) -> list[int]:
    parts = []
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        finished = done.wait(0.05)
        parts += [decoder.decode(pages, cpu).columns for cpu, pages in buffers.drain()]
        if finished:
            break
    return list(dict.fromkeys(merged(parts)["mm"].tolist())) if parts else []


def _look(pid: int, instance: Instance, done: threading.Event) -> None:
    """Take our own mmap_lock, then the process's, in sight of the instance."""
    files = []
    try:
        instance.add("set_event_pid", str(threading.get_native_id()))
        instance.enable(MMAP_LOCK[0])
        files = [_openable(os.getpid()), _openable(pid)]
        instance.start()
        for file in files:
            os.pread(file, 8, 0)
        instance.stop()
    except OSError:  # the process has ended, or the instance, since this took too long
        pass
    finally:
        done.set()
        for file in files:
            os.close(file)


def _openable(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    except PermissionError:  # needs ptrace rights; this one does not
        return os.open(f"/proc/{pid}/cmdline", os.O_RDONLY)
