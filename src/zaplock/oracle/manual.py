"""Which errors the manual pages name for these calls, and why some of them can't be had here.

Source: man-pages 6.9 (mmap(2), mremap(2), madvise(2), ...), mseal(2) and process_madvise(2).
`zaplock oracle --coverage` holds a run against it.
"""

from __future__ import annotations

from zaplock.system_calls import SYSTEM_CALLS

_ACCESS = ("SIGSEGV/MAPERR", "SIGSEGV/ACCERR", "SIGSEGV/KERNEL", "SIGBUS/ADRERR")
WANTED: dict[str, tuple[str, ...]] = {
    **{call.name: call.errors for call in SYSTEM_CALLS.values() if call.errors},
    "uffd_register": ("EINVAL",),
    "uffd_unregister": ("EINVAL",),
    "load": _ACCESS,
    "store": _ACCESS,
}
"""What must occur besides success; "ENOTSUP" is what errno calls EOPNOTSUPP on Linux."""

OUT_OF_REACH: dict[tuple[str, str], str] = {
    (call.name, error): reason
    for call in SYSTEM_CALLS.values()
    for error, reason in call.out_of_reach.items()
}
"""Errors that a manual page names and no run shows, each with the reason."""

LEAST = 100


def missing(outcomes: dict[str, dict[str, int]], least: int = LEAST) -> list[str]:
    """List what occurred fewer than `least` times in a run, as "mremap EAGAIN: 17"."""
    return [
        f"{name} {outcome}: {outcomes.get(name, {}).get(outcome, 0)}"
        for name, wanted in WANTED.items()
        for outcome in ("ok", *wanted)
        if outcomes.get(name, {}).get(outcome, 0) < least
    ]
