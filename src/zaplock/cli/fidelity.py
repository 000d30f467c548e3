"""Do the designs do what real kernels do? Measure both, lay them side by side.

On every kernel at hand (this machine's, and Debian's 6.1 and 6.12 in QEMU with instruction-counted
time) one mapping is taken down in each way, beside readers alone and beside readers with a queued
writer. Read from the mmap_lock tracepoints: the modes in which the lock is held, who waits behind
whom, and the longest wait as a share of the teardown. The same is read from the simulated events of
the design of that version. Guests are also made to wait so long that khungtaskd reports somebody.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from zaplock import outputs
from zaplock.errors import UserError, no_such
from zaplock.units import parse_size

if TYPE_CHECKING:
    from zaplock.lab.fidelity import Agreement, HungTasks
    from zaplock.measure.guest.experiment import GuestPlan, GuestRun


HOST = "host"
KERNELS = f"{HOST},debian:6.1,debian:6.12"
_GUEST_RATE, _HOST_RATE = 1000, 5000
_LIMIT_S = 180.0
_SLOW_SHIFT = 7  # 128 ns an instruction: a second of waiting is soon over


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zaplock fidelity`."""
    add = parser.add_argument
    add("--kernels", default=KERNELS, metavar="LIST", help=f"which kernels ({KERNELS})")
    add("--teardowns", metavar="LIST", help="munmap, fixed, growsdown, brk, mremap, exit (all)")
    add("--guest-size", default="128M", metavar="SIZE", help="what a guest maps (128M)")
    add("--host-size", default="2G", metavar="SIZE", help="what this machine maps (2G)")
    add("--no-hung", action="store_true", help="leave the hung tasks out")
    add("--write", metavar="FILE", help="write the section of docs/fidelity.md (there, if it is)")
    add("--json", action="store_true", help="print JSON instead of a table")


@dataclass(slots=True)
class _Survey:
    """What was found so far; `skipped` tells which kernels could not be had, and why."""

    rows: list[Agreement] = field(default_factory=list)
    hung: list[HungTasks] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return all(one.agrees for one in self.rows) and all(one.agrees for one in self.hung)


def run(args: argparse.Namespace) -> int:
    """Measure, compare and print; 1 where a design disagrees with its kernel."""
    from zaplock.cli import _fidelity_text as text
    from zaplock.views.screen import Screen

    kernels, teardowns = _names(args)
    found = _Survey()
    with Screen(stderr=True).status("getting ready") as status:
        for kernel in kernels:
            try:
                _survey(args, kernel, teardowns, found, status.update)
            except UserError as error:
                found.skipped.append(f"{kernel} left out: {error}")
    if not found.rows:
        raise UserError("; ".join(found.skipped))
    if args.json:
        print(json.dumps(text.as_json(found.rows, found.hung, found.skipped), indent=2))
    else:
        Screen().print(text.table(found.rows))
        print("\n".join([*text.sentences(found.rows, found.hung), *found.skipped]))
    _write(args, text.section(found.rows, found.hung, found.skipped))
    print("next: zaplock measure --kernel debian:6.12 1G --exact", file=_beside(args))
    return 0 if found.agrees else 1


def _survey(
    args: argparse.Namespace,
    kernel: str,
    teardowns: list[str],
    found: _Survey,
    tell: Callable[[str], None],
) -> None:
    """Compare all cases of one kernel."""
    for teardown, writer in _cases(teardowns):
        tell(f"{kernel}: {teardown}, {'with a queued writer' if writer else 'readers alone'}")
        found.rows.append(_compared(args, kernel, teardown, writer))
    if kernel != HOST and not args.no_hung:
        tell(f"{kernel}: waiting for khungtaskd")
        found.hung.append(_hung(args, kernel))


def _beside(args: argparse.Namespace) -> TextIO:
    return sys.stderr if args.json else sys.stdout


def _names(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    from zaplock.lab.forecast import TEARDOWNS

    teardowns = args.teardowns.split(",") if args.teardowns else list(TEARDOWNS)
    for name in teardowns:
        if name not in TEARDOWNS:
            raise no_such("teardown", name, TEARDOWNS)
    return args.kernels.split(","), teardowns


def _cases(teardowns: list[str]) -> Iterator[tuple[str, bool]]:
    for teardown in teardowns:
        yield teardown, False
        yield teardown, True


def _plan(args: argparse.Namespace, kernel: str, teardown: str, writer: bool) -> GuestPlan:
    from zaplock.lab.fidelity import READERS, WRITER
    from zaplock.measure.guest.experiment import GuestPlan

    on_host = kernel == HOST
    return GuestPlan(
        length=parse_size(args.host_size if on_host else args.guest_size),
        kernel=kernel,
        teardown=teardown,
        bystanders=(*READERS, WRITER) if writer else READERS,
        rate=_HOST_RATE if on_host else _GUEST_RATE,
        timeout_s=_LIMIT_S,
        exact=not on_host,
        nr_cpus=1,
    )


def _done(plan: GuestPlan) -> GuestRun:
    from zaplock.measure.guest import experiment, host

    return host.run(plan) if plan.kernel == HOST else experiment.run(plan)


def _compared(args: argparse.Namespace, kernel: str, teardown: str, writer: bool) -> Agreement:
    from zaplock.lab import fidelity
    from zaplock.measure.guest import verdict

    plan = _plan(args, kernel, teardown, writer)
    done = _done(plan)
    release = done.capsule.facts["release"]
    period_ns = 10**9 // plan.rate
    return fidelity.compare(release, kernel, teardown, writer, verdict.read(done), period_ns)


def _hung(args: argparse.Namespace, kernel: str) -> HungTasks:
    from dataclasses import replace

    from zaplock.lab import fidelity
    from zaplock.measure.guest import rows

    plan = replace(
        _plan(args, kernel, "munmap", True),
        bystanders=fidelity.HUNG_BYSTANDERS,
        shift=_SLOW_SHIFT,
        hung_task_timeout_s=1,
    )
    done = _done(plan)
    messages = rows.hung_task_messages(done.capsule.text("kernel_log"))
    return fidelity.compare_hung(done.capsule.facts["release"], kernel, messages)


def _write(args: argparse.Namespace, section: str) -> None:
    from zaplock.cli import _fidelity_text as text

    path = Path(args.write or "docs/fidelity.md")
    if not args.write and not path.exists():
        return
    try:
        old = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}): name another file") from None
    outputs.write(path, text.with_section(old, section))
