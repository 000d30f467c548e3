"""The advice of madvise: numbers, names, and the release from which each is known.

One table for the model, the oracle, the recorder and the library calls. The numbers are x86's and
arm64's. Source: include/uapi/asm-generic/mman-common.h; the releases are those of madvise(2).
"""

from __future__ import annotations

from typing import Final

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED = 0, 1, 2, 3, 4
MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK = 8, 9, 10, 11
MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 12, 13, 14, 15
MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK = 16, 17, 18, 19
MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE = 20, 21, 22, 23
MADV_DONTNEED_LOCKED, MADV_COLLAPSE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 24, 25, 102, 103
MADV_HWPOISON, MADV_SOFT_OFFLINE = 100, 101

ADVICE: Final[dict[int, str]] = {
    value: name for name, value in dict(globals()).items() if name.startswith("MADV_")
}
SINCE: Final[dict[int, str]] = {
    MADV_WIPEONFORK: "4.14", MADV_KEEPONFORK: "4.14",
    MADV_COLD: "5.4", MADV_PAGEOUT: "5.4",
    MADV_POPULATE_READ: "5.14", MADV_POPULATE_WRITE: "5.14",  # 4ca9b3859dac
    MADV_DONTNEED_LOCKED: "5.18",  # 9457056ac426
    MADV_COLLAPSE: "6.1",  # 7d8faaf15545
    MADV_GUARD_INSTALL: "6.13", MADV_GUARD_REMOVE: "6.13",
}  # fmt: skip
"""What came after 4.9."""
