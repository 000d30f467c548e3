"""Work for a pool whose first worker dies of it; its workers import no more than this."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def kill_the_first_worker(task: tuple[str, int]) -> int:
    """Die where no flag stands yet that somebody died for this item."""
    flags, item = task
    if item == 2 and not Path(flags, "died").exists():
        Path(flags, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item
