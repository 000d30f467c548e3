"""Fixtures that tests of several modules take."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory

import pytest


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    """Lend a segment of 2 MiB that is full of z."""
    made = SharedMemory(create=True, size=2 << 20)
    made.buf[:] = b"z" * made.size
    yield made
    made.unlink()
