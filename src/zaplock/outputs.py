"""Files that zaplock writes: never through somebody else's link, never half.

zaplock often runs as root in a directory of another user, who may plant links and swap directories
while it works. So the way to an output is walked once, directory by directory, each opened in the
one before; a symbolic link on the way is followed only where root or the caller made it. What is
written is a new file beside the output (O_EXCL, O_NOFOLLOW) in the opened directory, and is renamed
when it is whole. A link, a device or a directory in the output's place is refused. Whoever swaps
the directory meanwhile finds the file in the old one.

Linux follows links of strangers only in sticky directories where fs.protected_symlinks is set; the
rule here holds everywhere and does not depend on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zaplock.errors import UserError

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PICTURES = (".svg", ".png", ".html")
"""What holds and waits are drawn as."""
_MOST_LINKS = 40
"""As many as the kernel follows in one path."""


class Folder:
    """An opened directory; files are made, replaced and removed in it by name alone.

    Errors are OSError, but for a name that is taken by what is no regular file (UserError).
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path
        """What the caller called it: for messages."""

    def close(self) -> None:
        """Close the handle. Twice does no harm."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, name: str, mode: int = 0o600) -> BinaryIO:
        """Make a file that was not there, and open it for writing."""
        return os.fdopen(os.open(name, _NEW, mode, dir_fd=self.descriptor), "wb")

    def read(self, name: str) -> BinaryIO:
        """Open a file for reading, no link."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.fdopen(os.open(name, flags, dir_fd=self.descriptor), "rb")

    @contextlib.contextmanager
    def replacing(self, name: str, mode: int = 0o600) -> Iterator[BinaryIO]:
        """Give a file to write; at the end of the block it has its name, whole.

        An error leaves what was there before, and nothing beside it.
        """
        self._refuse_oddities(name)
        part = f".{name[:200]}.{secrets.token_hex(4)}.part"
        try:
            with self.create(part, mode) as file:
                yield file
            os.rename(part, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            self.remove(part)
            raise

    def write(self, name: str, content: bytes, mode: int = 0o600) -> None:
        """Replace a file by another content."""
        with self.replacing(name, mode) as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def make(self, name: str, mode: int = 0o700) -> Folder:
        """Make a directory that was not there and open it. Raises FileExistsError."""
        os.mkdir(name, mode, dir_fd=self.descriptor)
        return self._opened(name)

    def enter(self, name: str, mode: int = 0o777) -> Folder:
        """Open a directory in this one, made if it is missing."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=self.descriptor)
        return self._opened(name)

    def _opened(self, name: str) -> Folder:
        return Folder(os.open(name, _DIRECTORY, dir_fd=self.descriptor), self.path / name)

    def remove_tree(self, name: str) -> None:
        """Remove a directory and all in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(name, dir_fd=self.descriptor)

    def _refuse_oddities(self, name: str) -> None:
        try:
            mode = os.lstat(name, dir_fd=self.descriptor).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise UserError(
                f"{self.path / name} is {_kind(mode)}, and only a plain file is written over: "
                "name another file"
            )


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a directory"),
             (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))  # fmt: skip
    return next((name for test, name in kinds if test(mode)), "a device")


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """Where an output goes: the opened directory and the name in it."""

    folder: Folder
    name: str


@contextlib.contextmanager
def place(path: str | os.PathLike[str], *, make_parents: bool = False) -> Iterator[OutputPlace]:
    """Open the directory in which an output lies, missing ones made if wanted.

    Raises OSError where there is none, UserError where the way leads over a stranger's link.
    """
    given = Path(path)
    name = given.name
    if not name or "\0" in str(path):
        raise UserError(f"{str(path)!r} names no file: give a name")
    with walk(given.parent, make=make_parents) as folder:
        yield OutputPlace(folder, name)


def walk(path: str | os.PathLike[str], *, make: bool = False) -> Folder:
    """Open a directory step by step; `make` makes what is missing. Errors as for `place`."""
    given = Path(path)
    here = Folder(os.open("/" if given.is_absolute() else ".", _DIRECTORY), given)
    todo = [part for part in reversed(given.parts) if part != "/"]
    links = 0
    try:
        while todo:
            part = todo.pop()
            try:
                target = _link(here, part)
            except FileNotFoundError:
                if not make:
                    raise
                target = None
            if target is None:
                step = here.enter(part) if make else here._opened(part)
                here.close()
                here = step
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            if target.startswith("/"):
                here.close()
                here = Folder(os.open("/", _DIRECTORY), given)
            todo += [piece for piece in reversed(Path(target).parts) if piece != "/"]
    except BaseException:
        here.close()
        raise
    here.path = given
    return here


def _link(folder: Folder, name: str) -> str | None:
    """Return where a symbolic link leads, None where it is none; refuse a stranger's."""
    found = os.lstat(name, dir_fd=folder.descriptor)
    if not stat.S_ISLNK(found.st_mode):
        return None
    if found.st_uid not in (0, os.geteuid()):
        raise UserError(
            f"{name!r} on the way to {folder.path} is a symbolic link of user {found.st_uid}, who "
            "may lead it elsewhere: name the directory that it stands for"
        )
    return os.readlink(name, dir_fd=folder.descriptor)


def write(
    path: str | os.PathLike[str], content: str | bytes, *, mode: int = 0o666, parents: bool = False
) -> None:
    """Write a whole file. Raises UserError, with the way out, where it can't be written."""
    with writing(path, mode=mode, parents=parents) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str)
                   else content)  # fmt: skip


@contextlib.contextmanager
def writing(
    path: str | os.PathLike[str], *, mode: int = 0o666, parents: bool = False
) -> Iterator[BinaryIO]:
    """Give a file to write, which has its name when the block ends. Raises UserError as `write`.

    `mode` is the file's, less the umask.
    """
    try:
        with (
            place(path, make_parents=parents) as where,
            where.folder.replacing(where.name, mode) as file,
        ):
            yield file
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Make the one line for a file that can't be written."""
    reason = error.strerror or str(error)
    way_out = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EMFILE: "raise 'ulimit -n'",
        errno.ENFILE: "close some files",
    }.get(error.errno or 0, "name another file")
    return UserError(f"{path} can't be written ({reason}): {way_out}")


def require_writable(path: str | os.PathLike[str], *, parents: bool = False) -> None:
    """Raise UserError, before any long work, unless a file can be written there.

    What is there stays as it is.
    """
    try:
        with place(path, make_parents=parents) as where:
            where.folder._refuse_oddities(where.name)
            probe = f".{where.name[:200]}.{secrets.token_hex(4)}.part"
            where.folder.create(probe).close()
            where.folder.remove(probe)
    except OSError as error:
        raise unwritable(path, error) from None


def require_picture(
    path: str | os.PathLike[str], suffixes: tuple[str, ...] = PICTURES, *, place: bool = True
) -> None:
    """Raise UserError where a picture can't be: by its suffix, or (place) where it would lie."""
    if Path(path).suffix not in suffixes:
        kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UserError(f"picture {str(path)!r} must end in {kinds}")
    if place:
        require_writable(path)
