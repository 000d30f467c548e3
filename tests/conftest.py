"""Fixtures that tests of several modules take."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

TRIES = 3
"""Of a test that looks at the running kernel: others may compute at the moment that it is about."""
REAL = {"cases", "test_ground_truth.py", "test_html_page.py", "test_quota.py"}


def looks_at_the_machine(item: pytest.Item) -> bool:
    """Return whether a test is about what really happened on this machine, and when."""
    path = Path(item.path)
    return item.get_closest_marker("root") is not None or bool({path.name, path.parent.name} & REAL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Repeat such a test where it failed, and log the last try. What is wrong fails every time."""
    if not looks_at_the_machine(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in reversed(range(TRIES)):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not left or not any(report.failed for report in reports):
            break
        item._initrequest()  # type: ignore[attr-defined]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    """Lend a segment of 2 MiB that is full of z."""
    made = SharedMemory(create=True, size=2 << 20)
    made.buf[:] = b"z" * made.size
    yield made
    made.unlink()
