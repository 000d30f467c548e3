"""Several cores for one search: threads that do pieces of numpy's work at once.

numpy lets the interpreter's lock go while it works on a big array. So two threads that take and
compare are nearly twice as fast as one, and both see all that the search knows without a copy. What
is Python's own stays in one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from types import TracebackType

Result = TypeVar("Result")


class Cores:
    """As many threads at work as are counted; once it has ended, as a context, none is left."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(count, "core")

    def __enter__(self) -> Cores:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def each(
        self, piece: Callable[[int], Result], meanwhile: Callable[[], None] | None = None
    ) -> list[Result]:
        """Do pieces 0 to `count` - 1 at once; return what each gives, once all are done.

        meanwhile: what this thread does in place of piece 0; other threads have all pieces then.
        Where there is one thread only, it comes last.
        """
        if self._pool is None:
            given = piece(0)
            if meanwhile is not None:
                meanwhile()
            return [given]
        from concurrent.futures import wait

        others = [
            self._pool.submit(piece, number) for number in range(int(meanwhile is None), self.count)
        ]
        try:
            own = [piece(0)] if meanwhile is None else []
            if meanwhile is not None:
                meanwhile()
        finally:
            wait(others)
        return own + [other.result() for other in others]

    def spans(self, length: int) -> list[slice]:
        """Cut so many items into one span for each core, in order."""
        ends = [length * number // self.count for number in range(self.count + 1)]
        return [slice(first, end) for first, end in pairwise(ends)]


ONE_CORE = Cores()
"""The caller's thread alone."""
