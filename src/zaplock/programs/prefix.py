"""What stands in front of a call on a line of strace, and where the call begins.

Understood are -f, -Y, --decode-pids=pidns, --secontext, -t, -tt, -ttt and -r of any precision, -n
and -i, on a terminal ([pid 100]) and in a file (100).
"""

from __future__ import annotations

import re

from zaplock.system_calls import BY_NUMBER

_PID = r"(\d{1,7})(?:<[^>]*>)?(?:\s+/\*.*?\*/)?"
_CONTEXT = r"\[[\w.-]+(?::[\w.,:-]+|_t|!!.*?)\]"
_TIME = r"\d\d:\d\d:\d\d(?:\.\d+)?|\d+\.\d+|\d{8,}"
PREFIX = re.compile(
    rf"\s*(?:\[pid\s+{_PID}\]\s*|(?<!\s){_PID}\s+)?(?:{_CONTEXT}\s+)?"
    rf"(?:(?:{_TIME})\s+(?:\(\+\s*[\d.]+\)\s+)?|\d{{1,7}}\s+(?=\w+\())?"
    r"(?:\[\s*\d+\]\s+)?(?:\[(?:[0-9a-f]{8,}|\?+)\]\s+)?"
)
"""Its groups are the id in brackets and the id without; a number behind blanks is a time (-r)."""
NAME = re.compile(r"(\w+)\(")


_NUMBERED = re.compile(r"syscall_(0x[0-9a-f]{1,8}|\d{1,8})")


def name_of(called: str) -> str:
    """Return the name of a call that strace may know by its number only: syscall_0x1b3."""
    told = _NUMBERED.fullmatch(called)
    return BY_NUMBER.get(int(told[1], 0), called) if told else called


def end_of_prefix(line: str) -> int:
    """Return where the prefix of a line ends."""
    matched = PREFIX.match(line)
    return matched.end() if matched else 0
