"""Switches of the whole process that searches turn, however many of them go on at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class WhileAny(Generic[_Value]):
    """What is set by the first search to begin, and put back by the last to end.

    Searches in several threads need not end in the order in which they began: if each put back
    what it found, one would leave for ever what another had set.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[_Value]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._searches = 0

    @contextmanager
    def __call__(self) -> Iterator[_Value]:
        """Have it set; gives the one thing that `begin` gave, to all."""
        with self._lock:
            if not self._searches:
                self._whole = self._begin()
                self._value = self._whole.__enter__()
            self._searches += 1
        try:
            yield self._value
        finally:
            with self._lock:
                self._searches -= 1
                if not self._searches:
                    self._whole.__exit__(None, None, None)
