"""Several searches in one process at the same time, in threads, that end in any order."""

from __future__ import annotations

import gc
import threading
import warnings
from typing import Any

import pytest
from toys import Toy, add, load, tasks

from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import explore
from zaplock.errors import ProtocolError


async def adds() -> None:
    await add("x", 1)
    await add("y", 1)


def overlapping(body: Any) -> None:
    """Search twice: the first begins first and ends first, while the second, of `body`, goes on."""
    has_begun, other_has_begun = threading.Event(), threading.Event()

    def told(_: Any) -> None:
        has_begun.set()
        other_has_begun.wait()

    first = threading.Thread(
        target=lambda: explore(Configuration(Toy, tasks(adds, adds)), progress=told)
    )
    first.start()
    has_begun.wait()

    def told_second(_: Any) -> None:
        other_has_begun.set()
        first.join()

    try:
        explore(Configuration(Toy, tasks(body, adds)), progress=told_second)
    finally:
        other_has_begun.set()
        first.join()


def test_what_searches_set_in_the_process_is_as_before_them() -> None:
    before = gc.get_threshold(), list(warnings.filters), warnings.showwarning
    overlapping(adds)
    assert (gc.get_threshold(), list(warnings.filters), warnings.showwarning) == before


def test_an_await_that_is_forgotten_is_named_after_another_search_has_ended() -> None:
    async def forgets_a_protocol() -> None:
        await load("x")
        adds()  # type: ignore[unused-coroutine]
        await load("y")

    with pytest.raises(ProtocolError, match=r"coroutine 'adds' was never awaited"):
        overlapping(forgets_a_protocol)
