"""Faults that wait for a disk, and what they hold meanwhile.

A fault that finds its page missing in the page cache starts the read and waits. To 7.3 it first
gives back what it holds, a VMA's lock or the mmap_lock, and is taken again under the mmap_lock when
the page is there (`Design.major_fault`). Who comes second to a page waits for the first one's read.
A page of a FUSE file comes when the process that serves it has answered.

Sources: mm/filemap.c filemap_fault and maybe_unlock_mmap_for_io, mm/memory.c
fault_dirty_shared_page; the proposals: `zaplock.designs.proposals_2026`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.files import fill_cache
from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.step import SleepStep, Step, Task, WaitStep, step
from zaplock.model.vma import Vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

IS_READ = -1
"""Result of submit_read where somebody else reads the page already."""
SERVED = -2
"""Result of submit_read where a process has to answer."""


async def wait_for_page(vma: Vma, address: int) -> None:
    """Wait, uninterruptibly, until the page of a file behind an address is in the page cache."""
    file, page = vma.file, vma.pgoff_of(address & ~((1 << PAGE_SHIFT) - 1))
    ns = await submit_read(file, page)
    if not ns:
        return
    if ns == IS_READ:
        await page_is_cached(file, page)
        return
    if ns == SERVED:
        await read_is_answered(file, page)
    else:
        await SleepStep(ns)
    await end_read(file, page)


@step
def submit_read(m: Machine, task: Task, file: int, page: int) -> int:
    """Start the read of a page: how long it takes, IS_READ, SERVED, or 0 if the page is there."""
    if m.page_cache(file).at(page) is not None:
        return 0
    m.waits_for_io.put(task.tid, (file, page))
    if (file, page) in m.reads:
        return IS_READ
    m.reads.put((file, page), (task.tid, False))
    m.wake(("reads", file))
    return SERVED if m.files[file].served else m.files[file].read_ns


@step
def end_read(m: Machine, task: Task, file: int, page: int) -> None:
    """Put the page that was read into the page cache, and wake those who wait for it."""
    fill_cache(m, task, file, page, page + 1)
    m.reads.drop((file, page))
    m.waits_for_io.drop(task.tid)
    m.wake(("page", file, page))


def page_is_cached(file: int, page: int) -> Step[None]:
    """Wait for another task's read of a page."""
    return WaitStep(await_page, (file, page), _is_cached, ("page", file, page))


def await_page(m: Machine, task: Task, _file: int, _page: int) -> None:
    m.waits_for_io.drop(task.tid)


def _is_cached(m: Machine, _task: Task, file: int, page: int) -> bool:
    return (file, page) not in m.reads


def read_is_answered(file: int, page: int) -> Step[None]:
    """Wait for the process that serves a file."""
    return WaitStep(await_answer, (file, page), _is_answered, ("answer", file, page))


def await_answer(_m: Machine, _task: Task, _file: int, _page: int) -> None:
    return None


def _is_answered(m: Machine, _task: Task, file: int, page: int) -> bool:
    return m.reads[(file, page)][1]


def read_request(file: int) -> Step[int]:
    """Wait, as the process that serves a file, until a page of it is asked for; return which."""
    return WaitStep(await_request, (file,), _any_asked, ("reads", file))


def _unanswered(m: Machine, file: int) -> list[int]:
    return [page for of, page in m.reads if of == file and not m.reads[(of, page)][1]]


def _any_asked(m: Machine, _task: Task, file: int) -> bool:
    return bool(_unanswered(m, file))


def await_request(m: Machine, _task: Task, file: int) -> int:
    return min(_unanswered(m, file))


@step
def answer_read(m: Machine, _task: Task, file: int, page: int) -> None:
    """Hand a page over to whoever waits for it."""
    reader, _ = m.reads[(file, page)]
    m.reads.put((file, page), (reader, True))
    m.wake(("answer", file, page))
