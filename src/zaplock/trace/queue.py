"""Who stands in front of a waiting reader: the rwsem's queue, by kernel version.

A reader is kept out by an exclusive holder, in every kernel. Beside shared holders it is kept out
only by the queue, and there the kernels differ:

    until 5.2     FIFO: who comes while anyone is queued goes to the end. Readers never spin.
    5.3 to 5.10   a reader spins outside the queue, on an owner that runs and on shared holders,
                  and enters beside these past whoever queues, unless a writer has spun on them in
                  vain (RWSEM_RD_NONSPINNABLE) or is due (a handoff). One that gives up queues
                  behind writers that asked after it. So a reader that waits beside shared holders
                  is in the queue here, too: had it been let past, it would not wait.
    from 5.11     readers no longer spin; one that comes beside shared holders queues if somebody
                  is queued, else it is let in.

A writer spins only while a writer owns the lock (in 5.3 to 5.10 up to 25 us on shared holders too),
so during a long shared hold every waiting writer is in the queue.

Who asks first usually queues first. A task that is preempted in between is overtaken; where sched
or contention events show it, the writer that came meanwhile stands in front of it (`sleeps`).

What is not modelled: two writers of which the later one queued first, because the earlier one was
still spinning; the earlier one is then named. Who asked is in the events, who queued is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from zaplock.linux_version import find
from zaplock.vendor_builds import carried


@dataclass(frozen=True, slots=True)
class RwsemQueue:
    """The rules of one range of kernels, as far as blame needs them."""

    name: str
    readers_spin: bool
    """A writer that asked after a reader may stand in front of it."""


FIFO = RwsemQueue("FIFO (until 5.2)", readers_spin=False)
SPINNING_READERS = RwsemQueue("spinning readers (5.3 to 5.10)", readers_spin=True)
MODERN = RwsemQueue("from 5.11", readers_spin=False)


_SPINS, _SPINS_NO_MORE = "cf69482d62d9", "617f3ef95177"
"""The commits by which readers began to spin (5.3) and ceased to (5.11)."""


def queue_of(kernel: str) -> RwsemQueue:
    """Return the rules of a kernel release ("6.18.44-generic", "4.18 + RFC v6") or "linux-4.20".

    A name that begins with no release gets the rules of today's kernels.

    >>> queue_of("5.10.0-28-amd64").name
    'spinning readers (5.3 to 5.10)'
    """
    if vendor := carried(kernel):
        taken = vendor.build.changes
        spins = SPINNING_READERS if _SPINS in taken else FIFO
        return MODERN if _SPINS_NO_MORE in taken else spins
    release = find(kernel)
    if release is None or release.carries("5.11"):
        return MODERN
    return SPINNING_READERS if release.carries("5.3") else FIFO
