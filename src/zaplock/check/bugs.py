"""What history says: which kernels had which bug. The matrix is held against it.

Versions are those of Linux releases; a shipped design has a bug where its kernel had it. The RFC's
designs stand on 4.18 and have its bugs and those that the downgrade itself brought.
"""

from __future__ import annotations

from dataclasses import dataclass

RFC = ("rfc-v6-posted", "rfc-v6")


@dataclass(frozen=True)
class Bug:
    """A bug that kernels had: where it shows, which shipped designs have it, what mended it."""

    name: str
    scenarios: tuple[str, ...]
    designs: tuple[str, ...]
    kernels: str
    source: str


BUGS: tuple[Bug, ...] = (
    Bug("expand", ("expand", "munmap+grow"), (*RFC, "linux-4.20"), "4.20 to 5.7",
        "CVE-2020-29369, 246c320a8cfe"),
    Bug("expand, by brk", ("grow+brk",), ("linux-4.20",), "4.20 to 5.7",
        "CVE-2020-29369, 246c320a8cfe: the RFC's brk does not downgrade"),
    Bug("ceiling", ("ceiling",), (*RFC, "linux-4.20"), "4.20 to 5.7",
        "read from the code; went with 246c320a8cfe"),
    Bug("nested flush", ("nested-flush",), (*RFC, "linux-4.20"), "4.20 to 5.1", "7a30df49f63a"),
    Bug("missed flush",
        ("missed-flush", "dontneed+dontneed", "dontneed+truncate", "dontneed+oom-reap"),
        ("linux-4.9",), "to 4.13", "99baac21e458"),
    Bug("reader count", ("reader-count",),
        ("linux-4.9", "linux-4.18", *RFC, "linux-4.20"), "4.9 to 5.1", "a9e9bcb45b15"),
    Bug("lost update", ("lost-update", "munmap-grow-read"),
        (*RFC, "linux-4.20", "linux-5.10"), "4.20 to 6.4",
        "read from the code; went with 8d7071af8907 (6.5, and 6.1.37)"),
    Bug("arch_unmap under R", ("arch-unmap",), RFC, "the RFC", "its review; 4.20 calls it earlier"),
    Bug("hugetlb inversion", ("hugetlb",), ("rfc-v6-posted",), "the RFC as posted", "its review"),
    Bug("PFN flush", ("pfn-revoke",),
        ("linux-4.9", "linux-4.18", *RFC, "linux-4.20", "linux-5.10"), "before 6.0",
        "CVE-2022-39188, b67fbebd4cf9 (895428ee124a in older stable series)"),
    Bug("mremap flush", ("mremap-flush", "mremap+truncate"),
        ("linux-4.9", "linux-4.18", *RFC), "to 4.18", "CVE-2018-18281, eb66ae030829"),
)  # fmt: skip
"""Four more are mutations, since no shipped design has them: zero page (`zap-before-detach`),
detached re-check (`no-detached-recheck`), event before unlock (`event-before-unlock`) and stale
node (`growth-under-read` in the scenario stack-rot; CVE-2023-3269)."""

LIVENESS = "convoy"
"""The scenario of the liveness promise, which a queued writer breaks in every kernel."""


def expected(scenario: str, design: str) -> Bug | None:
    """Return the known bug that a scenario shows under a design, None where it has to be proved."""
    for bug in BUGS:
        if scenario in bug.scenarios and design in bug.designs:
            return bug
    return None
