"""A file to swap to for as long as a run needs it; then swapping to it is off and the file gone.

Swap is the machine's: whatever pages memory out meanwhile may use it too (see `kept`).
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from zaplock.errors import UserError
from zaplock.oracle.kept import kept
from zaplock.oracle.rights import way_out

SIZE = 64 << 20
_PAGE = 4096

_SWAP = """
import ctypes, os
path, size, header = sys.argv[1].encode(), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(path, *arguments):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
def take():
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as file:
            file.write(header + bytes(size - len(header)))
            file.flush()
            os.fsync(file.fileno())
        call('swapon', 0)
    except OSError:
        if os.path.exists(path):
            os.unlink(path)
        raise
    return size
def give_back(_size):
    call('swapoff')
    os.unlink(path)
keep(take, give_back)
"""


def header(size: int) -> bytes:
    """Return the first page of a swap area of so many bytes, as mkswap writes it."""
    info = struct.pack("<II", 1, size // _PAGE - 1)  # version, last page
    return (bytes(1024) + info).ljust(_PAGE - 10, b"\0") + b"SWAPSPACE2"


@contextmanager
def swap_file(size: int = SIZE) -> Iterator[None]:
    """Let the machine swap to a new file of so many bytes. Raises UserError where it can't."""
    path = os.path.join(tempfile.gettempdir(), f"zaplock-swap-{os.getpid()}")
    with kept(_SWAP, path, size, header(size).hex()) as got:
        if got < 0:
            raise UserError(
                f"can't swap to {path} ({os.strerror(-got)}): {way_out()}, and set TMPDIR to a "
                "directory on a disk, or leave the theme swap out"
            )
        yield
