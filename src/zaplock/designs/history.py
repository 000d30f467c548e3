"""What lies between two designs: changes of Linux that one has and the other has not."""

from __future__ import annotations

from zaplock.designs.change import Change
from zaplock.designs.changes import CHANGES
from zaplock.designs.linux import LINUX_4_9, linux, same_rules
from zaplock.designs.shipped import SHIPPED
from zaplock.linux_version import LinuxVersion, find
from zaplock.protocols.design import Design


def release_of(design: Design) -> LinuxVersion:
    """Return the release that a design is or stands on; 4.9 where it names none."""
    return find(design.kernel) or LinuxVersion(4, 9)


def is_stock(design: Design) -> bool:
    """Return whether a design decides as the release does that it is named for."""
    return same_rules(design, linux(release_of(design)))


def changes_between(first: Design, second: Design) -> tuple[list[Change], list[Change]]:
    """Return the changes that only the second's release has, and those that only the first's has.

    A stable release may have what a later mainline one lacks: a backport.
    """
    before, after = release_of(first), release_of(second)
    gained = [one for one in CHANGES if one.is_in(after) and not one.is_in(before)]
    lost = [one for one in CHANGES if one.is_in(before) and not one.is_in(after)]
    return gained, lost


def predecessor(design: Design) -> Design:
    """Return what a design is best read against.

    A design of one's own: the release that it stands on. A release: the shipped one before it. The
    oldest: the newest shipped.
    """
    stock = linux(release_of(design))
    shipped = list(SHIPPED.values())
    if design in shipped:
        at = shipped.index(design)
        return shipped[at - 1] if at else shipped[-1]
    if not is_stock(design):
        return stock
    older = [one for one in shipped if is_stock(one) and release_of(one) <= release_of(design)]
    return older[-1] if older else LINUX_4_9
