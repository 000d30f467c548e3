"""A recording on disk, understood: what `zaplock report` and `zaplock.report` begin with."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.recording_file import read, read_quotas, read_stacks


def read_analysis(
    path: str | os.PathLike[str],
    busy: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Analysis:
    """Read a recording and join its holds and waits; `busy` is told what takes its time.

    Raises UserError where the path holds no recording or a damaged one, or one that doesn't fit.
    """
    with busy(f"reading {path}"):
        recording = read(path)
    with busy("joining holds and waits"):
        about = recording.manifest
        return analyse(
            recording.events,
            about.kernel,
            span=(about.started_ns, about.ended_ns) if about.ended_ns else None,
            stacks=read_stacks(path),
            quotas=read_quotas(path),
            caveats=recording.caveats,
            sees_locks=recording.sees_locks,
        )
