"""zaplock: what a process's address-space lock does to the people who wait for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zaplock.version import __version__ as __version__

if TYPE_CHECKING:
    from zaplock import buffers as buffers
    from zaplock.api import AddressSpace as AddressSpace
    from zaplock.release import release as release

_HOMES = {
    "AddressSpace": "zaplock.api",
    "Lab": "zaplock.notebook",
    "compare": "zaplock.notebook",
}


def __getattr__(name: str) -> Any:
    """Import the parts at their first use, so that `zaplock --help` answers at once."""
    if name in ("release", "buffers"):  # both are modules; release can be called
        return import_module(f"zaplock.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
