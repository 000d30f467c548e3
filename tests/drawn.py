"""How often a test that draws its inputs is run: always the same draws, however busy the machine.

Hypothesis itself fails a test of which a draw takes long, which is so where somebody else computes.
"""

from __future__ import annotations

import functools

from hypothesis import HealthCheck, settings

drawn = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def times(count: int) -> settings:
    """Draw so many inputs, the same ones each time."""
    return drawn(max_examples=count)
