"""What a recording says of itself: where, when and how it was made, and what it lacks.

The manifest carries the SHA-256 of its own fields (in the order of their names, without blanks), so
that it is not believed after it was changed or damaged. Since version 3; an older one is read and
said to be unchecked.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from zaplock.errors import UserError
from zaplock.inputs import open_plain, read_plain
from zaplock.untrusted_names import shell_word, visible

FORMAT = "zaplock recording"
VERSION = 3
"""2 (from 1): stacks have a reason, a kernel part and lists of frames; quotas of cgroups. 3: every
table and the manifest have a sum, blocks of a kind are numbered by it."""
CHECKED = 3
"""From this version on there are sums."""
FILE = "manifest.json"
_LARGEST = 16 << 20
_MOST_NS = 1 << 62


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording is: where, when and how it was made, and what it lacks.

    `lost_events` counts the losses whose number is known; `unknown_losses` the gaps whose number
    isn't. `complete` is False while a recorder is writing and stays so when it was killed.
    """

    format: str = FORMAT
    version: int = VERSION
    source: str = "recorder"
    """"recorder", "simulation" or "import"."""
    kernel: str = ""
    machine: str = ""
    host: str = ""
    clock: str = "mono"
    cpus: int = 0
    target: str = ""
    command_line: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    """The trace events that were switched on, as system:name."""
    operations: tuple[str, ...] = ()
    started_at: str = ""
    """Wall-clock time in ISO 8601, UTC."""
    started_ns: int = 0
    """First instant of the recording by `clock`; `ended_ns` is its last."""
    ended_ns: int = 0
    lost_events: int = 0
    unknown_losses: int = 0
    blocks: dict[str, tuple[int, int]] = {}
    """Of each kind of blocks the first number and the one after the last."""
    hashed_pointers: bool = False
    """Addresses of the kernel stand as numbers that tell nothing but which are the same."""
    complete: bool = False
    notes: tuple[str, ...] = ()
    zaplock: str = ""


LOCK_SYSTEMS = ("mmap_lock", "zaplock")
"""Whose events tell of mmap_locks: the tracepoints, or probes on the rwsem's functions."""


def encode(manifest: Manifest) -> bytes:
    """Write a manifest with its sum."""
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    fields |= _texts(manifest)
    plain = msgspec.json.decode(msgspec.json.encode(fields))
    plain["sha256"] = _sum(plain)
    return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"


def _sum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read what a recording says of itself, without its events.

    Raises UserError where there is no recording, a damaged one, or one of a version that this
    zaplock can't read.
    """
    file = Path(path) / FILE
    try:
        raw = read_plain(file, _LARGEST, "record again", follow=False)
    except (FileNotFoundError, NotADirectoryError):
        if _is_of_calls(Path(path)):
            raise UserError(
                f"{path} is a recording of system calls, not of locks: "
                f"zaplock oracle --strace {shell_word(str(path))}"
            ) from None
        lack = f"it has no {FILE}" if os.path.lexists(path) else "there is nothing of that name"
        raise UserError(
            f"{path} is no recording ({lack}): make one with "
            f"'zaplock record', or turn a text trace into one with 'zaplock import'"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be read ({reason}): name a recording of yours") from None
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
        fields = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({visible(str(error))}): record again") from None
    if manifest.format != FORMAT or not 1 <= manifest.version <= VERSION:
        raise UserError(
            f"{path} is a {manifest.format!a} of version {manifest.version}; this zaplock reads "
            f"{FORMAT!r} up to version {VERSION}: update zaplock"
        )
    if manifest.version >= CHECKED and fields.pop("sha256", None) != _sum(fields):
        raise UserError(f"{file} is damaged (it is not what was written): record again")
    return _plain(manifest, file)


def _is_of_calls(path: Path) -> bool:
    """Return whether a file is what `zaplock oracle --trace` writes, or strace with maps in it."""
    try:
        with open_plain(path, "name a recording") as file:
            lines = file.read(_BEGINNING).splitlines()
    except (OSError, ValueError, UserError):
        return False
    return any(line.startswith((b"# command: execve(", b"# begin: ")) for line in lines)


_BEGINNING = 64 << 10


def _plain(manifest: Manifest, file: Path) -> Manifest:
    """Return the manifest with its texts visible; refuse numbers that make no sense."""
    counts = (manifest.lost_events, manifest.unknown_losses, manifest.cpus)
    blocks = (number for pair in manifest.blocks.values() for number in pair)
    numbers = (manifest.started_ns, manifest.ended_ns, *counts, *blocks)
    if not all(0 <= number < _MOST_NS for number in numbers) or len(manifest.operations) > 1 << 15:
        raise UserError(f"{file} is damaged (a number in it makes no sense): record again")
    return msgspec.structs.replace(manifest, **_texts(manifest))


def _texts(manifest: Manifest) -> dict[str, Any]:
    """Return the fields that are texts, made visible: a command line may have any bytes."""
    texts: dict[str, Any] = {}
    for name in manifest.__struct_fields__:
        value = getattr(manifest, name)
        if isinstance(value, str):
            texts[name] = visible(value)
        elif isinstance(value, tuple):
            texts[name] = tuple(visible(one) for one in value)
    return texts
