"""shmem_enabled as a run needs it: shared memory gets huge pages where that is advised.

It is the machine's (see `kept`), and given back as it was: until then whoever maps shared memory
and advises MADV_HUGEPAGE gets huge pages. Other runs of the oracle notice it as they notice every
setting; a run that has the theme finds it set when it begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN

from zaplock.errors import UserError
from zaplock.oracle.kept import kept
from zaplock.oracle.machine_settings import MM
from zaplock.oracle.rights import way_out

SETTING = MM / "transparent_hugepage" / "shmem_enabled"
VALUE = "advise"

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
