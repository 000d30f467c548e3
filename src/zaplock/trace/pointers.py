"""Kernel pointers that tell nothing but which of them are the same (`record --hash-pointers`).

Raw pointers help whoever attacks the kernel, and a recording may be passed on. The page of each is
replaced by a hash under a key that is thrown away; its upper 16 bits (which owner of the same
address space it is, see docs/recording.md) and its place in the page stay.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.events import EventKind

_PAGE = 12
_KEPT = (0xFFFF << 48) | ((1 << _PAGE) - 1)
_BITS = 36


class Pointers:
    """Hashes under one key."""

    def __init__(self, key: bytes = b"") -> None:
        """Take a key, or make one."""
        self._key = key or secrets.token_bytes(32)
        self._pages: dict[int, int] = {}

    def hide(self, pointer: int) -> int:
        """Replace one pointer; 0 stays."""
        if not pointer:
            return 0
        page = (pointer & ~_KEPT) >> _PAGE
        if page not in self._pages:
            raw = hashlib.blake2b(page.to_bytes(8, "little"), key=self._key, digest_size=8)
            self._pages[page] = int.from_bytes(raw.digest(), "little") & ((1 << _BITS) - 1)
        return (pointer & _KEPT) | (self._pages[page] << _PAGE)

    def hidden(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Replace the pointers of events: `mm`, and the locks of contention events."""
        contended = (columns["kind"] == EventKind.CONTENTION_BEGIN) | (
            columns["kind"] == EventKind.CONTENTION_END
        )
        addresses = columns["address"].copy()
        addresses[contended] = self._all(addresses[contended])
        return {**columns, "mm": self._all(columns["mm"]), "address": addresses}

    def _all(self, pointers: NDArray[Any]) -> NDArray[Any]:
        known, place = np.unique(pointers, return_inverse=True)
        hidden = np.array([self.hide(one) for one in known.tolist()], np.uint64)
        return hidden[place] if len(hidden) else pointers
