"""zaplock: what a process's address-space lock does to the people who wait for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zaplock.version import __version__

__all__ = ["AddressSpace", "Lab", "__version__", "buffers", "compare", "release"]

_HOMES = {
    "AddressSpace": "zaplock.api",
    "Lab": "zaplock.notebook",
    "compare": "zaplock.notebook",
}

if TYPE_CHECKING:
    from zaplock import buffers
    from zaplock.api import AddressSpace
    from zaplock.notebook import Lab, compare
    from zaplock.release import release
else:

    def __getattr__(name: str) -> object:
        """Import the parts at their first use, so that `zaplock --help` answers at once."""
        if name in ("release", "buffers"):  # both are modules; release can be called
            return import_module(f"zaplock.{name}")
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what there is, imported already or not."""
    return sorted({*globals(), *__all__})
