"""shmem_enabled as a run needs it: shared memory gets huge pages where that is advised.

It is the machine's (see `kept`), and given back as it was: until then whoever maps shared memory
and advises MADV_HUGEPAGE gets huge pages. Other runs of the oracle notice it as they notice every
setting; a run that has the theme finds it set when it begins. Single sizes have settings of their
own (hugepages-*kB, 6.11), which whoever maps shared memory would notice: only guests have these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN

from zaplock.errors import UserError
from zaplock.model.shared_folios import Sizes
from zaplock.model.shared_huge import ORDER
from zaplock.oracle.kept import kept
from zaplock.oracle.machine_settings import MM
from zaplock.oracle.rights import way_out

SETTING = MM / "transparent_hugepage" / "shmem_enabled"
VALUE = "advise"
IN_GUESTS = {"thp": {SETTING.name: VALUE}}
"""The files that a guest sets for the theme shmem-advise, by what the guest calls their folder."""
_OF_SIZES = {16: "advise", 32: "within_size", 64: "advise", 512: "inherit"}  # by kB
SIZES_IN_GUESTS = {
    "thp": {
        **IN_GUESTS["thp"],
        **{f"hugepages-{size}kB/{SETTING.name}": value for size, value in _OF_SIZES.items()},
    }
}
"""And for the theme shmem-sizes, which has each size's own as well."""


def _orders(value: str) -> int:
    return sum(1 << (size // 4).bit_length() - 1 for size, own in _OF_SIZES.items() if own == value)


SIZES = Sizes(_orders("advise"), _orders("within_size"), _orders("inherit") | 1 << ORDER)
"""What a model is told of that."""

_SET = """
import fcntl
path, value = sys.argv[1:]
alone = open(path)
before = alone.read().partition('[')[2].partition(']')[0]
def write(value):
    with open(path, 'w') as file:
        file.write(value)
def take():
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    write(value)
    return 0
keep(take, lambda _: write(before))
"""


@contextmanager
def advised_shared_memory() -> Iterator[None]:
    """Let shared memory have huge pages where that is advised. Raises UserError where it can't."""
    if not SETTING.exists():
        raise UserError(
            f"there is no {SETTING}: theme shmem-advise needs a kernel with huge pages, so leave "
            "it out"
        )
    with kept(_SET, SETTING, VALUE) as got:
        if got == -EAGAIN:
            raise UserError(
                f"another run of zaplock has set {SETTING}: wait for its end, or leave the theme "
                "shmem-advise out"
            )
        if got < 0:
            raise UserError(
                f"can't set {SETTING} ({os.strerror(-got)}): {way_out()}, or leave the theme "
                "shmem-advise out"
            )
        yield
