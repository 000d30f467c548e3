"""Which processes a verb is about: by number, name, control group or systemd unit."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from zaplock.cli._ending import options
from zaplock.errors import UserError
from zaplock.untrusted_names import name_of, read_text

_COMM_LENGTH = 15
"""The kernel keeps so many bytes of a task's name."""


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add -p, --comm, --cgroup and --unit; each may be repeated, and they add up."""
    add = parser.add_argument
    add("-p", "--pid", type=int, action="append", metavar="PID", help="a process; may be repeated")
    add("--comm", action="append", metavar="NAME", help="every process of that name")
    add("--cgroup", action="append", metavar="PATH", help="every process of a control group")
    add("--unit", action="append", metavar="NAME.service", help="every process of a systemd unit")


def targets(args: argparse.Namespace) -> tuple[int, ...]:
    """Return the processes that were asked for, each once; () where none were.

    Raises UserError where a name stands for no process.
    """
    pids = list(args.pid or ())
    for name in args.comm or ():
        pids += _named(name)
    for path in args.cgroup or ():
        pids += _members(_group(path), path)
    for unit in args.unit or ():
        pids += _members(_unit(unit), unit)
    return tuple(dict.fromkeys(pids))


def spelt(args: argparse.Namespace) -> str:
    """Spell the targets as they were given, for the next command; "" for the whole system."""
    return options(
        {"-p": args.pid, "--comm": args.comm, "--cgroup": args.cgroup, "--unit": args.unit}
    )


def in_group(args: argparse.Namespace) -> bool:
    """Say whether a group was asked for, to which the children of its members belong too."""
    return bool(args.cgroup or args.unit)


def _named(name: str) -> list[int]:
    wanted = name.encode()[:_COMM_LENGTH].decode(errors="ignore")
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                comm = name_of(Path(entry.path, "comm").read_bytes().removesuffix(b"\n"))
            except OSError:  # gone
                continue
            if comm == wanted:
                found.append(int(entry.name))
    if not found:
        raise UserError(f"no process is called {name!r}: 'ps -e' lists those that are")
    return sorted(found)


def _roots() -> list[Path]:
    """Where control groups are mounted: the unified hierarchy first."""
    mounts = [line.split() for line in read_text("/proc/self/mounts").splitlines()]
    kinds = ("cgroup2", "cgroup")
    found = [(kinds.index(kind), where) for _, where, kind, *_ in mounts if kind in kinds]
    unescaped = [
        re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), one[1]) for one in sorted(found)
    ]
    return [Path(where) for where in unescaped]


def _group(path: str) -> Path:
    """Find a group's folder: given whole, or as /proc/PID/cgroup has it."""
    tried = [Path(path), *(root / path.lstrip("/") for root in _roots())]
    for folder in tried:
        if (folder / "cgroup.procs").exists():
            return folder
    raise UserError(
        f"there is no control group {path!r}: give its folder (under /sys/fs/cgroup) or its path "
        "as /proc/PID/cgroup has it"
    )


def _unit(name: str) -> Path:
    wanted = name if "." in name else f"{name}.service"
    found = [
        Path(folder)
        for root in _roots()[:1]
        for folder, _, files in os.walk(root)
        if os.path.basename(folder) == wanted and "cgroup.procs" in files
    ]
    if not found:
        raise UserError(f"no unit {wanted!r} runs here: 'systemctl' lists those that do")
    if len(found) > 1:
        both = ", ".join(map(str, found[:3]))
        raise UserError(f"{wanted!r} is the name of {len(found)} units: give --cgroup, of {both}")
    return found[0]


def _members(folder: Path, name: str) -> list[int]:
    pids = set()
    for inside, _, files in os.walk(folder):
        if "cgroup.procs" in files:
            try:
                pids |= {int(pid) for pid in Path(inside, "cgroup.procs").read_text().split()}
            except OSError:  # removed meanwhile, or of threads alone
                continue
    pids -= {0, os.getpid()}
    pids = {pid for pid in pids if _has_memory(pid)}
    if not pids:
        raise UserError(f"{name!r} has no process at present: 'systemd-cgls' shows what runs where")
    return sorted(pids)


def _has_memory(pid: int) -> bool:
    """Say whether it is a process with an address space, and not a kernel thread or a zombie."""
    try:
        return "\nVmSize:" in read_text(f"/proc/{pid}/status")
    except OSError:
        return False
