"""Linux releases: parse what `uname -r` says, put releases in order, tell backports.

A change that was merged for 6.5 is in every release from 6.5 on. A stable series that took it too
has it from one of its own releases on: 6.1.37 says that 6.1.37 and later 6.1 releases have it, and
nothing of 6.0 or 6.2. `carries` is that rule.

Distributions name their kernels in their own ways. Most keep the upstream release and add to it
("6.12.117+deb12-amd64", "5.14.21-150400.24-default", "5.10.66-android12-9"). Debian (to 12) and
Ubuntu freeze the last number and count their own ("6.1.0-37-amd64", "6.8.0-45-generic"): such a
name doesn't tell the stable release, so it is taken as the whole series, "6.1.y".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

WHOLE_SERIES = 1 << 30
"""The patch level of "6.1.y": every stable release there is."""

_RELEASE = re.compile(
    r"(?:linux-|v)?(\d{1,4})\.(\d{1,4})(?!\d)(?:\.(\d{1,5}|y)(?!\d))?(.*)", re.DOTALL | re.ASCII
)
_OWN_NUMBER = re.compile(r"-(?!rc)\d+", re.ASCII)
_RED_HAT = re.compile(r"\.el\d")


@dataclass(frozen=True, slots=True, order=True)
class LinuxVersion:
    """A Linux release. Release candidates count as the release that they lead to.

    patch: the stable release of the series, WHOLE_SERIES where the name doesn't tell it.
    vendor: whether the vendor carries changes of later releases that the name can't tell.
    """

    major: int
    minor: int
    patch: int = 0
    vendor: bool = False

    @property
    def series(self) -> tuple[int, int]:
        """The mainline release that it belongs to."""
        return (self.major, self.minor)

    def __str__(self) -> str:
        series = f"{self.major}.{self.minor}"
        if self.patch == WHOLE_SERIES:
            return f"{series}.y"
        return f"{series}.{self.patch}" if self.patch else series

    def carries(self, since: str, backported: Iterable[str] = ()) -> bool:
        """Return whether this release has a change merged for `since`, or took it as a backport."""
        first = parse(since)
        if (self.series, self.patch) >= (first.series, first.patch):
            return True
        return any(
            self.series == one.series and self.patch >= one.patch for one in map(parse, backported)
        )


def find(text: str) -> LinuxVersion | None:
    """Return the release that a text begins with, None where it begins with none.

    >>> str(find("5.15.167.4-microsoft-standard-WSL2")), str(find("6.1.0-37-amd64"))
    ('5.15.167', '6.1.y')
    >>> find("4.18.0-477.el8.x86_64").vendor, find("rfc-v6")
    (True, None)
    """
    found = _RELEASE.match(text)
    if found is None:
        return None
    major, minor, patch, rest = found.groups()
    frozen = patch in (None, "0") and _OWN_NUMBER.match(rest)
    level = WHOLE_SERIES if patch == "y" or frozen else int(patch or 0)
    return LinuxVersion(int(major), int(minor), level, bool(_RED_HAT.search(rest)))


@cache
def parse(text: str) -> LinuxVersion:
    """Return the release that a text is: "6.6", "6.6.30" or "6.6.y".

    Raises ValueError where it is none, or goes on behind it.
    """
    found = _RELEASE.fullmatch(text)
    if found is None or found[4] or not text[0].isdigit():
        raise ValueError(f"{text!r} is no Linux release such as 6.6, 6.6.30 or 6.6.y")
    version = find(text)
    assert version is not None
    return version
