"""Nanoseconds, bytes and pointers as people read them."""

from __future__ import annotations

_TIMES = (("s", 10**9), ("ms", 10**6), ("us", 10**3))
_SIZES = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def duration(span_ns: int | float) -> str:
    """Write nanoseconds with three digits and the unit that fits.

    >>> duration(2_485_692_000), duration(186_400_000), duration(840)
    ('2.49 s', '186 ms', '840 ns')
    """
    for unit, size in _TIMES:
        if abs(span_ns) >= size:
            value = span_ns / size
            return f"{value:.0f} {unit}" if abs(value) >= 999.5 else f"{value:.3g} {unit}"
    return f"{span_ns:.0f} ns"


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
