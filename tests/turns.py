"""What one zaplock of a machine has at a time, and others wait for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from zaplock.errors import UserError


@contextlib.contextmanager
def when_its_turn_comes(
    take: Callable[[], contextlib.AbstractContextManager[None]],
) -> Iterator[None]:
    """Take it as soon as no other run has it."""
    with contextlib.ExitStack() as held:
        end = time.monotonic() + 250
        while True:
            try:
                held.enter_context(take())
                break
            except UserError as error:
                if "another run of zaplock has" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(0.2)
        yield
