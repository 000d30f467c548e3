"""zaplock: what a process's address-space lock does to the people who wait for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zaplock import buffers as buffers
    from zaplock.release import release as release

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `zaplock.release` (callable) and `zaplock.buffers` at their first use."""
    if name in ("release", "buffers"):
        return import_module(f"zaplock.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
