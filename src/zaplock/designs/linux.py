"""Designs of Linux: any release from 4.9 on is the fold of the changes up to it.

The shipped names are names for such folds. The two RFC designs stand on 4.18: what they don't touch
is 4.18's, its bugs included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from zaplock.designs.change import Change
from zaplock.designs.changes import CHANGES
from zaplock.errors import UserError
from zaplock.linux_version import WHOLE_SERIES, LinuxVersion, find, parse
from zaplock.model.rwsem import RWSEM_4_9, RWSEM_5_3, RWSEM_5_11, RwsemPolicy
from zaplock.protocols.design import Design
from zaplock.protocols.fault import page_fault_mmap_lock
from zaplock.protocols.munmap import do_munmap, vm_munmap, vm_munmap_zap_rlock
from zaplock.protocols.proc import proc_pid_cmdline_read
from zaplock.vendor_builds import Carried, VendorBuild, carried

OLDEST = LinuxVersion(4, 9)
LAST_MINOR = {4: 20, 5: 19, 6: 19, 7: 3}
"""The last release of each major number; of the newest one, the last that the table covers."""
NEWEST = LinuxVersion(max(LAST_MINOR), LAST_MINOR[max(LAST_MINOR)])
STANDS_FOR = {"6.1": "6.1.37"}
"""Releases that are named without their stable number and aren't the first of their series.

6.1's first releases lost a race between a growing stack and a fault (CVE-2023-3269); "6.1" is the
repaired one. The others can be named in full: 6.1.0, 6.1.36.
"""

LINUX_4_9 = Design(
    name="linux-4.9",
    kernel="4.9",
    summary="munmap holds the lock exclusively from beginning to end",
    rwsem=RWSEM_4_9,
    munmap=vm_munmap,
    do_munmap=do_munmap,
    page_fault=page_fault_mmap_lock,
    proc_cmdline=proc_pid_cmdline_read,
    uffd_unmap=False,
    nested_flush="ignore",
)


def linux(release: str | LinuxVersion) -> Design:
    """Return the design of a Linux release: "6.8", "6.6.30", or "6.1.y" for all of 6.1's backports.

    Raises UserError for what is no release, or one that the table doesn't cover.
    """
    return _fold(release if isinstance(release, LinuxVersion) else version(release))


def version(text: str) -> LinuxVersion:
    """Read the name of a release, "6.8" or "linux-6.8"; raises UserError as `linux` does."""
    text = text.removeprefix("linux-")
    try:
        found = parse(STANDS_FOR.get(text, text))
    except ValueError as error:
        raise UserError(f"{error}{_release_of_build(text)}") from None
    if not is_covered(found):
        raise UserError(
            f"Linux {found} is not in the table of changes, which covers {OLDEST} to {NEWEST}"
        )
    return found


def _release_of_build(text: str) -> str:
    """Say by which name the release can be had that a build of it ("6.1.0-37-amd64") is judged as.

    Not done by itself: what is not known of a build would go unsaid.
    """
    found = find(text) if re.match(r"[\d.]+[-+]", text) else None
    return f"; as a build it is judged as {design_of(text).design.name}" if found else ""


def is_covered(release: LinuxVersion) -> bool:
    """Return whether there is such a release, between the table's first and last."""
    last = LAST_MINOR.get(release.major, -1)
    return OLDEST.series <= release.series and release.minor <= last


@cache
def _fold(release: LinuxVersion) -> Design:
    carried = [change for change in CHANGES if change.is_in(release)]
    kernel = f"{release}.0" if str(release) in STANDS_FOR else str(release)
    return replace(
        applied(LINUX_4_9, *carried),
        name=f"linux-{kernel}",
        kernel=kernel,
        summary=_summary(carried),
    )


def _policy(policy: RwsemPolicy, since: str) -> RwsemPolicy:
    """Return a semaphore's policy by the name under which it is known, if it has one."""
    for known in (RWSEM_4_9, RWSEM_5_3, RWSEM_5_11):
        if policy == known:
            return known
    return replace(policy, name=f"as of {since}")


def _summary(carried: list[Change]) -> str:
    if not carried:
        return LINUX_4_9.summary
    return f"4.9 with {len(carried)} later changes, the last: {carried[-1].subject}"


def applied(design: Design, *changes: Change) -> Design:
    """Return a design with the rules of changes; of the semaphore a row may name parts only."""
    rules: dict[str, Any] = {}
    for change in changes:
        policy = rules.get("rwsem", design.rwsem)
        rules |= change.rules
        if isinstance(parts := rules.get("rwsem"), dict):
            rules["rwsem"] = _policy(replace(policy, **parts), change.since)
    return replace(design, **rules)


@dataclass(frozen=True, slots=True)
class StandIn:
    """The design that a running or recorded kernel is taken for; `note`: what isn't known of it."""

    design: Design
    note: str = ""


def design_of(release: str) -> StandIn:
    """Return the design of what `uname -r` says.

    Raises UserError where the text begins with no release.

    >>> design_of("6.12.117+deb12-cloud-amd64").design.name
    'linux-6.12.117'
    >>> design_of("6.1.0-37-amd64").design.name
    'linux-6.1.y'
    """
    found = find(release)
    if found is None:
        raise UserError(f"{release!r} begins with no Linux release such as 6.6.30")
    if found.series < OLDEST.series:
        return StandIn(linux(OLDEST), f"{release} is older than {OLDEST}, and taken for it")
    if found.series > NEWEST.series:
        newest = replace(NEWEST, patch=WHOLE_SERIES)
        return StandIn(linux(newest), f"{release} is newer than {NEWEST}, and taken for it")
    plain = replace(found, vendor=False)
    if found.vendor and (known := carried(release)):
        return _of_vendor(release, known)
    if found.vendor:
        design = linux(plain)
        note = (
            f"{release} is an unknown vendor kernel, judged as {design.name}: it has changes of "
            "later releases that its name doesn't tell"
        )
        return StandIn(design, note)
    if found.patch == WHOLE_SERIES:
        return StandIn(
            linux(plain),
            f"{release} doesn't tell its stable release: taken with all that {found} took",
        )
    return StandIn(linux(plain))


def vendor_build(release: str) -> Design | None:
    """Return the design of a vendor's build whose sources were read, by its whole name."""
    found = carried(release)
    return _of_build(found.build) if found and found.build.release == release else None


def _of_build(build: VendorBuild) -> Design:
    return replace(
        applied(LINUX_4_9, *changes_in(build.release)),
        name=f"linux-{build.release}",
        kernel=build.release,
        summary=f"{build.product}: {build.base} with {len(build.changes)} later changes",
    )


def _of_vendor(release: str, known: Carried) -> StandIn:
    build, named = known.build, _of_build(known.build)
    what = f"judged as {build.product}'s {build.release}, whose sources were read"
    if known.known:
        return StandIn(named, f"{release} is {what}")
    more = "it may have more changes of later releases"
    return StandIn(named, f"{release} is an unknown vendor kernel, {what}: {more}")


def changes_in(kernel: str) -> list[Change]:
    """List the changes that a kernel has, by the release that its name begins with."""
    release, vendor = find(kernel), carried(kernel)
    if vendor:
        base, taken = version(vendor.build.base), vendor.build.changes
        return [one for one in CHANGES if one.is_in(base) or one.commit in taken]
    return [one for one in CHANGES if release and one.is_in(release)]


def releases_that_differ() -> Iterator[Design]:
    """Yield, oldest first, every release whose rules differ from those of the one before it.

    The one before a stable release is its series' previous one, that of a mainline release the
    first of the series before.
    """
    before: Design | None = None
    for major, last in LAST_MINOR.items():
        first = OLDEST.minor if major == OLDEST.major else 0
        for minor in range(first, last + 1):
            mainline = linux(LinuxVersion(major, minor))
            if before is None or not same_rules(mainline, before):
                yield mainline
            before = mainline
            yield from _stable_that_differ(mainline)


def _stable_that_differ(mainline: Design) -> Iterator[Design]:
    series = parse(mainline.kernel).series
    named = {parse(text) for change in CHANGES for text in change.backported}
    before = mainline
    for release in sorted(one for one in named if one.series == series):
        stable = linux(release)
        if not same_rules(stable, before):
            yield stable
        before = stable


def same_rules(design: Design, other: Design) -> bool:
    """Return whether two designs decide alike, whatever they are called."""
    alike = replace(other, name=design.name, kernel=design.kernel, summary=design.summary)
    return design == alike


def _named(name: str, summary: str) -> Design:
    return replace(linux(name), name=name, summary=summary)


LINUX_4_18 = _named("linux-4.18", "as 4.9; userfaultfd is told of unmaps, ps takes the lock once")
RFC_V6_POSTED = replace(
    LINUX_4_18,
    name="rfc-v6-posted",
    kernel="4.18 + RFC v6",
    summary="the RFC as posted: zaps under read, its hugetlb test is inverted",
    munmap=vm_munmap_zap_rlock,
    munmap_downgrades=True,
    bounds_read="after",
    skip_vm_flags="posted",
)
RFC_V6 = replace(
    RFC_V6_POSTED,
    name="rfc-v6",
    summary="the RFC as meant: detaches under write, zaps under read, munmap only",
    skip_vm_flags="yes",
)
LINUX_4_20 = _named(
    "linux-4.20", "what was merged: downgrades in munmap, brk and mremap shrink, no skip_vm_flags"
)
LINUX_5_10 = _named(
    "linux-5.10", "does not downgrade beside a stack that may grow; the rwsem has a handoff"
)
LINUX_6_1 = _named(
    "linux-6.1", "maple tree, no munlock pass; stacks grow under write (by backport)"
)
LINUX_6_18 = _named(
    "linux-6.18", "per-VMA locks: faults and MADV_DONTNEED do without the mmap_lock"
)
