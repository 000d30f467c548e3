"""Sizes and durations as people read and type them: 80G, 4K, 1.5G, 1073741824; 50ms, 1s, 2.5us.

Suffixes of sizes are powers of 1024, as the kernel's own `memparse` has them. A size that is typed
must be a whole number of pages, since every operation of the address space works on whole pages.
Anything else is refused in one line that names the value, the rule and the way out.
"""

from __future__ import annotations

import re
from decimal import Decimal

from zaplock.errors import UserError

PAGE = 4096
LARGEST = 1 << 47
"""User address space of x86-64 with 4 levels of page tables, in bytes."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECOND = 10**9
_TIME_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": _SECOND, "": _SECOND}
_TIME_UNITS |= {"m": 60 * _SECOND, "h": 3600 * _SECOND}
_NUMBER = r"([0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})"
_SIZE = re.compile(_NUMBER + r"\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_DURATION = re.compile(_NUMBER + r"\s*(ns|us|ms|s|m|h|)")


_TIMES = (("s", 10**9), ("ms", 10**6), ("us", 10**3))
_SIZES = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def duration(span_ns: int) -> str:
    """Write nanoseconds with three digits and the unit that fits.

    >>> duration(2_485_692_000), duration(186_400_000), duration(840)
    ('2.49 s', '186 ms', '840 ns')
    """
    for unit, size in _TIMES:
        if abs(span_ns) >= size:
            value = span_ns / size
            return f"{value:.0f} {unit}" if abs(value) >= 999.5 else f"{value:.3g} {unit}"
    return f"{span_ns:.0f} ns"


def number(value: float, digits: int = 3) -> str:
    """Write a number with so many digits, all of them from thousands on, and never an exponent.

    >>> number(2.4857), number(1234.5), number(0.00001234)
    ('2.49', '1,234', '0.0000123')
    """
    if abs(value) >= 10**digits - 0.5:
        return f"{value:,.0f}"
    return f"{Decimal(f'{value:.{digits}g}'):f}"


def size(length: int) -> str:
    """Write bytes in the largest unit that leaves at most four digits.

    >>> size(8 << 30), size(4096), size(100)
    ('8 GiB', '4 KiB', '100 B')
    """
    for unit, bytes_ in _SIZES:
        if length >= bytes_:
            return f"{length / bytes_:.4g} {unit}"
    return f"{length} B"


def share(part: int, whole: int) -> str:
    """Write a part of a whole in per cent.

    >>> share(1, 3)
    '33 %'
    """
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def parse_size(text: str, *, page: int = PAGE) -> int:
    """Return a size in bytes, a positive multiple of `page`; raise UserError otherwise."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"size {text!r} is not a number with K, M, G or T after it, such as 80G")
    length = Decimal(found[1]) * _UNITS[found[2].upper()]
    if length == 0:
        raise UserError(f"size {text!r} is zero: give at least one page, such as {page}")
    if length > LARGEST:
        raise UserError(f"size {text!r} is more than a process can map: at most 128T")
    if length % page:
        raise UserError(
            f"size {text!r} is not a multiple of the page size {page}: try {_near(length, page)}"
        )
    return int(length)


def _near(length: Decimal, page: int) -> int:
    return max(page, int(length // page) * page)


def format_size(length: int) -> str:
    """Write a size as `parse_size` reads it: in the largest unit that leaves a short number."""
    value, unit = size(length).split()
    return value + unit.removesuffix("iB").removesuffix("B")


def parse_duration(text: str) -> int:
    """Return a duration in nanoseconds, more than 0; raise UserError otherwise.

    >>> parse_duration("50ms"), parse_duration("3")
    (50000000, 3000000000)
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"duration {text!r} is not a number of seconds, or one with ns, us, ms, s, m or h"
        )
    span_ns = int(Decimal(found[1]) * _TIME_UNITS[found[2]])
    if not 1 <= span_ns < 1 << 63:
        raise UserError(f"duration {text!r} must lie between 1ns and 292 years")
    return span_ns
