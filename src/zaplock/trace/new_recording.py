"""Begin a recording on disk: a directory of its owner alone, with a manifest; without numpy.

Who records begins it and goes on to see; who decodes fills it (`recording_writer`).
"""

from __future__ import annotations

import os

from zaplock.errors import UserError
from zaplock.outputs import Folder, place, unwritable
from zaplock.trace.manifest import FILE, Manifest, encode

UNDECODED = "spool-begin.raw"
"""Is there as long as something of a recording waits to be decoded (`recorder.spool`)."""


def begin_recording(path: str | os.PathLike[str], manifest: Manifest) -> Folder:
    """Make the directory, with a manifest in it, and open it.

    Raises UserError where something is already there, or no room.
    """
    try:
        return begin_anywhere(path, manifest)
    except FileExistsError:
        raise UserError(f"{path} is already there: remove it or name another file") from None
    except OSError as error:
        raise unwritable(path, error) from None


def begin_anywhere(path: str | os.PathLike[str], manifest: Manifest) -> Folder:
    """Do the same, and raise the OSError that says why it can't be."""
    with place(path, make_parents=True) as where:
        folder = where.folder.make(where.name)
    try:
        folder.write(FILE, encode(manifest))
    except OSError:
        folder.close()
        remove_recording(path)
        raise
    return folder


def remove_recording(path: str | os.PathLike[str]) -> None:
    """Remove a recording, if it is there."""
    with place(path) as where:
        where.folder.remove_tree(where.name)
