"""Protection keys: which of them a recorded program has allocated, and what it does with them.

zaplock's recorder tells how many keys the CPU has, and sees each that is allocated and freed. Where
neither is recorded, a key from 0 to 15 may be allocated: a result that tells otherwise is refused.
What execute-only mappings take of them is not followed (execute_only_pkey).

Source: mm/mprotect.c do_mprotect_pkey, pkey_alloc; arch/x86/include/asm/pkeys.h.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EINVAL, ENOMEM, ENOSPC

from zaplock.model import flags as f
from zaplock.programs.arguments import NotRecorded, numbers
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.text import CONSTANTS, number
from zaplock.protocols import mprotect

_MOST = 16
_RIGHTS = CONSTANTS["PKEY_DISABLE_ACCESS"] | CONSTANTS["PKEY_DISABLE_WRITE"]
_WORD = 0xFFFF_FFFF
_ASKED = "a key was asked for"


def begin(live: LiveSpace, most: int) -> None:
    """Note how many keys there are when a program begins: the first of them is everybody's."""
    live.known = replace(live.known, keys=frozenset(range(min(most, 1))), most_keys=most)


def protect(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Run a pkey_mprotect; a key is asked for when all else is right but what is mapped."""
    start, length, prot = numbers(call, 3)
    key = _key(call, 3)
    known = live.known.keys
    is_allocated = key in known if known is not None else 0 <= key < _MOST
    if key == -1 or is_allocated:
        return world.run(live, mprotect.mprotect(world.cx(live), start, length, prot, key))
    if not start & ~f.PAGE_MASK and prot & _GROWS != _GROWS:
        end = start + f.page_align(length)
        if not length:
            return 0
        if end <= start or end >= 1 << 64:
            return -ENOMEM
    return -EINVAL


_GROWS = f.PROT_GROWSDOWN | f.PROT_GROWSUP


def allocate(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Return the lowest key that is free, or a negative errno.

    Where the CPU has none the first that asks takes key 0 for good, though it can't have it: it is
    what execute_only_pkey says that was never set, so it is not freed again.
    """
    flags, rights = numbers(call, 2)
    known = _known(live)
    if flags or rights & ~_RIGHTS:
        return -EINVAL
    if not live.known.most_keys:
        is_first = _ASKED not in live.known.given
        live.known = replace(live.known, given=live.known.given | {_ASKED})
        return -EINVAL if is_first else -ENOSPC
    free_keys = sorted(set(range(live.known.most_keys)) - known)
    if not free_keys:
        return -ENOSPC
    take(live, free_keys[0])
    return free_keys[0]


def take(live: LiveSpace, key: int) -> None:
    """Note that a key is allocated."""
    live.known = replace(live.known, keys=_known(live) | {key})


def free(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Free a key: 0, or a negative errno where it was not allocated."""
    known, key = _known(live), _key(call, 0)
    if key not in known:
        return -EINVAL
    live.known = replace(live.known, keys=known - {key})
    return 0


def _key(call: TracedCall, at: int) -> int:
    key = number(call.arguments[at]) & _WORD
    return key - (1 << 32) if key >> 31 else key


def _known(live: LiveSpace) -> frozenset[int]:
    if live.known.keys is None:
        raise NotRecorded("which protection keys are allocated is not in the recording")
    return live.known.keys
