"""The options of `zaplock measure` that take the experiment to another real kernel, in QEMU."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._designs import parse_cpu_max
from zaplock.cli._ending import next_step, wrote
from zaplock.cli._json_text import print_json
from zaplock.errors import UserError
from zaplock.units import parse_duration, parse_size
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.measure.guest.experiment import GuestPlan
    from zaplock.trace.teardown_outcome import TeardownOutcome

_NEEDS_KERNEL = {
    "--exact": "exact",
    "--guest-memory": "guest_memory",
    "--guest-cpus": "guest_cpus",
    "--hung-task-timeout": "hung_task_timeout",
    "--record": "record",
    "--graph": "graph",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of an experiment in a guest."""
    add = parser.add_argument_group("another kernel, in QEMU").add_argument
    add("--kernel", metavar="KERNEL", help="boot this one: a vmlinuz, or debian:6.1, debian:7.3")
    add("--list-kernels", action="store_true", help="which of Debian's kernels can be had")
    add("--exact", action="store_true", help="count instructions for time: every run is the same")
    add("--guest-memory", metavar="SIZE", help="the guest's memory (what the backing needs)")
    add("--guest-cpus", type=int, metavar="N", help="the guest's CPUs (2; an exact guest has 1)")
    add(
        "--hung-task-timeout",
        metavar="TIME",
        help="report tasks blocked so long, in seconds (120s)",
    )
    add(
        "--record", metavar="FILE", help="keep the guest's trace as a recording, for report and why"
    )
    add("--graph", metavar="FILE", help="write the teardown's function_graph instead of holds")


def refuse_without_kernel(args: argparse.Namespace) -> None:
    """Raise UserError where an option of a guest is given and no kernel."""
    given = [option for option, name in _NEEDS_KERNEL.items() if getattr(args, name)]
    if given:
        raise UserError(f"{given[0]} is for a guest: name its kernel, such as --kernel debian:6.1")


def plan(args: argparse.Namespace, bystanders: tuple[str, ...]) -> GuestPlan:
    """Make the plan that the options ask for."""
    from zaplock.experiment import period_of
    from zaplock.measure.guest.experiment import GuestPlan

    exact_cpus = 1 if args.exact else 2
    if args.exact and (args.guest_cpus or 1) != 1:
        raise UserError(f"--guest-cpus {args.guest_cpus} and --exact: an exact guest has one CPU")
    hung_ns = parse_duration(args.hung_task_timeout) if args.hung_task_timeout else 0
    if hung_ns % 10**9:
        raise UserError(
            f"--hung-task-timeout {args.hung_task_timeout}: the kernel takes whole seconds"
        )
    return GuestPlan(
        length=parse_size(args.size),
        kernel=args.kernel,
        backing=args.backing,
        teardown=args.teardown,
        bystanders=bystanders,
        period_ns=period_of(args.rate),
        locked=args.locked,
        nr_vmas=args.vmas,
        timeout_s=parse_duration(args.timeout) / 1e9,
        exact=args.exact,
        nr_cpus=exact_cpus if args.guest_cpus is None else args.guest_cpus,
        memory=parse_size(args.guest_memory) if args.guest_memory else 0,
        hung_task_timeout_s=hung_ns // 10**9,
        cpu_max=parse_cpu_max(args.cpu_max) if args.cpu_max else None,
        graph=bool(args.graph),
    )


def list_kernels(*, as_json: bool) -> None:
    """Print which of Debian's kernels can be had, and which of them are here already."""
    from zaplock.cli._busy import busy
    from zaplock.measure.guest import debian

    with busy("looking at Debian's package lists"):
        known = debian.known()
    if as_json:
        print_json([asdict(one) for one in known])
    else:
        for one in known:
            here = f"here, sha256 {one.sha256[:16]}..." if one.sha256 else ""
            print(f"debian:{one.release:<20} {here}".rstrip())
    newest = ".".join(known[-1].release.split(".")[:2]) if known else "6.1"
    next_step(f"zaplock measure 1G --kernel debian:{newest} --exact", aside=as_json)


def measure(args: argparse.Namespace, bystanders: tuple[str, ...]) -> list[TeardownOutcome]:
    """Run the experiment in guests; write what was asked for; return a row for each run."""
    from zaplock.cli._busy import busy
    from zaplock.measure.guest import rows

    wanted = plan(args, bystanders)
    for path in (args.record, args.graph):
        if path and Path(path).exists():
            raise UserError(f"{path} is already there: remove it or name another file")
    with busy(f"{args.kernel}: getting ready") as say:
        found = rows.measure(
            wanted,
            repeat=args.repeat,
            record=args.record,
            graph=args.graph,
            progress=lambda phase: say(f"{args.kernel} in QEMU: {phase}"),
        )
    for path in filter(None, (args.record, args.graph)):
        wrote(path, aside=args.json)
    return found


def next_command(args: argparse.Namespace) -> str:
    """Name the command that goes on from here."""
    if args.record:
        return f"zaplock report {shell_word(args.record)}"
    other = "debian:6.1" if args.kernel == "debian:6.12" else "debian:6.12"
    return f"zaplock measure {args.size} --kernel {other}{' --exact' if args.exact else ''}"
