"""zaplock: what a process's address-space lock does to the people who wait for it.

    release(buffer)         free huge memory without stalling the process
    buffers                 numpy arrays whose end stalls nobody
    compare("80G")          who stalls beside a big munmap, under each kernel's design
    Lab("linux-6.18")       a simulated machine for a program of one's own
    AddressSpace("rfc-v6")  an address space to try calls on
    prove("expand")         prove a locking protocol, or show what breaks it
    report("x.zaplock")     what a recording says; `sudo zaplock record -p PID` makes one
    author                  to write designs, operations and invariants of one's own
    UserError               what is raised for bad input, in one line

Times are integer nanoseconds and lengths bytes, unless a text such as "80G" is given. In a
notebook `%load_ext zaplock` brings `%%zaplock`, which records a cell; results draw themselves.
"""

from __future__ import annotations

from zaplock.version import __version__

__all__ = [
    "AddressSpace",
    "Lab",
    "UserError",
    "__version__",
    "author",
    "buffers",
    "compare",
    "prove",
    "release",
    "report",
]

_HOMES = {
    "AddressSpace": "zaplock.api",
    "Lab": "zaplock.notebook",
    "UserError": "zaplock.errors",
    "compare": "zaplock.notebook",
    "prove": "zaplock.notebook",
    "load_ipython_extension": "zaplock.cell_magic",
    "report": "zaplock.notebook",
}
_MODULES = ("author", "buffers", "release")  # the last can be called

TYPE_CHECKING = False  # a type checker takes it for true; typing itself is half of this import
if TYPE_CHECKING:
    from zaplock import author, buffers
    from zaplock.api import AddressSpace
    from zaplock.errors import UserError
    from zaplock.notebook import Lab, compare, prove, report
    from zaplock.release import ReleaseModule

    release: ReleaseModule
else:

    def __getattr__(name: str) -> object:
        """Import the parts at their first use, so that `zaplock --help` answers at once."""
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"zaplock.{name}")
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what there is for users, imported already or not."""
    return sorted(__all__)
