"""What a page fault comes to that does not end at once."""

from __future__ import annotations

from signal import SIGBUS
from typing import TYPE_CHECKING

from zaplock.model.vma import Vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

USERFAULT = 1
"""Result of a fault that a userfaultfd monitor has to answer."""
MAJOR = 3
"""Result of a fault that has to wait until a page of a file was read."""
PUNCHED = 5
"""Result of a fault that has to wait until a hole in a file was punched (model.file_changes)."""
FILE_WAITS = (MAJOR, PUNCHED)
"""Results of a fault that waits for its file, the first time under no lock."""
ALONE = 4
"""Result of a read fault that has mapped what is cached around its page, and not the page: it goes
on with that alone, and what it has mapped can be gone again by then."""


def ask_monitor(m: Machine, vma: Vma) -> int:
    """Return USERFAULT, or -SIGBUS where the monitor has asked for that (UFFD_FEATURE_SIGBUS)."""
    signals = m.uffd_modes.get(vma.uffd) == "sigbus"
    return -SIGBUS if signals else USERFAULT
