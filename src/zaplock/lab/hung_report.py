"""A kernel's own hung-task report, brought into a form that can be laid beside the model's.

Left out is what only that machine has: addresses, offsets, words of the stack, entries that the
unwinder doubts ("? name"), what a compiler made of a name (.constprop.0), marks of the context that
the model does not print.
"""

from __future__ import annotations

import re

from zaplock.lab.hung_task import TASK_FLAGS, HungTask

_FIRST = re.compile(r"INFO: task (?P<name>.*):(?P<pid>\d+) blocked for more than (?P<s>\d+) sec")
_KERNEL = re.compile(r"\s*(?P<taint>Not tainted|Tainted: \S[^#]*) (?P<kernel>\d+\.\d++\S*+ #.*)")
_FIELD = re.compile(r"(tgid|ppid|task_flags|flags):\s*(0x[0-9a-f]+|\d+)")
_OWNER = re.compile(
    r"INFO: task .{1,40} blocked on an rw-semaphore likely owned by task .{1,40}:(?P<pid>\d+) <"
)
_OLD_TASK = re.compile(r".{15} D\s+\d+\s+\d+\s+(?P<ppid>\d+) (?P<flags>0x[0-9a-f]{8})")
_ADDRESS = re.compile(r"^ ?\[<[0-9a-f]+>\]\s*")
_OFFSET = re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+")
_COMPILED = re.compile(r"\.(?:constprop|isra|part|cold|llvm)\.?\d*")
_WORDS = re.compile(r" ?[0-9a-f]{8,16}( [0-9a-f]{8,16})*")


def task_in(report: str) -> HungTask | None:
    """Read whom a report is about, and which kernel wrote it; None for what is no report."""
    lines = report.splitlines()
    first = _FIRST.match(lines[0]) if lines else None
    if first is None or len(lines) < 4:
        return None
    kernel = _KERNEL.match(lines[1])
    fields = {name: int(text, 0) for name, text in _FIELD.findall(lines[3])}
    if old := _OLD_TASK.match(lines[3]):
        fields = {"ppid": int(old["ppid"]), "flags": int(old["flags"], 16)}
    pid = int(first["pid"])
    owner = next(filter(None, map(_OWNER.match, lines)), None)
    return HungTask(
        first["name"], pid, kernel["kernel"] if kernel else lines[1].strip(),
        fields.get("tgid", pid), fields.get("ppid", 0), fields.get("flags", 0),
        kernel["taint"] if kernel else "Not tainted",
        fields.get("task_flags", TASK_FLAGS), int(owner["pid"]) if owner else 0,
    )  # fmt: skip


def comparable(report: str) -> list[str]:
    """Return the lines of a report without what only one machine has."""
    lines = [_ADDRESS.sub(" ", line.rstrip()) for line in report.splitlines()]
    kept = [line for line in lines if not line.lstrip().startswith("? ")]
    kept = [line for line in kept if line.strip() and not _WORDS.fullmatch(line)]
    return [_COMPILED.sub("", _OFFSET.sub("", line)) for line in kept]
