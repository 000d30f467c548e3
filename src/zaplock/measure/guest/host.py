"""The same probe on the kernel that runs here, so that host and guests are judged alike.

Root is needed for the trace instance, which is made and removed here: a probe that is killed leaves
nothing behind. The probe narrows it to its own tasks (`set_event_pid`), since whatever else runs on
a busy machine would overflow the buffers. Other work disturbs times; the structure of locking it
can't.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import replace

from zaplock.errors import UserError
from zaplock.measure import memory
from zaplock.measure.guest import build, capsule, qemu
from zaplock.measure.guest.experiment import GuestPlan, GuestRun, arguments
from zaplock.recorder import tracefs
from zaplock.scratch import Scratch

HOST = "host"
"""The name of this machine's own kernel among those of guests."""
_BUFFER_KB = 8192


def run(plan: GuestPlan) -> GuestRun:
    """Run a plan on this machine's kernel.

    Raises UserError without root, where the mapping does not fit (huge pages: into the pool as it
    is), or if the probe fails.
    """
    plan = replace(plan, kernel=HOST, exact=False)
    memory.require(plan.length, plan.backing)
    with (
        tracefs.opened() as root,
        tracefs.Instance(root, buffer_kb=_BUFFER_KB) as instance,
    ):
        tracefs.sweep(root)
        where = [f"tracefs={root.path}", f"instance={instance.name}", f"buffer_kb={_BUFFER_KB}"]
        return GuestRun(plan, probed([*arguments(plan), *where], plan.timeout_s))


def probed(words: list[str], limit_s: float) -> capsule.Capsule:
    """Run the probe with these arguments; return what it handed over.

    Raises UserError where it fails, or is not done after `limit_s`.
    """
    with Scratch("guest") as folder:
        path = folder / "capsule"
        capsule.make(path)
        said = _done([str(build.probe()), *words, f"capsule={path}"], limit_s)
        result = capsule.read(path)
        if result is None:
            raise UserError(
                f"the probe failed on this kernel ({said or 'it said nothing'}): try a smaller SIZE"
            )
        return result


def _done(command: list[str], limit_s: float) -> str:
    """Run the probe with all its processes to their end; return its last words."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=qemu.die_with_parent,
    )
    try:
        _, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the probe was not done after {limit_s:.0f} s: "
            "try a smaller SIZE, or a bigger --timeout"
        ) from None
    finally:
        _end(process)
    return said.strip().splitlines()[-1] if said.strip() else ""


def _end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of the probe: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
