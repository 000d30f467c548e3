"""The system calls that the model serves: by name, with the arguments of the catalogue.

Whoever runs a call by its name takes it from here: `AddressSpace.call`, the oracle's model side,
recorded programs and the checker. Where a design decides, it is asked. What needs more than its
arguments (process_madvise and its vector, shmat and its segment) is made by its callers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zaplock.protocols import (
    brk,
    madvise,
    mlock,
    mmap,
    mprotect,
    mremap,
    mseal,
    msync,
    remap_pages,
)
from zaplock.protocols.design import Cx, Protocol
from zaplock.system_calls import SYSTEM_CALLS, as_int


def _taking_ints(name: str, protocol: Callable[..., Protocol]) -> Callable[..., Protocol]:
    """Let a protocol be given what the kernel sees of the words that it takes as ints."""
    call = SYSTEM_CALLS[name]
    places = {call.arguments.index(one) for one in call.ints}
    if not places:
        return protocol

    def narrowed(cx: Cx, *words: int) -> Protocol:
        return protocol(cx, *(as_int(w) if at in places else w for at, w in enumerate(words)))

    return narrowed


_PROTOCOLS: dict[str, Callable[..., Protocol]] = {
    "munmap": lambda cx, start, length: cx.design.munmap(cx, start, length),
    "mmap": mmap.mmap,
    "mremap": mremap.mremap,
    "brk": brk.brk,
    "madvise": madvise.madvise,
    "mprotect": mprotect.mprotect,
    "mlock": mlock.mlock,
    "mlock2": mlock.mlock,
    "munlock": mlock.munlock,
    "mlockall": mlock.mlockall,
    "munlockall": mlock.munlockall,
    "msync": msync.msync,
    "mseal": mseal.mseal,
    "remap_file_pages": remap_pages.remap_file_pages,
}
SERVED: Final[dict[str, Callable[..., Protocol]]] = {
    name: _taking_ints(name, protocol) for name, protocol in _PROTOCOLS.items()
}
"""name: (cx, *arguments) -> protocol."""
